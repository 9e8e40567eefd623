"""Reading answers: what has arrived, a few times a second, and the last event at once."""

from __future__ import annotations

import asyncio

import pytest

from adapter.errors import Busy
from adapter.serve.request import Answer, GenerationEvent, Mailbox
from tests.app_process import PATIENCE

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
def test_what_arrived_before_an_error_is_read_before_it_is_raised(read):
    lists = []
    with pytest.raises(Busy, match="Pulled"):
        read(answer(token(0), token(1), Busy("Pulled."), token(2)), lists)
    assert lists == [[token(0), token(1)]]
