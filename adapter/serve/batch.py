"""The rows that are decoded together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from adapter.serve.forward import Forward
from adapter.serve.kv_cache import KVCache, Slot
from adapter.serve.scheduler import Row


class DecodeBatch:
    """Rows that take decode steps together, each with its own slot of `cache` and its prepared prompts."""

    def __init__(self, cache: KVCache, forward: Forward) -> None:
        self._cache, self._forward = cache, forward
        self.rows: list[Row] = []  # in the order of their slots, and of `step`
        self._prompts: Any = None  # of all rows, from Forward.stack
        self._changed = False

    def __len__(self) -> int:
        return len(self.rows)

    def join(self, row: Row) -> None:
        """Add a row. Raises if its prompts do not fit the others'."""
        rows = sorted([*self.rows, row], key=lambda r: _slot(r).start)
        # Here and not in the step, whose failure would be that of all rows.
        self._prompts = self._forward.stack([r.prepared for r in rows])
        self.rows, self._changed = rows, False

    def leave(self, row: Row) -> None:
        # A new list: the engine may be going through the old one.
        self.rows = [other for other in self.rows if other is not row]
        self._prompts, self._changed = None, True

    def step(self, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> Tensor:
        """Read new tokens of each row; returns the logits behind each of them, [tokens, vocab_size].

        starts: how many tokens of each row are in its slot and stay.
        """
        if self._changed:
            self._prompts = self._forward.stack([row.prepared for row in self.rows])
            self._changed = False
        every = True
        return self._forward(self._cache, tokens, list(map(_slot, self.rows)), starts, self._prompts, every)


def _slot(row: Row) -> Slot:
    assert row.slot is not None, "a row that runs has one"
    return row.slot
