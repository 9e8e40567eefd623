"""The rows that are decoded together. Knows token ids, KV caches and prompts; knows nothing of requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from adapter.base.llama import Base
from adapter.method.attention import PromptKV
from adapter.serve.forward import Forward
from adapter.serve.kv_cache import KVCache

# Prompts are padded and masked to a multiple of this, for the same reason as adapter.serve.kv_cache.BLOCK.
_PROMPT_MULTIPLE = 16
_NO_PROMPTS = PromptKV({})
R = TypeVar("R")


def stack_prompts(prompts: Sequence[PromptKV | None]) -> PromptKV | None:
    """One PromptKV entry for each row in order, or None if no row has prompts."""
    if all(p is None for p in prompts):
        return None
    return PromptKV.stack([p or _NO_PROMPTS for p in prompts], _PROMPT_MULTIPLE)


@dataclass
class _Slot(Generic[R]):
    row: R
    prompts: PromptKV | None
    length: int  # tokens in the KV cache


class DecodeBatch(Generic[R]):
    """Rows that take decode steps together, each in a slot with its own KV, length and prompts.

    A row's logits do not depend on the other rows: bit for bit on a CPU in bfloat16, up to the order of summation
    in fp32 and on CUDA.
    """

    def __init__(self, base: Base, forward: Forward) -> None:
        self._base, self._forward = base, forward
        self._cache = KVCache(base)
        self._slots: list[_Slot[R]] = []
        self._prompts: PromptKV | None = None
        self._changed = False

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def rows(self) -> list[R]:
        """The rows in the order of `step`."""
        return [slot.row for slot in self._slots]

    def join(self, row: R, kv: Tensor, prompts: PromptKV | None) -> None:
        """Add a row with the KV of its prompt, [layers, 2, Hkv, tokens, head_dim]."""
        tokens = kv.shape[3]
        self._cache.reserve(len(self._slots) + 1, tokens + 1)
        self._cache.set_row(len(self._slots), kv)
        self._slots.append(_Slot(row, prompts, tokens))
        self._changed = True

    def leave(self, row: R) -> Tensor:
        """Remove a row and return its KV. The last row moves into its slot."""
        index = self.rows.index(row)
        kv = self._cache.copy_row(index, self._slots[index].length)
        last = self._slots.pop()
        if index < len(self._slots):
            self._cache.set_row(index, self._cache.copy_row(len(self._slots), last.length))
            self._slots[index] = last
        if not self._slots:
            self._cache = KVCache(self._base)  # frees the memory that long conversations took
        self._changed = True
        return kv

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Feed each row its newest token; returns the logits of the next one, [B, vocab_size]."""
        if self._changed:
            self._prompts = stack_prompts([slot.prompts for slot in self._slots])
            self._changed = False
        logits = self._forward(self._cache, tokens, [slot.length for slot in self._slots], self._prompts)
        for slot in self._slots:
            slot.length += 1
        return logits
