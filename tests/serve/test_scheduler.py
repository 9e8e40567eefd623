"""The fair queue and the scheduler, without a model."""

from __future__ import annotations

import pytest

from adapter.serve import scheduler as scheduler_module
from adapter.serve.detokenizer import Detokenizer
from adapter.serve.request import Client, GenerationRequest
from adapter.serve.scheduler import FairQueue, Row, Scheduler

END = 9  # the stop id


def make_queue(*pairs: tuple[str, str]) -> FairQueue[str]:
    queue: FairQueue[str] = FairQueue()
    for item, client in pairs:
        queue.put(item, client)
    return queue


def test_clients_take_turns_and_each_keeps_its_order():
    queue = make_queue(("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("c1", "c"), ("c2", "c"))
    expected = ["a1", "b1", "c1", "a2", "c2", "a3"]
    assert list(queue) == expected
    assert [queue.pop() for _ in expected] == expected
    assert len(queue) == 0
    with pytest.raises(IndexError):
        queue.pop()


def test_a_client_that_was_served_waits_for_the_others():
    queue = make_queue(("a1", "a"), ("a2", "a"), ("b1", "b"))
    assert queue.pop() == "a1"
    queue.put("b2", "b")
    assert list(queue) == ["b1", "a2", "b2"]


def test_an_item_can_be_removed_once():
    queue = make_queue(("a1", "a"), ("b1", "b"))
    assert queue.remove("a1") and not queue.remove("a1") and not queue.remove("x")
    assert list(queue) == ["b1"] and len(queue) == 1


@pytest.fixture
def make_row(tiny_base):
    def make(max_new_tokens: int = 100, **request) -> Row:
        tokens = [1, 2, 3]
        return Row(GenerationRequest(**request), [], tokens, max_new_tokens, Detokenizer(tiny_base.tokenizer), 0.0)

    return make


@pytest.fixture
def scheduler() -> Scheduler:
    return Scheduler(frozenset([END]))


def test_prefill_chunks_and_decode_steps_alternate(scheduler, make_row):
    first, second = make_row(), make_row()
    scheduler.add(first)
    assert scheduler.schedule(0.0).prefill is first
    assert scheduler.postprocess(first, 5) is None
    scheduler.add(second)
    prefills = [scheduler.schedule(0.0).prefill for _ in range(4)]  # `second` has a long prompt
    assert prefills == [None, second, None, second]
    assert scheduler.decoding == [first] and scheduler.prefilling == [second]


def test_a_long_prompt_is_read_at_once_when_nobody_decodes(scheduler, make_row):
    row = make_row()
    scheduler.add(row)
    assert [scheduler.schedule(0.0).prefill for _ in range(3)] == [row] * 3


@pytest.mark.parametrize(
    "token, limit, reason", [(END, 5, "stop"), (END, 1, "stop"), (5, 1, "length"), (5, 2, None)]
)
def test_a_token_ends_the_row_or_not(scheduler, make_row, token, limit, reason):
    row = make_row(max_new_tokens=limit)
    scheduler.add(row)
    scheduler.schedule(0.0)
    assert scheduler.postprocess(row, token) == reason
    assert row.token_ids == [1, 2, 3, token] and row.new_tokens == 1


def test_waiting_rows_are_told_their_position_when_it_changes(scheduler, make_row, monkeypatch):
    monkeypatch.setattr(scheduler_module, "MAX_ROWS", 1)
    running, second, third = (make_row(client=Client(session="a")) for _ in range(3))
    other = make_row(client=Client(address="b"))
    scheduler.add(running)
    scheduler.schedule(0.0)
    for row in (second, third, other):
        scheduler.add(row)
    # The other client has one request only: it comes before the third of client a.
    assert scheduler.schedule(0.0).moved == [second, other, third]
    assert scheduler.schedule(0.0).moved == []
    assert scheduler.cancel(second)
    assert [(row, row.position) for row in scheduler.schedule(0.0).moved] == [
        (third, 0)
    ]  # the other client keeps 1


def test_the_session_of_a_client_comes_before_its_address(scheduler, make_row):
    rows = [make_row(client=Client("one address", session)) for session in ("x", "x", "y")]
    for row in rows:
        scheduler.add(row)
    assert list(scheduler.waiting) == [rows[0], rows[2], rows[1]]


def test_cancelled_and_late_rows_are_finished_with_the_next_step(scheduler, make_row):
    waiting, cancelled, late = make_row(), make_row(), make_row(max_seconds=2.0)
    for row in (cancelled, late):
        scheduler.add(row)
    scheduler.schedule(10.0)
    scheduler.postprocess(cancelled, 5)
    assert scheduler.schedule(12.0).finished == []
    assert not scheduler.cancel(cancelled)  # it runs
    step = scheduler.schedule(12.5)
    assert step.finished == [(late, "time"), (cancelled, "cancelled")] and step.prefill is None
    assert not scheduler.has_work
    scheduler.add(waiting)
    assert scheduler.cancel(waiting) and not scheduler.has_work


def test_after_a_failure_only_waiting_rows_are_left(scheduler, make_row, monkeypatch):
    monkeypatch.setattr(scheduler_module, "MAX_ROWS", 1)
    running, waiting = make_row(), make_row()
    scheduler.add(running)
    scheduler.schedule(0.0)
    scheduler.add(waiting)
    scheduler.reset()
    assert scheduler.schedule(0.0).prefill is waiting


def test_a_row_that_started_while_the_queue_failed_does_not_come_back(scheduler, make_row, monkeypatch):
    row = make_row()
    scheduler.add(row)

    def fail(_):
        raise MemoryError

    monkeypatch.setattr(FairQueue, "pop", fail)
    with pytest.raises(MemoryError):
        scheduler.schedule(0.0)
    scheduler.reset()
    assert row.started_at is not None and not scheduler.has_work
