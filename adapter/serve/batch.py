"""Rows that are decoded together, and what is left in the cache of rows that have ended.

Knows token ids, pasts and prompts; knows nothing of requests.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from adapter.base.llama import Base
from adapter.method.attention import PromptKV
from adapter.serve.forward import Forward, KeyValues

# Prompts are masked up to a multiple of this: see adapter.serve.forward.BLOCK.
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
    """Up to a few dozen rows, each with its own past, length and prompts, that take one step together.

    A row's logits do not depend on the others: bit for bit on a CPU in bfloat16, and up to the order of summation
    in fp32 and on CUDA.
    """

    def __init__(self, base: Base, forward: Forward) -> None:
        self._base, self._forward = base, forward
        self._cache = KeyValues(base)
        self._members: list[_Member[R]] = []
        self._prompts: PromptKV | None = None
        self._stale = False

    def __len__(self) -> int:
        return len(self._members)

    @property
    def rows(self) -> list[R]:
        """Who is in, in the order of `step`."""
        return [member.row for member in self._members]

    def join(self, row: R, past: Tensor, prompts: PromptKV | None) -> None:
        """Take a row in. past: [layers, 2, Hkv, tokens, head_dim]."""
        tokens = past.shape[3]
        self._cache.reserve(len(self._members) + 1, tokens + 1)
        self._cache.put(len(self._members), past)
        self._members.append(_Member(row, prompts, tokens))
        self._stale = True

    def leave(self, row: R) -> Tensor:
        """Let a row go; returns its past."""
        index = self.rows.index(row)
        past = self._cache.row(index, self._members[index].length)
        last = self._members.pop()
        if index < len(self._members):
            self._cache.put(index, self._cache.row(len(self._members), last.length))
            self._members[index] = last
        if not self._members:
            self._cache = KeyValues(self._base)  # long conversations leave no room taken
        self._stale = True
        return past

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Feed each row its newest token; returns the logits of the next, [B, vocab_size]."""
        if self._stale:
            self._prompts = batched([member.prompts for member in self._members])
            self._stale = False
        logits = self._forward(self._cache, tokens, [m.length for m in self._members], self._prompts)
        for member in self._members:
            member.length += 1
        return logits


class PrefixPool:
    """Pasts of rows that have ended, for conversations that go on; the least recently used leave first.

    A past depends on the prompts that the tokens were read with: `key` names them, and only equal keys match.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.bytes = 0
        self._pasts: OrderedDict[tuple[Hashable, tuple[int, ...]], Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pasts)

    def put(self, key: Hashable, ids: Sequence[int], past: Tensor) -> None:
        """Keep the past of these tokens: [layers, 2, Hkv, len(ids), head_dim]."""
        for other in [k for k in self._pasts if k[0] == key and tuple(ids[: len(k[1])]) == k[1]]:
            self._drop(other)  # the new one holds it too
        while self._pasts and self.bytes + past.nbytes > self._max_bytes:
            self._drop(next(iter(self._pasts)))
        if past.nbytes <= self._max_bytes:
            self._pasts[key, tuple(ids)] = past
            self.bytes += past.nbytes

    def find(self, key: Hashable, ids: Sequence[int]) -> Tensor | None:
        """The longest past that fits the beginning of `ids`; the last token is always left to be read."""
        best, length = None, 0
        for known in self._pasts:
            if known[0] == key and (common := _common(known[1], ids[:-1])) > length:
                best, length = known, common
        if best is None:
            return None
        self._pasts.move_to_end(best)
        return self._pasts[best][:, :, :, :length]

    def _drop(self, known: tuple[Hashable, tuple[int, ...]]) -> None:
        self.bytes -= self._pasts.pop(known).nbytes


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens both begin with."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return min(len(left), len(right))
