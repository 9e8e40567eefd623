"""What is prepared beside the steps: in order, not too far ahead, errors in their place."""

import threading
from collections.abc import Iterator

import pytest

from tests.app_process import wait_until
from train.formats.dataset import DataError
from train.input.batches import Prefetch


def test_items_are_made_ahead_in_order_but_not_far():
    made: list[int] = []

    def numbers(_) -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    with Prefetch(numbers) as items:
        for number in range(10):
            assert next(items) == number
            wait_until(lambda number=number: len(made) == number + 3)
        assert list(items) == list(range(10, 20)), "and they may end"


def test_an_error_is_raised_where_its_item_would_be_used():
    def items(_) -> Iterator[int]:
        yield from (1, 2)
        raise DataError("The third is broken.")

    with Prefetch(items) as found:
        assert [next(found), next(found)] == [1, 2]
        with pytest.raises(DataError, match="third"):
            next(found)


def test_leaving_ends_the_thread_in_the_middle_of_an_item():
    reached, threads = threading.Event(), []

    def items(stopping) -> Iterator[int]:
        threads.append(threading.current_thread())
        yield 1
        reached.set()
        wait_until(stopping)
        yield 2

    with pytest.raises(KeyboardInterrupt), Prefetch(items) as found:
        assert next(found) == 1 and reached.wait(60)
        raise KeyboardInterrupt
    assert not threads[0].is_alive()
