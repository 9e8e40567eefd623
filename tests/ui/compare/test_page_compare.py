"""The comparison in a real browser, on the real embedded base with the shipped adapters."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.app_process import AppProcess
from tests.browser import PHOTOGRAPHS, Visitor, findings

pytestmark = [pytest.mark.slow, pytest.mark.browser]
FOOTER = re.compile(r"(frozen base|\w+ · strength [\d.]+) · \d+ tokens? · [\d.]+ tokens/s")


class CompareVisitor:
    """A visitor on the Compare tab, adapters side by side. Greedy, and short unless a test says otherwise."""

    def __init__(self, visitor: Visitor, tokens: int = 24) -> None:
        self.visitor, self.page = visitor, visitor.page
        self.page.get_by_role("tab", name="Compare").click()
        self.tab, self.box = self.page.locator("#compare"), self.page.locator("#message textarea")
        self.tab.get_by_label("Side by side").check()
        self.tab.get_by_role("button", name="Sampling").click()
        self.set("Temperature", 0)
        self.set("Max tokens", tokens)

    def set(self, label: str, value: float) -> None:
        self.visitor.set(label, value, self.tab)

    def choose(self, pane: int, name: str) -> None:
        self.tab.get_by_label(f"Pane {pane}", exact=True).click()
        self.page.get_by_role("option", name=name).click()
        self.page.get_by_role("option").first.wait_for(state="detached")  # the list fades out

    def send(self, text: str) -> None:
        self.box.fill(text)
        self.box.press("Enter")
        self.page.locator("#panes .stats").first.wait_for()

    def settle(self) -> list[str]:
        """Wait for the end and return the panes' words."""
        self.page.locator("#message .stop-button").wait_for(state="hidden")
        self.page.locator("#message .submit-button").wait_for()
        return self.page.locator("#panes .answer-text").all_inner_texts()

    def footers(self) -> list[str]:
        return self.page.locator("#panes .stats").all_inner_texts()


def test_base_and_pirate_side_by_side(visit: Callable[..., Visitor]) -> None:
    comparer = CompareVisitor(visit())
    comparer.choose(2, "pirate")
    comparer.send("Why is the sky blue?")
    base, pirate = comparer.settle()
    assert base != pirate
    assert all(FOOTER.match(footer) for footer in comparer.footers())
    assert comparer.footers()[1].startswith("pirate · strength 1 ·")
    assert comparer.page.locator("#panes .pane").nth(1).locator("mark").count() > 0
    comparer.set("Pane 2 strength", 0)  # strength 0 is the frozen base
    comparer.send("Why is the sky blue?")
    comparer.page.get_by_text("word for word as in pane 1").wait_for()
    assert comparer.settle() == [base, base]


def test_esc_ends_all_panes_and_a_picture_goes_to_who_sees(
    visit: Callable[..., Visitor], real_page: AppProcess
) -> None:
    comparer = CompareVisitor(visit(), tokens=512)
    comparer.tab.locator("#count").get_by_text("3").click()
    for pane in (2, 3):
        comparer.choose(pane, "Frozen base")
    with real_page.steps_of(0.1):
        comparer.send("Tell me a very long story about a dragon, in many chapters.")
        comparer.page.keyboard.press("Escape")
        texts = comparer.settle()
    assert len(texts) == 3 and all("stopped" in footer for footer in comparer.footers())
    comparer.set("Max tokens", 16)
    comparer.page.locator("#message input[type=file]").set_input_files(PHOTOGRAPHS / "cheetah1.jpg")
    comparer.page.locator("#message .thumbnail-item").wait_for()
    comparer.choose(3, "see")
    comparer.send("What is in this picture?")
    comparer.page.get_by_text("picture not used").nth(1).wait_for()
    comparer.page.get_by_text("not in pane 1").wait_for()
    seen = comparer.settle()[2]
    assert re.search("cheetah|leopard|cat", seen, re.IGNORECASE) and "dragon" not in seen


def shown_frame(visitor: Visitor, strength: float) -> str:
    """Move the slider of the film, and wait for the words at that strength."""
    film: Any = visitor.page.locator("#film")
    visitor.set("Shown strength", strength, film)
    frame = film.locator(".frame:visible")
    frame.filter(has_text=f"strength {strength:g} ").wait_for()
    return frame.locator(".answer-text").inner_text()


def test_the_filmstrip_of_an_example_and_of_an_answer(visit: Callable[..., Visitor]) -> None:
    visitor = visit(390, 844)
    page, film = visitor.page, visitor.page.locator("#film")
    visitor.pick("pirate")
    page.keyboard.press("Escape")
    answer = visitor.ask("How does a boat float?")
    page.get_by_role("tab", name="Compare").click()
    assert "Ahoy" in film.locator(".frame:visible").inner_text(), "an example is there at once"
    example = [shown_frame(visitor, strength) for strength in (0, 0.5, 1, 1.5, 2)]
    assert "Rayleigh" in example[0] and len(set(example)) == 5
    assert film.locator(".frame:visible mark").count() > 0
    assert findings(page) == []
    page.get_by_role("tab", name="Chat").click()
    page.get_by_role("button", name="Show at five strengths").click()
    film.get_by_text("as recorded").wait_for(state="detached")
    film.get_by_text("words not at strength").first.wait_for(state="attached")
    assert page.locator("#message textarea").input_value() == "How does a boat float?"
    assert shown_frame(visitor, 1) == answer != shown_frame(visitor, 0)
    slider = film.get_by_role("slider")
    slider.focus()
    slider.press("End")
    film.locator(".frame:visible").filter(has_text="strength 2 ").wait_for()
    page.get_by_role("tab", name="Chat").click()
    assert visitor.answers() == [answer], "the conversation stays as it is"
