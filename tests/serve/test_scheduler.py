"""Whose turn it is."""

from __future__ import annotations

import pytest

from adapter.serve.scheduler import FairQueue


def queue(*pairs: tuple[str, str]) -> FairQueue[str]:
    waiting: FairQueue[str] = FairQueue()
    for item, client in pairs:
        waiting.put(item, client)
    return waiting


def test_clients_take_turns_each_in_its_own_order():
    waiting = queue(("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("c1", "c"), ("c2", "c"))
    foreseen = list(waiting)
    assert foreseen == ["a1", "b1", "c1", "a2", "c2", "a3"]
    assert [waiting.pop() for _ in range(len(waiting))] == foreseen
    assert len(waiting) == 0
    with pytest.raises(IndexError):
        waiting.pop()


def test_who_was_just_served_waits_for_the_others():
    waiting = queue(("a1", "a"), ("a2", "a"), ("b1", "b"))
    assert waiting.pop() == "a1"
    waiting.put("b2", "b")
    assert list(waiting) == ["b1", "a2", "b2"]


def test_remove():
    waiting = queue(("a1", "a"), ("b1", "b"))
    assert waiting.remove("a1") and not waiting.remove("a1") and not waiting.remove("x")
    assert list(waiting) == ["b1"] and len(waiting) == 1
