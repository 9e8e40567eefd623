"""The cache of the most recently used values."""

import threading

import pytest

from adapter.lru import LRU
from tests.app_process import PATIENCE


def test_the_least_recently_used_values_go_and_none_for_what_never_fits():
    lru: LRU[str, str] = LRU(10, len)
    for key, value in (("a", "aaaa"), ("b", "bbbb")):
        lru.put(key, value)
    assert lru.get("a") == "aaaa"
    lru.put("c", "cc")
    assert (list(lru), lru.size) == (["b", "a", "c"], 10)
    lru.put("d", "x" * 11)
    assert list(lru) == ["b", "a", "c"]
    lru.put("c", "ccc")
    assert (list(lru), lru.size) == (["a", "c"], 7)
    lru.pop("a")
    lru.pop("a")
    assert (list(lru), lru.size, lru.get("a")) == (["c"], 3, None)


def test_a_value_is_computed_once_and_delays_nobody_who_wants_another():
    lru: LRU[str, int] = LRU(5)
    began, go_on, made = threading.Event(), threading.Event(), []

    def slow() -> int:
        began.set()
        assert go_on.wait(PATIENCE)
        made.append(1)
        return 1

    callers = [threading.Thread(target=lru.compute, args=["slow", slow], daemon=True) for _ in range(4)]
    for caller in callers:
        caller.start()
    assert began.wait(PATIENCE)
    assert lru.compute("other", lambda: 2) == 2  # the others wait for `slow`
    go_on.set()
    for caller in callers:
        caller.join(PATIENCE)
    assert made == [1] and lru.get("slow") == 1
    with pytest.raises(ZeroDivisionError):
        lru.compute("a", lambda: 1 // 0)
    assert lru.compute("a", lambda: 3) == 3
