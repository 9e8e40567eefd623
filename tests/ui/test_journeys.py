"""Journeys on a slow network, whose results come late; `test_page_train.py` has the one that trains."""

import pytest

from adapter.errors import Busy
from tests.app_process import wait_until
from tests.browser import TWO_FRAMES
from tests.ui.fake_page import closed_gate, url

__all__ = ["closed_gate", "url"]  # fixtures
pytestmark = [pytest.mark.slow, pytest.mark.browser]


def test_send_and_switch(visit):
    """Gradio's server ends a stream of results when it knows of no event; page.js's guard opens another."""
    for milliseconds in (20, 100, 400):
        visitor = visit(late=milliseconds)
        assert visitor.ask("Good morning.") == "you said: Good morning.!"
        rows = visitor.rows()
        visitor.new_conversation()
        assert visitor.ask("And now?") == "you said: And now?!" and len(visitor.answers()) == 1
        visitor.new_conversation()
        visitor.page.locator("#chat .example").nth(1).click()
        visitor.await_answers(1)
        visitor.open_conversation("Good morning.")  # while the end of the example's answer is on its way
        visitor.wait_for_rows(rows)


def test_stop(visit, closed_gate):
    """By its button, and by Esc from anywhere."""
    far = visit(late=400)
    far.type("Good morning.")
    far.await_answers(1)
    far.page.locator("#box .stop-button").click()
    wait_until(lambda: closed_gate.newest.mailbox.cancelled)
    closed_gate.gate.set()
    assert far.settle().startswith("you said:") and "stopped" in far.stats()
    closed_gate.gate.clear()
    far.type("And the sea?")
    far.await_answers(2)
    far.page.locator("h1").click()
    far.page.keyboard.press("Escape")
    wait_until(lambda: closed_gate.newest.mailbox.cancelled)
    closed_gate.gate.set()
    assert far.settle().startswith("you said:") and "stopped" in far.stats()
    assert far.ask("And now?") == "you said: And now?!"


def test_a_failure(visit, closed_gate):
    """Its message comes back, above what was typed meanwhile."""
    visitor = visit()
    visitor.type("Good morning.")
    visitor.await_answers(1)
    visitor.page.evaluate(TWO_FRAMES)
    visitor.box.fill("And then")
    closed_gate.error = Busy("Try again.")
    closed_gate.gate.set()
    wait_until(lambda: visitor.box.input_value() == "Good morning.\n\nAnd then", visitor.box.input_value)


def test_reload(visit, closed_gate):
    far = visit(late=400)
    far.type("Good morning.")
    far.await_answers(1)
    wait_until(lambda: "you said: " in str(far.stored()))
    far.reload()
    closed_gate.gate.set()
    wait_until(lambda: far.answers()[-1:] == ["you said: Good morning.!"])
    far.settle()
    rows = far.rows()
    far.reload()
    far.wait_for_rows(rows)
