"""Going on with a cut answer, paging through answers, how full the context is, and the strip of running rows."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.app_process import wait_until
from tests.browser import Visitor
from tests.ui.test_page_accessible import findings

pytestmark = [pytest.mark.slow, pytest.mark.browser]
QUESTION = "Why is the sky blue?"
SEE_CELL = """() => {
  const see = () => { window.cell ??= document.querySelector(".room .cell")?.innerText; };
  new MutationObserver(see).observe(document.body, {childList: true, subtree: true});
}"""


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
    tokens = re.fullmatch(r"(\d+) of 8,192 tokens of context", page.locator("#context").inner_text())
    assert tokens and 32 < int(tokens[1]) < 100
    visitor.reload()
    page.get_by_role("button", name="2/3", exact=True).wait_for()
    press("›")
    page.get_by_role("button", name="3/3", exact=True).wait_for()
    assert visitor.answers() == [plain]


def test_the_room_shows_the_row_and_a_full_context_is_told(visit: Callable[..., Visitor]) -> None:
    visitor = visit(390, 844)
    page = visitor.page
    visitor.set("Max tokens", 1024)
    page.evaluate(SEE_CELL)

    def cell() -> str:
        """What the strip showed while an answer was written. It looks every five seconds where nothing runs."""
        visitor.ask("Tell me a very long story about a dragon, in many chapters.")
        return page.evaluate("window.cell ?? ''")

    assert re.match(r"frozen base\s+\d", wait_until(cell))
    page.locator(".room .cell").wait_for(state="detached")
    assert "one base of" in page.locator(".room").inner_text() and findings(page) == []
    script = """log => window.chatPage.contextLine([{metadata: {log}}, {}], ["TOKENS", "TOKENS of LENGTH!"])"""
    shown = [page.evaluate(script, log) for log in ("x", '{"context_tokens": 7000, "context_length": 8192}')]
    assert shown == ["", '<span class="full">7,000 of 8,192!</span>']
