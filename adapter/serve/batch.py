"""The rows that are decoded together. Knows token ids, slots and prompts; knows nothing of requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor

from adapter.serve.forward import Forward
from adapter.serve.kv_cache import KVCache, Slot

R = TypeVar("R")


@dataclass
class _Member(Generic[R]):
    row: R
    slot: Slot
    prompts: Any  # from Forward.prepare
    length: int  # tokens in the KV cache


class DecodeBatch(Generic[R]):
    """Rows that take decode steps together, each with its own slot of `cache`, length and prompts."""

    def __init__(self, cache: KVCache, forward: Forward) -> None:
        self._cache, self._forward = cache, forward
        self._members: list[_Member[R]] = []  # in the order of their slots
        self._prompts: Any = None
        self._changed = False

    def __len__(self) -> int:
        return len(self._members)

    @property
    def rows(self) -> list[R]:
        """The rows in the order of `step`."""
        return [member.row for member in self._members]

    def join(self, row: R, slot: Slot, tokens: int, prompts: Any) -> None:
        """Add a row whose slot holds the KV of `tokens` tokens. Raises if its prompts do not fit the others'.

        prompts: from Forward.prepare.
        """
        members = sorted([*self._members, _Member(row, slot, prompts, tokens)], key=lambda m: m.slot.start)
        # Here and not in the step, whose failure would be that of all rows.
        self._prompts = self._forward.stack([m.prompts for m in members])
        self._members, self._changed = members, False

    def leave(self, row: R) -> int:
        """Remove a row; returns how many tokens its slot holds."""
        member = self._members.pop(self.rows.index(row))
        self._changed = True
        return member.length

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Feed each row its newest token; returns the logits of the next one, [B, vocab_size]."""
        members = self._members
        if self._changed:
            self._prompts = self._forward.stack([m.prompts for m in members])
            self._changed = False
        slots, lengths = [m.slot for m in members], [m.length for m in members]
        logits = self._forward(self._cache, [[token] for token in tokens], slots, lengths, self._prompts)
        for member in members:
            member.length += 1
        return logits
