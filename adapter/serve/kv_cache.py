"""KV caches: the keys and values of the running rows, and those of earlier rows for prefix reuse.

Both have a fixed size, so that serving never takes more memory than it was given at its start.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapter.base import memory
from adapter.base.llama import Base
from adapter.base.memory import to_device
from adapter.errors import BadInput
from adapter.lru import LRU

# The cache is read in whole blocks of tokens behind a mask. torch's attention then returns the same bits for a row
# whatever longer rows are beside it, which it does not when the length is no multiple of its vector width.
BLOCK = 64
_MIN_SPACING = 256  # tokens between the slots of short rows: equally spaced slots are read by one call
_SHORT = 256  # up to this many tokens, a row may be read as far as a longer neighbour
_FEWEST_TOKENS = 512  # of all running rows
_MOST_PREFIX_TOKENS = 16 * 1024  # of all earlier rows


@dataclass(frozen=True)
class CacheBudget:
    """What an engine's caches may hold: tokens of all running rows together, and bytes of earlier rows."""

    tokens: int
    prefix_bytes: int
    bytes: int  # of both

    @property
    def prompt_bytes(self) -> int:
        """Of earlier rows' bytes, what prompts may have that are kept, and as much again those of running rows."""
        return self.prefix_bytes // 4

    def describe(self) -> str:
        return f"a KV cache of {self.bytes / 1e9:.2g} GB: {self.tokens:,} tokens of running rows (--cache-gb)"

    @staticmethod
    def choose(base: Base, rows: int, size: int | None = None) -> CacheBudget:
        """Divide `size` bytes; by default a third of the device's free memory, but not more than `rows` can use.

        A quarter is for earlier rows. Raises BadInput if `size` does not hold one short conversation.
        """
        token_bytes = memory.kv_bytes_per_token(base.model.config, base.model.dtype)
        context = round_to_blocks(base.context_length)
        if size is None:
            free = memory.free_bytes(base.device)
            size = max(token_bytes * min(context, _FEWEST_TOKENS) * 4 // 3, free // 3)
        prefix_tokens = min(size // 4 // token_bytes, _MOST_PREFIX_TOKENS)
        tokens = min(size // token_bytes - prefix_tokens, rows * context) // BLOCK * BLOCK
        if tokens < min(context, _FEWEST_TOKENS):
            least = token_bytes * min(context, _FEWEST_TOKENS) * 4 / 3 / 1e9
            raise BadInput(
                f"A KV cache of {size / 1e9:.2g} GB holds {tokens} tokens of this base; it needs at least "
                f"{min(context, _FEWEST_TOKENS)}. Give it {least:.1g} GB or more (--cache-gb)."
            )
        return CacheBudget(tokens, prefix_tokens * token_bytes, (tokens + prefix_tokens) * token_bytes)


def round_to_blocks(tokens: int) -> int:
    """The smallest multiple of BLOCK that holds `tokens`."""
    return -(-tokens // BLOCK) * BLOCK


@dataclass(eq=False)
class Slot:
    """The place of one row in a KVCache: `tokens` tokens from `start`, both multiples of BLOCK.

    finite: how many of them have been written or zeroed by this row.
    """

    start: int
    tokens: int
    finite: int = 0

    @property
    def end(self) -> int:
        return self.start + self.tokens


class SlotAllocator:
    """Gives out slots of a cache of `capacity` tokens. A row keeps its slot until it ends; slots never move."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity // BLOCK * BLOCK
        self._taken: list[Slot] = []

    def __len__(self) -> int:
        return len(self._taken)

    def take(self, tokens: int) -> Slot | None:
        """The lowest slot for `tokens` tokens, or None if there is no room now.

        Starts are multiples of a power of two where possible, so that rows of similar length lie equally spaced.
        """
        size = round_to_blocks(tokens)
        for alignment in (max(_MIN_SPACING, 1 << (size - 1).bit_length()), BLOCK):
            for start, end in self._gaps():
                start = -(-start // alignment) * alignment
                if start + size <= end:
                    slot = Slot(start, size)
                    insort(self._taken, slot, key=lambda taken: taken.start)
                    return slot
        return None

    def free(self, slot: Slot) -> None:
        self._taken.remove(slot)

    @property
    def tokens(self) -> int:
        """Of all slots that are taken."""
        return sum(slot.tokens for slot in self._taken)

    def clear(self) -> None:
        self._taken.clear()

    def _gaps(self) -> Iterator[tuple[int, int]]:
        start = 0
        for slot in self._taken:
            yield start, slot.start
            start = slot.end
        yield start, self.capacity


class KVCache:
    """Keys and values of all running rows in one pool, `data`: [layers, 2, Hkv, capacity, head_dim].

    It is allocated once and never grows. On a CPU the system provides its pages when they are first written. Each
    row owns a slot and only that is read for it. Tokens are zeroed before torch's attention first reads them:
    masked positions must be finite, and the slot's last owner may have left anything there.
    """

    def __init__(self, base: Base, capacity: int) -> None:
        f = base.fingerprint
        shape = (f.num_hidden_layers, 2, f.num_key_value_heads, round_to_blocks(capacity), f.head_dim)
        self.data = torch.empty(shape, dtype=base.model.dtype, device=base.device)

    def step(self, slots: Sequence[Slot], starts: Sequence[int], count: int) -> StepCache:
        """This cache for a pass that reads `count` new tokens of each row behind the `starts` it holds of it.

        slots: of the rows, in ascending order. See StepCache for the runs.
        """
        runs = _runs(slots, [start + count for start in starts])
        for run in runs:
            for slot in run.slots:
                self._zero(slot, run.span)
        return StepCache(self.data, runs, [slot.start + n for slot, n in zip(slots, starts, strict=True)], count)

    def read(self, slot: Slot, tokens: int) -> Tensor:
        """A view of the first `tokens` keys and values of a row: [layers, 2, Hkv, tokens, head_dim]."""
        return self.data[:, :, :, slot.start : slot.start + tokens]

    def write(self, slot: Slot, kv: Tensor) -> None:
        """Set the first keys and values of a row that holds none: [layers, 2, Hkv, tokens, head_dim]."""
        tokens = kv.shape[3]
        assert tokens <= slot.tokens, "the row has outgrown its slot"
        self.read(slot, tokens).copy_(kv)
        slot.finite = tokens

    def _zero(self, slot: Slot, end: int) -> None:
        """Zero what has not been written up to `end`."""
        assert end <= slot.tokens, "the row has outgrown its slot"
        if slot.finite < end:
            self.data[:, :, :, slot.start + slot.finite : slot.start + end] = 0
            slot.finite = end


@dataclass
class _Run:
    """Neighbouring rows that one call of attention reads, see StepCache. shortest, longest: tokens of a row."""

    slots: list[Slot]
    shortest: int
    longest: int

    @property
    def span(self) -> int:
        """Tokens that each slot is read up to."""
        return round_to_blocks(self.longest)

    @property
    def spacing(self) -> int:
        """Tokens from one slot to the next; 0 for a single one."""
        return self.slots[1].start - self.slots[0].start if len(self.slots) > 1 else 0

    def add(self, slot: Slot, length: int) -> bool:
        """Add the next row if it lies and is as long as these; returns whether it does."""
        shortest, longest = min(self.shortest, length), max(self.longest, length)
        regular = self.spacing in (0, slot.start - self.slots[-1].start)
        similar = longest <= max(_SHORT, 2 * shortest)
        within = round_to_blocks(longest) <= min(other.tokens for other in (slot, *self.slots))
        if not (regular and similar and within):
            return False
        self.slots.append(slot)
        self.shortest, self.longest = shortest, longest
        return True


def _runs(slots: Sequence[Slot], lengths: Sequence[int]) -> list[_Run]:
    """The rows in order, in as few runs as `_Run.add` makes of them."""
    runs: list[_Run] = []
    for slot, length in zip(slots, lengths, strict=True):
        if not runs or not runs[-1].add(slot, length):
            runs.append(_Run([slot], length, length))
    return runs


class StepCache:
    """A KVCache as the layers of one forward pass see it: takes the new tokens in, returns all up to them.

    The pass reads one new token for each of several rows, in the order of their slots, or several for one row.
    Several rows are read in runs: neighbours whose slots are equally spaced and whose lengths are similar. Thus
    short rows are not read as far as a long one. spans: tokens that each run is read up to; sizes: its rows.
    """

    def __init__(self, data: Tensor, runs: Sequence[_Run], places: Sequence[int], count: int) -> None:
        """data: the pool; places: where the new tokens of each row begin in it."""
        self.spans, self.sizes = [run.span for run in runs], [len(run.slots) for run in runs]
        keys, values = [], []
        layers, _, heads, _, head_dim = data.shape
        layer, side, head, token, _ = data.stride()
        for run in runs:
            view = data.as_strided(
                (layers, 2, len(run.slots), heads, run.span, head_dim),
                (layer, side, run.spacing * token, head, token, 1),
                run.slots[0].start * token,
            )
            # Views by layer, made here at once: indexing in every layer costs a hundred microseconds a step.
            keys.append(view[:, 0].unbind())
            values.append(view[:, 1].unbind())
        self._keys, self._values = list(zip(*keys, strict=True)), list(zip(*values, strict=True))
        self._places = None
        if len(places) == 1:
            self._targets = data[:, :, :, places[0] : places[0] + count].unbind()  # [2, Hkv, N, head_dim]
        else:
            self._targets = data.unbind()  # [2, Hkv, capacity, head_dim]
            self._places = to_device(places, data.device)

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Write keys and values of N new tokens, [N, Hkv, 1, head_dim] or, of one row, [1, Hkv, N, head_dim].

        Returns keys and values by run: [rows, Hkv, span, head_dim].
        """
        if key.shape[0] > 1:
            key, value = key.transpose(0, 2), value.transpose(0, 2)  # [1, Hkv, N, head_dim]
        if self._places is None:
            torch.stack((key[0], value[0]), out=self._targets[layer])
        else:
            self._targets[layer].index_copy_(2, self._places, torch.cat((key, value)))
        return self._keys[layer], self._values[layer]


class PrefixCache:
    """KV of rows that have ended, reused by later requests with a common prefix. Evicts the least recently used.

    Keys and values depend on the prompts that the tokens were read with: `key` identifies them, and only entries
    with an equal key match.
    """

    def __init__(self, max_bytes: int) -> None:
        self._entries: LRU[tuple[Hashable, tuple[int, ...]], Tensor] = LRU(max_bytes, lambda kv: kv.nbytes)
        self._reserved = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def bytes(self) -> int:
        return self._entries.size

    def reserve(self, size: int) -> None:
        """Leave so many bytes of the limit to others, until the next call."""
        self._reserved = min(size, self._entries.limit)
        self._entries.make_room(self._reserved)

    def add(self, key: Hashable, ids: Sequence[int], kv: Tensor) -> None:
        """Store a copy of the KV of these tokens, [layers, 2, Hkv, len(ids), head_dim], if it fits.

        It is made once there is room, so that entries and copy never exceed the limit together.
        """
        if kv.nbytes + self._reserved > self._entries.limit:
            return
        for other in self._entries:
            if other[0] == key and tuple(ids[: len(other[1])]) == other[1]:
                self._entries.pop(other)  # the new entry contains it
        self._entries.make_room(kv.nbytes + self._reserved)
        self._entries.put((key, tuple(ids)), kv.clone())

    def longest_prefix(self, key: Hashable, ids: Sequence[int]) -> Tensor | None:
        """The cached KV of the longest common prefix with `ids`; never of the last token, which must be read."""
        best, length = None, 0
        for entry in self._entries:
            if entry[0] == key and (common := _common_prefix_length(entry[1], ids[:-1])) > length:
                best, length = entry, common
        kv = None if best is None else self._entries.get(best)
        return None if kv is None else kv[:, :, :, :length]


def _common_prefix_length(left: Sequence[int], right: Sequence[int]) -> int:
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))
