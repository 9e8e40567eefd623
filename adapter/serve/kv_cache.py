"""KV caches of a fixed size: keys and values of the running rows, and those of earlier rows for prefix reuse."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from operator import eq

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

    @staticmethod
    def choose(base: Base, rows: int, size: int | None = None) -> CacheBudget:
        """Divide `size` bytes, by default a third of the free memory or what `rows` can use; a quarter is for
        earlier rows. Raises BadInput if `size` does not hold one short conversation.
        """
        token_bytes = memory.kv_bytes_per_token(base.model.config, base.model.dtype)
        context = round_to_blocks(base.context_length)
        if size is None:
            size = max(token_bytes * min(context, _FEWEST_TOKENS) * 4 // 3, memory.free_bytes(base.device) // 3)
        prefix_tokens = min(size // 4 // token_bytes, _MOST_PREFIX_TOKENS)
        tokens = min(size // token_bytes - prefix_tokens, rows * context) // BLOCK * BLOCK
        if tokens < min(context, _FEWEST_TOKENS):
            least = math.ceil(token_bytes * min(context, _FEWEST_TOKENS) * 4 / 3 / 1e7) / 100
            raise BadInput(
                f"A KV cache of {size / 1e9:.2g} GB holds {tokens} tokens of this base; it needs at least "
                f"{min(context, _FEWEST_TOKENS)}. Give it {least:g} GB or more (--cache-gb)."
            )
        return CacheBudget(tokens, prefix_tokens * token_bytes, (tokens + prefix_tokens) * token_bytes)


def round_to_blocks(tokens: int) -> int:
    """The smallest multiple of BLOCK that holds `tokens`."""
    return -(-tokens // BLOCK) * BLOCK


@dataclass(eq=False)
class Slot:
    """The place of one row in a KVCache: `tokens` tokens from `start`, both multiples of BLOCK."""

    start: int
    tokens: int
    finite: int = 0  # how many of them have been written or zeroed by this row


class SlotAllocator:
    """Gives out slots of a cache of `capacity` tokens. A row keeps its slot until it ends; slots never move."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity // BLOCK * BLOCK
        self._taken: list[Slot] = []

    def take(self, tokens: int) -> Slot | None:
        """The lowest slot for `tokens` tokens, or None if there is no room now. Starts are multiples of a power
        of two if possible: rows of similar length then lie equally spaced.
        """
        size = round_to_blocks(tokens)
        starts = [0, *(slot.start + slot.tokens for slot in self._taken)]
        ends = [*(slot.start for slot in self._taken), self.capacity]
        for alignment in (max(_MIN_SPACING, 1 << (size - 1).bit_length()), BLOCK):
            for start, end in zip(starts, ends, strict=True):
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
        """The tokens of all slots that are taken."""
        return sum(slot.tokens for slot in self._taken)

    def clear(self) -> None:
        self._taken.clear()


class KVCache:
    """The running rows' keys and values, `data`: [layers, 2, Hkv, capacity, head_dim]. A row's tokens are zeroed
    before torch's attention first reads them: masked positions must be finite.
    """

    def __init__(self, base: Base, capacity: int) -> None:
        f = base.fingerprint
        shape = (f.num_hidden_layers, 2, f.num_key_value_heads, round_to_blocks(capacity), f.head_dim)
        self.data = torch.empty(shape, dtype=base.model.dtype, device=base.device)

    def read(self, slot: Slot, tokens: int) -> Tensor:
        """A view of the first `tokens` keys and values of a row: [layers, 2, Hkv, tokens, head_dim]."""
        return self.data[:, :, :, slot.start : slot.start + tokens]

    def write(self, slot: Slot, kv: Tensor) -> None:
        """Set the first keys and values of a row that holds none: [layers, 2, Hkv, tokens, head_dim]."""
        tokens = kv.shape[3]
        assert tokens <= slot.tokens, "the row has outgrown its slot"
        self.read(slot, tokens).copy_(kv)
        slot.finite = tokens


