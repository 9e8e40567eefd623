"""Reading answers: what has arrived, a few times a second, and the last event at once."""

from __future__ import annotations

import asyncio
import threading

import pytest

from adapter.errors import Busy
from adapter.serve.request import Answer, GenerationEvent, GenerationStats, Mailbox, read_together
from tests.app_process import PATIENCE, wait_until

LAST = GenerationEvent("!", 9, -0.1, "stop", GenerationStats(5, 3, 0.0, 0.0, 0.1))
LONG = 100 * PATIENCE  # a pause that no test survives


def token(number):
    return GenerationEvent(f"{number} ", number, -0.1)


def answer(*events):
    """An answer of which these events have arrived."""
    mailbox = Mailbox()
    for event in events:
        mailbox.put(event)
    return Answer(mailbox, lambda: None)


def read_in_thread(answer, lists):
    for events in answer.event_lists(LONG):
        lists.append(events)


def read_in_loop(answer, lists):
    async def read():
        async for events in answer.async_event_lists(LONG):
            lists.append(events)

    asyncio.run(read())


@pytest.mark.parametrize("read", [read_in_thread, read_in_loop])
def test_tokens_do_not_wake_a_reader_who_pauses_and_the_end_does(read):
    lists, wakes, read_answer = [], [], answer()
    mailbox = read_answer.mailbox
    reader = threading.Thread(target=read, args=(read_answer, lists), daemon=True)
    reader.start()
    wait_until(lambda: mailbox.waiting)
    mailbox.put(token(0))
    wait_until(lambda: lists and mailbox.waiting)  # the first list came at once
    wake = mailbox.wake
    mailbox.wake = lambda: (wakes.append(None), wake())
    for number in range(1, 5):
        mailbox.put(token(number))
        wait_until(lambda: not mailbox.waiting)  # the pause has begun
    assert len(wakes) == 1
    mailbox.put(LAST)
    reader.join(PATIENCE)
    assert not reader.is_alive() and len(wakes) == 2
    assert lists == [[token(0)], [*map(token, range(1, 5)), LAST]]


@pytest.mark.parametrize("read", [read_in_thread, read_in_loop])
def test_what_arrived_before_an_error_is_read_before_it_is_raised(read):
    lists = []
    with pytest.raises(Busy, match="Pulled"):
        read(answer(token(0), token(1), Busy("Pulled."), token(2)), lists)
    assert lists == [[token(0), token(1)]]


def test_several_answers_are_read_in_one_list_and_end_each_for_itself():
    one, two = answer(token(0)), answer(token(1), Busy("Pulled."))
    lists = read_together({1: one, 2: two}, 0.0)
    first = next(lists)
    assert first[0] == (1, token(0)) and first[1] == (2, token(1)) and isinstance(first[2][1], Busy)
    one.mailbox.put(LAST)
    assert list(lists) == [[(1, LAST)]]
