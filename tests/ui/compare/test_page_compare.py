"""The comparison in a real browser, on the real embedded base with the shipped adapters."""

import re
from typing import Any

import pytest

from tests.app_process import wait_until
from tests.browser import Visitor

pytestmark = [pytest.mark.slow, pytest.mark.browser]
FOOTER = re.compile(r"(frozen base|\w+ · strength [\d.]+) · \d+ tokens? · [\d.]+ tokens/s")


def test_base_and_pirate_side_by_side(visit):
    visitor = visit()
    page, tab = visitor.page, visitor.page.locator("#compare")
    page.get_by_role("tab", name="Compare").click()
    tab.get_by_label("Side by side").check()
    tab.get_by_role("button", name="Sampling").click()
    visitor.set("Temperature", 0, tab)
    visitor.set("Max tokens", 24, tab)
    tab.get_by_label("Pane 2", exact=True).click()
    page.get_by_role("option", name="pirate").click()
    page.get_by_role("option").first.wait_for(state="detached")  # the list fades out

    def send(until: Any) -> list[str]:
        """The panes' words, complete."""
        page.locator("#message textarea").fill("Why is the sky blue?")
        page.locator("#message textarea").press("Enter")
        until.wait_for()
        page.locator("#message .stop-button").wait_for(state="hidden")
        page.locator("#message .submit-button").wait_for()
        return page.locator("#answers .answer-text").all_inner_texts()

    base, pirate = send(page.locator("#answers .stats").first)
    footers = page.locator("#answers .stats").all_inner_texts()
    assert base != pirate and all(FOOTER.match(footer) for footer in footers)
    assert footers[1].startswith("pirate · strength 1 ·")
    assert page.locator("#answers .panes > div").nth(1).locator("mark").count() > 0
    visitor.set("Pane 2 strength", 0, tab)  # strength 0 is the frozen base
    assert send(page.get_by_text("word for word as in pane 1")) == [base, base]


def shown_frame(visitor: Visitor, strength: float) -> str:
    """Move the slider of the film, and wait for the words at that strength."""
    film: Any = visitor.page.locator("#compare")
    visitor.set("Shown strength", strength, film)
    frame = film.locator(".strip > div:visible")
    frame.filter(has_text=f"strength {strength:g} ").wait_for()
    return frame.locator(".answer-text").inner_text()


def test_the_filmstrip_of_an_answer(visit):
    visitor = visit(390, 844)
    page, film = visitor.page, visitor.page.locator("#answers")
    visitor.pick("pirate")
    answer = visitor.ask("How does a boat float?")
    page.get_by_role("button", name="Show at five strengths").click()
    film.get_by_text("words not as at strength").first.wait_for(state="attached")
    assert page.locator("#message textarea").input_value() == "How does a boat float?"
    assert shown_frame(visitor, 1) == answer != shown_frame(visitor, 0)
    page.get_by_role("tab", name="Chat").click()
    wait_until(lambda: visitor.answers() == [answer], visitor.rows)  # the conversation stays as it is
