"""Going on with a cut answer, paging through answers, and how full the context is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.browser import Visitor
from tests.ui.test_page_accessible import findings

pytestmark = [pytest.mark.slow, pytest.mark.browser]
QUESTION = "Why is the sky blue?"


@pytest.mark.parametrize("width", [1440, 390])
def test_an_answer_goes_on_and_a_retry_keeps_the_former_one(visit: Callable[..., Visitor], width: int) -> None:
    visitor = visit(width, 844)
    page = visitor.page

    def press(name: str) -> None:
        page.get_by_role("button", name=name, exact=True).click()

    visitor.pick("pirate")
    half = visitor.ask(QUESTION)
    whole = visitor.answering(lambda: press("Continue"))
    assert whole.startswith(half) and whole != half and "32 tokens" in visitor.stats()
    visitor.set("Max tokens", 32)
    assert visitor.answering(visitor.button("Retry").click) == whole
    if width == 390:
        page.locator("#chip").click()  # the strength is in the sheet
    visitor.set("Strength", 0)
    page.keyboard.press("Escape")
    plain = visitor.answering(visitor.button("Retry").click)
    assert plain != whole and visitor.stats().startswith("pirate · strength 0")
    press("‹")
    page.get_by_role("button", name="2/3", exact=True).wait_for()
    assert visitor.answers() == [whole] and visitor.stats().startswith("pirate · strength 1")
    assert findings(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#context").inner_text() == "", "hardly any of the context is used"
    visitor.reload()
    page.get_by_role("button", name="2/3", exact=True).wait_for()
    press("›")
    page.get_by_role("button", name="3/3", exact=True).wait_for()
    assert visitor.answers() == [plain]


def test_how_full_the_context_is_is_told_from_half_of_it_on(visit: Callable[..., Visitor]) -> None:
    page = visit().page
    script = """log => window.chatPage.contextLine([{metadata: {log}}, {}], ["TOKENS", "TOKENS of LENGTH!"])"""
    shown = [page.evaluate(script, f'{{"context_tokens": {n}, "context_length": 8192}}') for n in (9, 5000, 7000)]
    assert shown == ["", '<span class="">5,000</span>', '<span class="full">7,000 of 8,192!</span>']
    assert page.evaluate(script, "x") == ""
