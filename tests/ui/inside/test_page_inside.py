"""The panel Inside in a real browser, on the real embedded base with the shipped adapters."""

import re
from collections.abc import Callable

import pytest

from adapter.ui.texts import page as texts
from tests.app_process import wait_until
from tests.browser import PHOTOGRAPHS, Visitor, findings

pytestmark = [pytest.mark.slow, pytest.mark.browser]
NUMBERS = re.compile(r"influence \S+( · grounding \S+)? · log p \S+")


class InsideVisitor:
    """A visitor with the panel."""

    def __init__(self, visitor: Visitor) -> None:
        self.visitor, self.page = visitor, visitor.page
        self.panel = self.page.locator("#inside")

    def toggle(self) -> None:
        self.page.locator("#inside-open").click()

    def wait_for_charts(self, answer: str) -> None:
        """Wait until the panel shows the charts of this answer."""
        wait_until(lambda: self.words() == answer.split(), self.words)
        self.panel.locator("#inside-message .remark").wait_for(state="detached")

    def words(self) -> list[str]:
        return "".join(self.panel.locator(".tokens button").all_inner_texts()).removesuffix("end").split()


@pytest.fixture
def inside(visit: Callable[..., Visitor]) -> InsideVisitor:
    return InsideVisitor(visit())


def test_a_photograph_is_inspected(inside):
    visitor, panel = inside.visitor, inside.panel
    visitor.pick("see")
    answer = visitor.ask_about(PHOTOGRAPHS / "cheetah1.jpg", "What is in this picture?")
    assert panel.locator(".gates").count() == 0
    inside.toggle()
    inside.wait_for_charts(answer)
    assert panel.locator(".gates td").count() == 30 * 9
    # A token, by mouse and by keyboard.
    panel.locator(".tokens button", has_text="che").first.click()
    panel.locator(".token").wait_for()
    assert "che" in panel.locator(".token .word").inner_text()
    assert NUMBERS.search(panel.locator(".token").inner_text())
    assert panel.locator(".token td").count() == 30 * 25
    visitor.page.keyboard.press("Home")
    visitor.page.keyboard.press("Enter")
    first = panel.locator(".tokens button").first
    panel.locator(".token .word", has_text=first.inner_text().strip()).wait_for()
    # A value on hover, and with the arrow keys.
    cell = panel.locator(".gates tr").nth(5).locator("td").nth(3)
    assert cell.evaluate("cell => getComputedStyle(cell).backgroundColor") != "rgba(0, 0, 0, 0)"
    cell.hover()
    panel.locator(".gates .readout", has_text=f"Layer 4, head 3: {cell.inner_text()}").wait_for()
    cell.focus()
    visitor.page.keyboard.press("ArrowDown")
    panel.locator(".gates .readout", has_text="Layer 5, head 3: ").wait_for()
    # On a phone it is a sheet below.
    visitor.page.set_viewport_size({"width": 390, "height": 844})
    visitor.page.wait_for_function("() => document.documentElement.scrollWidth <= 390")
    assert findings(visitor.page, "#inside") == []
    visitor.page.set_viewport_size({"width": 1440, "height": 900})
    # A reload loses nothing.
    inside.toggle()
    answer = visitor.ask("Which animal?")
    visitor.reload()
    visitor.page.locator("#chat .stats").last.wait_for()
    inside.toggle()
    inside.wait_for_charts(answer)


COLOURED = "() => [...CSS.highlights].filter(([name, words]) => name !== 'xray-seen' && words.size).length"
A_WORD = """() => {
    const box = [...CSS.highlights.get('xray-above-4')][0].getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2];
}"""


def test_an_answer_is_coloured_while_it_is_written_and_later(visit):
    visitor = visit()
    page, switch = visitor.page, visitor.page.locator("#xray-switch input")
    visitor.pick("pirate")
    plain = visitor.ask("Why is the sky blue?")
    page.wait_for_function(COLOURED)
    switch.uncheck()
    page.wait_for_function(f"() => ({COLOURED})() === 0")
    visitor.reload()  # it stays off, until it is on again
    visitor.button("Retry").wait_for()
    assert not switch.is_checked() and visitor.answering(visitor.button("Retry").click) == plain
    assert page.evaluate(COLOURED) == 0
    switch.check()
    page.wait_for_function(COLOURED)  # the answer is read once more
    assert visitor.answering(visitor.button("Retry").click) == plain
    page.wait_for_function(f"() => ({COLOURED})() > 2")
    # What the base would have said: by mouse and by keyboard.
    card = page.locator("#xray-card")
    assert not card.is_visible()
    wait_until(lambda: page.mouse.move(*page.evaluate(A_WORD)) or card.is_visible())
    assert re.search(r"With the adapter [\d.]+ %, without (< )?[\d.]+ %", card.inner_text())
    assert card.locator(".lists > div").count() == 2 and card.locator("p.top").count() >= 5
    page.mouse.move(0, 0)
    card.wait_for(state="hidden")
    page.locator('#chat [data-testid="bot"][tabindex]').last.focus()
    page.keyboard.press("ArrowRight")
    assert plain.startswith(card.locator(".word").inner_text())
    page.keyboard.press("Escape")
    card.wait_for(state="hidden")
    # Another word begins a branch, with the keyboard; the answers before stay.
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    word = page.evaluate("() => document.activeElement.textContent")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="4/4").wait_for()
    wait_until(lambda: visitor.answers()[-1] != plain)
    assert word.strip() in visitor.settle()
    page.wait_for_function(f"() => ({COLOURED})() > 2")  # it is read once more
    # What is pressed in a card whose answer is not the newest any more changes nothing.
    wait_until(lambda: page.mouse.move(*page.evaluate(A_WORD)) or card.locator("button").count())
    stale = card.locator("button").first.element_handle()
    newest = visitor.ask("And at night?")
    stale.evaluate("button => button.click()")
    visitor.ask("Who are you?")
    assert visitor.answers()[-2] == newest and page.get_by_role("button", name="2/2").count() == 0


def test_gates_are_painted_and_the_answer_is_written_beside(inside):
    visitor, panel, page = inside.visitor, inside.panel, inside.page
    visitor.pick("pirate")
    original = visitor.ask("Why is the sky blue?")
    inside.toggle()
    inside.wait_for_charts(original)
    rewritten = panel.locator(".rewritten .answer-text")
    assert rewritten.count() == 0
    # Dragged from one corner to the other, all gates on the way are shut.
    cells = panel.locator(".gates td")
    cells.nth(268).scroll_into_view_if_needed()
    cells.nth(252).hover()
    page.mouse.down()
    cells.nth(260).hover()
    cells.nth(269).hover()
    page.mouse.up()
    assert panel.locator("td.shut").count() >= 3
    rewritten.wait_for()
    panel.get_by_role("radio", name="amplify").check()
    cells.nth(0).focus()
    page.keyboard.press("Enter")
    assert panel.locator("td.loud").count() == 1
    assert visitor.answers()[-1] == original, "the conversation is what it was"
    # Another answer has its own gates.
    newest = visitor.ask("And the sea?")
    rewritten.wait_for(state="detached")
    panel.locator("td.shut").first.wait_for(state="detached")
    inside.wait_for_charts(newest)
    # Where it has read other words, it has other charts.
    key = panel.locator(".tokens").get_attribute("data-key")
    page.locator(f'#chat [title="{texts.SAY_IT_LIKE_THIS}"]').first.click()
    page.locator("#chat textarea.edit-textarea").fill("Arr! Because.")
    page.keyboard.press("Enter")
    wait_until(lambda: panel.locator(".tokens").get_attribute("data-key") not in (key, None))
