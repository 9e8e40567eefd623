"""KV caches: the keys and values of the rows being decoded, and those of earlier rows for prefix reuse.

Knows tensors and token ids; knows nothing of requests.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from adapter.base.llama import Base

# The cache is read in whole blocks of tokens behind a mask. torch's attention then returns the same bits for a row
# whatever longer rows are beside it, which it does not when the length is no multiple of its vector width.
BLOCK = 64


def round_to_blocks(tokens: int) -> int:
    """The smallest multiple of BLOCK that holds `tokens`."""
    return -(-tokens // BLOCK) * BLOCK


class KVCache:
    """Keys and values of several rows in `data`: [rows, layers, 2, Hkv, capacity, head_dim]. Grows in blocks."""

    def __init__(self, base: Base, rows: int = 1, tokens: int = BLOCK) -> None:
        f = base.fingerprint
        capacity = round_to_blocks(tokens)
        shape = (rows, f.num_hidden_layers, 2, f.num_key_value_heads, capacity, f.head_dim)
        # Zeros, not empty memory: masked positions must be finite.
        self.data = torch.zeros(shape, dtype=base.model.dtype, device=base.device)

    def reserve(self, rows: int, tokens: int) -> None:
        """Make room for this many rows and tokens; keeps the content."""
        had_rows, *middle, had_tokens, head_dim = self.data.shape
        if rows <= had_rows and tokens <= had_tokens:
            return
        rows = max(rows, had_rows)
        tokens = had_tokens if tokens <= had_tokens else round_to_blocks(max(tokens, had_tokens * 3 // 2))
        grown = self.data.new_zeros(rows, *middle, tokens, head_dim)
        grown[:had_rows, ..., :had_tokens, :] = self.data
        self.data = grown

    def step(self, starts: Sequence[int], count: int, span: int) -> StepCache:
        """This cache for `count` new tokens behind `starts` tokens of each row; it is read up to `span` tokens."""
        return StepCache(self, starts, count, span)

    def copy_row(self, row: int, tokens: int) -> Tensor:
        """A copy of one row's first `tokens` keys and values: [layers, 2, Hkv, tokens, head_dim]."""
        return self.data[row, ..., :tokens, :].clone()

    def set_row(self, row: int, kv: Tensor) -> None:
        """Write one row's keys and values, [layers, 2, Hkv, tokens, head_dim]; there must be room."""
        self.data[row, ..., : kv.shape[3], :] = kv


class StepCache:
    """A KVCache as the layers of one forward pass see it: takes the new tokens in, returns all up to them.

    The pass reads one new token for each of several rows, or several for one row.
    """

    def __init__(self, cache: KVCache, starts: Sequence[int], count: int, span: int) -> None:
        rows = cache.data[: len(starts)]
        # Views by layer, made here at once: indexing in every layer costs a hundred microseconds a step.
        self._keys = rows[:, :, 0, :, :span].unbind(1)
        self._values = rows[:, :, 1, :, :span].unbind(1)
        if len(starts) == 1:
            self._targets = rows[0, :, :, :, starts[0] : starts[0] + count].unbind(0)  # [2, Hkv, N, head_dim]
            self._places = None
        else:
            self._targets = rows.unbind(1)  # [rows, 2, Hkv, capacity, head_dim]
            device = cache.data.device
            self._places = (
                torch.arange(len(starts), device=device),
                slice(None),
                slice(None),
                torch.tensor(starts, device=device),
            )

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Write keys and values of N new tokens, [N, Hkv, 1, head_dim] or, of one row, [1, Hkv, N, head_dim].

        Returns keys and values of each row up to `span`: [rows, Hkv, span, head_dim].
        """
        if self._places is not None:
            self._targets[layer][self._places] = torch.stack((key, value), 1)[:, :, :, 0]
        else:
            if key.shape[0] > 1:
                key, value = key.transpose(0, 2), value.transpose(0, 2)
            torch.stack((key[0], value[0]), out=self._targets[layer])
        return self._keys[layer], self._values[layer]


class PrefixCache:
    """KV of rows that have ended, reused by later requests with a common prefix. Evicts the least recently used.

    Keys and values depend on the prompts that the tokens were read with: `key` identifies them, and only entries
    with an equal key match.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.bytes = 0
        self._entries: OrderedDict[tuple[Hashable, tuple[int, ...]], Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, key: Hashable, ids: Sequence[int], kv: Tensor) -> None:
        """Store the KV of these tokens: [layers, 2, Hkv, len(ids), head_dim]."""
        for other in [e for e in self._entries if e[0] == key and tuple(ids[: len(e[1])]) == e[1]]:
            self._evict(other)  # the new entry contains it
        while self._entries and self.bytes + kv.nbytes > self._max_bytes:
            self._evict(next(iter(self._entries)))
        if kv.nbytes <= self._max_bytes:
            self._entries[key, tuple(ids)] = kv
            self.bytes += kv.nbytes

    def longest_prefix(self, key: Hashable, ids: Sequence[int]) -> Tensor | None:
        """The cached KV of the longest common prefix with `ids`; never of the last token, which must be read."""
        best, length = None, 0
        for entry in self._entries:
            if entry[0] == key and (common := _common_prefix_length(entry[1], ids[:-1])) > length:
                best, length = entry, common
        if best is None:
            return None
        self._entries.move_to_end(best)
        return self._entries[best][:, :, :, :length]

    def _evict(self, entry: tuple[Hashable, tuple[int, ...]]) -> None:
        self.bytes -= self._entries.pop(entry).nbytes


def _common_prefix_length(left: Sequence[int], right: Sequence[int]) -> int:
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))
