"""The rows that are decoded together."""

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


class DecodeBatch(Generic[R]):
    """Rows that take decode steps together, each with its own slot of `cache` and prompts."""

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

    def join(self, row: R, slot: Slot, prompts: Any) -> None:
        """Add a row. Raises if its prompts do not fit the others'.

        prompts: from Forward.prepare.
        """
        members = sorted([*self._members, _Member(row, slot, prompts)], key=lambda m: m.slot.start)
        # Here and not in the step, whose failure would be that of all rows.
        self._prompts = self._forward.stack([m.prompts for m in members])
        self._members, self._changed = members, False

    def leave(self, row: R) -> None:
        self._members.pop(self.rows.index(row))
        self._prompts, self._changed = None, True

    def step(self, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> Tensor:
        """Read new tokens of each row; returns the logits behind each of them, [tokens, vocab_size].

        starts: how many tokens of each row are in its slot and stay.
        """
        members = self._members
        if self._changed:
            self._prompts = self._forward.stack([m.prompts for m in members])
            self._changed = False
        every = True
        return self._forward(self._cache, tokens, [m.slot for m in members], starts, self._prompts, every)
