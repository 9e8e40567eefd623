"""Going on with a cut answer and paging through answers, in a real browser on the real base."""

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
    visitor.set("Strength", 0)
    plain = visitor.answering(visitor.button("Retry").click)
    assert plain != whole and visitor.stats().startswith("pirate · strength 0")
    press("‹")
    page.get_by_role("button", name="2/3", exact=True).wait_for()
    assert visitor.answers() == [whole] and visitor.stats().startswith("pirate · strength 1")
    assert findings(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    visitor.reload()
    page.get_by_role("button", name="2/3", exact=True).wait_for()
    press("›")
    page.get_by_role("button", name="3/3", exact=True).wait_for()
    assert visitor.answers() == [plain]