class StepCache:
    """A KVCache as the layers of one pass see it: `update` stores the new tokens' KV, returns all KV up to them.
    The new tokens are several of one row or one of each row. Run i (see _is_run): sizes[i] rows, read to spans[i].
    """

    def __init__(self, data: Tensor, slots: Sequence[Slot], starts: Sequence[int], count: int) -> None:
        """data: the pool; starts: how many tokens each row has; count: how many new ones it gets."""
        runs: list[list[tuple[Slot, int]]] = []
        for slot, start in zip(slots, starts, strict=True):
            if runs and _is_run([*runs[-1], (slot, start + count)]):
                runs[-1].append((slot, start + count))
            else:
                runs.append([(slot, start + count)])
        self.spans = [round_to_blocks(max(length for _, length in run)) for run in runs]
        self.sizes = list(map(len, runs))
        keys, values = [], []
        layers, _, heads, _, head_dim = data.shape
        layer, side, head, token, _ = data.stride()
        for run, span in zip(runs, self.spans, strict=True):
            for slot, _ in run:
                assert span <= slot.tokens, "the row has outgrown its slot"
                if slot.finite < span:
                    data[:, :, :, slot.start + slot.finite : slot.start + span] = 0
                    slot.finite = span
            spacing = run[1][0].start - run[0][0].start if len(run) > 1 else 0
            view = data.as_strided(
                (layers, 2, len(run), heads, span, head_dim),
                (layer, side, spacing * token, head, token, 1),
                run[0][0].start * token,
            )
            # Views by layer, made here at once: indexing in every layer costs a hundred microseconds a step.
            keys.append(view[:, 0].unbind())
            values.append(view[:, 1].unbind())
        self._keys, self._values = list(zip(*keys, strict=True)), list(zip(*values, strict=True))
        places = [slot.start + start + i for slot, start in zip(slots, starts, strict=True) for i in range(count)]
        self._pool, self._places = data.unbind(), to_device(places, data.device)

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Write keys and values of N new tokens, [N, Hkv, 1, head_dim] or, of one row, [1, Hkv, N, head_dim].
        Returns those of each run: [rows, Hkv, span, head_dim].
        """
        if key.shape[0] > 1:
            key, value = key.transpose(0, 2), value.transpose(0, 2)  # [1, Hkv, N, head_dim]
        self._pool[layer].index_copy_(2, self._places, torch.cat((key, value)))
        return self._keys[layer], self._values[layer]


def _is_run(rows: Sequence[tuple[Slot, int]]) -> bool:
    """Whether one call of attention reads these: their slots are equally spaced, their lengths similar."""
    slots, lengths = zip(*rows, strict=True)
    shortest, longest = min(lengths), max(lengths)
    spacings = {after.start - before.start for before, after in pairwise(slots)}
    within = round_to_blocks(longest) <= min(slot.tokens for slot in slots)
    return len(spacings) <= 1 and longest <= max(_SHORT, 2 * shortest) and within


class PrefixCache(LRU[tuple[Hashable, tuple[int, ...]], Tensor]):
    """KV of rows that have ended, for later requests with a common prefix and an equal key: the same prompts."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(max_bytes, lambda kv: kv.nbytes)
        self._reserved = 0

    def reserve(self, size: int) -> None:
        """Leave so many bytes of the limit to others, until the next call."""
        self._reserved = min(size, self.limit)
        self.make_room(self._reserved)

    def add(self, key: Hashable, ids: Sequence[int], kv: Tensor) -> None:
        """Store a copy of the KV of these tokens, [layers, 2, Hkv, len(ids), head_dim], if it fits."""
        if kv.nbytes + self._reserved > self.limit:
            return
        for other in self:
            if other[0] == key and tuple(ids[: len(other[1])]) == other[1]:
                self.pop(other)  # the new entry contains it
        self.make_room(kv.nbytes + self._reserved)  # before the copy is made
        self.put((key, tuple(ids)), kv.clone())

    def longest_prefix(self, key: Hashable, ids: Sequence[int]) -> Tensor | None:
        """The cached KV of the longest common prefix with `ids`; never of the last token, which must be read."""
        best, length = None, 0
        for entry in self:
            common = sum(takewhile(bool, map(eq, entry[1], ids[:-1]))) if entry[0] == key else 0
            if common > length:
                best, length = entry, common
        kv = None if best is None else self.get(best)
        return None if kv is None else kv[:, :, :, :length]
