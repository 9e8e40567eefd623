"""Rows that are decoded together.

Knows token ids, KV caches and prompts; knows nothing of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from adapter.base.llama import Base
from adapter.method.attention import PromptKV
from adapter.serve.forward import Forward
from adapter.serve.kv_cache import KVCache

# Prompts are masked up to a multiple of this: see adapter.serve.kv_cache.BLOCK.
_PROMPT_MULTIPLE = 16
_NO_PROMPTS = PromptKV({})
R = TypeVar("R")


def batched(prompts: Sequence[PromptKV | None]) -> PromptKV | None:
    """One entry for each row in order, or None if no row has prompts."""
    if all(p is None for p in prompts):
        return None
    return PromptKV.stack([p or _NO_PROMPTS for p in prompts], _PROMPT_MULTIPLE)


@dataclass
class _Member(Generic[R]):
    row: R
    prompts: PromptKV | None
    length: int  # tokens in the cache


class DecodeBatch(Generic[R]):
    """Up to a few dozen rows, each with its own KV, length and prompts, that take one step together.

    A row's logits do not depend on the others: bit for bit on a CPU in bfloat16, and up to the order of summation
    in fp32 and on CUDA.
    """

    def __init__(self, base: Base, forward: Forward) -> None:
        self._base, self._forward = base, forward
        self._cache = KVCache(base)
        self._members: list[_Member[R]] = []
        self._prompts: PromptKV | None = None
        self._stale = False

    def __len__(self) -> int:
        return len(self._members)

    @property
    def rows(self) -> list[R]:
        """Who is in, in the order of `step`."""
        return [member.row for member in self._members]

    def join(self, row: R, kv: Tensor, prompts: PromptKV | None) -> None:
        """Take a row in. kv: [layers, 2, Hkv, tokens, head_dim]."""
        tokens = kv.shape[3]
        self._cache.reserve(len(self._members) + 1, tokens + 1)
        self._cache.set_row(len(self._members), kv)
        self._members.append(_Member(row, prompts, tokens))
        self._stale = True

    def leave(self, row: R) -> Tensor:
        """Let a row go; returns its KV."""
        index = self.rows.index(row)
        kv = self._cache.copy_row(index, self._members[index].length)
        last = self._members.pop()
        if index < len(self._members):
            self._cache.set_row(index, self._cache.copy_row(len(self._members), last.length))
            self._members[index] = last
        if not self._members:
            self._cache = KVCache(self._base)  # long conversations leave no room taken
        self._stale = True
        return kv

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Feed each row its newest token; returns the logits of the next, [B, vocab_size]."""
        if self._stale:
            self._prompts = batched([member.prompts for member in self._members])
            self._stale = False
        logits = self._forward(self._cache, tokens, [m.length for m in self._members], self._prompts)
        for member in self._members:
            member.length += 1
        return logits
