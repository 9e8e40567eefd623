"""The panel Inside in a real browser, on the real embedded base with the shipped adapters."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.app_process import wait_until
from tests.browser import PHOTOGRAPHS, Visitor, findings

pytestmark = [pytest.mark.slow, pytest.mark.browser]
# The id of the event that inspects an answer.
INSPECT = """() => {
    const {components, dependencies} = window.gradio_config;
    const field = components.find(c => c.props.elem_id === 'inside-request').id;
    return dependencies.find(d => d.backend_fn && d.targets.some(([id]) => id === field)).id;
}"""
NUMBERS = re.compile(r"influence \S+( · grounding \S+)? · log p \S+")


class InsideVisitor:
    """A visitor with the panel, and the inspections that the page has requested."""

    def __init__(self, visitor: Visitor) -> None:
        self.visitor, self.page = visitor, visitor.page
        self.panel = self.page.locator("#inside")
        self.inspections: list[int] = []
        event = self.page.evaluate(INSPECT)

        def record(request: Any) -> None:
            if "/queue/join" in request.url and json.loads(request.post_data)["fn_index"] == event:
                self.inspections.append(event)

        self.page.on("request", record)

    def toggle(self) -> None:
        self.page.locator("#inside-open").click()

    def wait_for_charts(self, inspections: int) -> None:
        """Wait until the panel shows the charts of the last of so many inspections."""
        # Playwright notices requests only while it is asked for something.
        wait_until(lambda: self.page.wait_for_timeout(20) or len(self.inspections) >= inspections)
        self.page.wait_for_function("() => document.querySelector('#inside .gates')")
        self.panel.locator("#inside-message .remark").wait_for(state="detached")
        assert len(self.inspections) == inspections

    def words(self) -> list[str]:
        return "".join(self.panel.locator(".tokens button").all_inner_texts()).replace("end", "").split()


@pytest.fixture
def inside(visit: Callable[..., Visitor]) -> InsideVisitor:
    return InsideVisitor(visit())


def test_a_photograph_is_inspected(inside: InsideVisitor) -> None:
    visitor, panel = inside.visitor, inside.panel
    visitor.pick("see")
    visitor.attach(PHOTOGRAPHS / "cheetah1.jpg")
    answer = visitor.ask("What is in this picture?")
    assert inside.inspections == [] and panel.locator(".gates").count() == 0, "closed, nothing is asked for"
    inside.toggle()
    inside.wait_for_charts(1)
    assert panel.locator(".gates td").count() == 30 * 9 and inside.words() == answer.split()
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
    assert panel.locator('.tokens [aria-pressed="true"], .tokens [tabindex="0"]').count() == 1
    # What the colours mean.
    colours = "all => all.map(e => getComputedStyle(e).backgroundColor).join()"
    seen = set()
    for name, word in (("Influence", "frozen base"), ("Grounding", "picture")):
        panel.get_by_role("radio", name=name).check()
        assert word in panel.locator(".means:visible p").inner_text()
        seen.add(panel.locator(".tokens button").evaluate_all(colours))
    assert len(seen) == 2
    # A value on hover, and with the arrow keys.
    cell = panel.locator(".gates tr").nth(5).locator("td").nth(3)
    cell.hover()
    assert panel.locator(".gates .readout").inner_text() == f"Layer 4, head 3: {cell.inner_text()}"
    cell.focus()
    visitor.page.keyboard.press("ArrowDown")
    assert panel.locator(".gates .readout").inner_text().startswith("Layer 5, head 3: ")
    # On a phone it is a sheet below.
    visitor.page.set_viewport_size({"width": 390, "height": 844})
    assert visitor.page.evaluate("() => document.documentElement.scrollWidth") <= 390
    for scheme in ("dark", "light"):
        visitor.page.evaluate("scheme => document.body.classList.toggle('dark', scheme === 'dark')", scheme)
        assert findings(visitor.page, "#inside") == [], scheme
    visitor.page.set_viewport_size({"width": 1440, "height": 900})
    # A reload loses nothing, and closed again, nothing is asked for.
    inside.toggle()
    visitor.ask("Which animal?")
    visitor.reload()
    visitor.page.locator("#chat .stats").last.wait_for()
    assert len(inside.inspections) == 1
    inside.toggle()
    inside.wait_for_charts(2)
    assert inside.words() == visitor.answers()[-1].split()


COLOURED = "() => [...CSS.highlights].filter(([name, words]) => name !== 'xray-seen' && words.size).length"
A_WORD = """() => {
    const box = [...CSS.highlights.get('xray-above-4')][0].getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2];
}"""


def test_an_answer_is_coloured_while_it_is_written_and_later(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    page, switch = visitor.page, visitor.page.locator("#xray-switch input")
    visitor.pick("pirate")
    plain = visitor.ask("Why is the sky blue?")
    assert page.evaluate(COLOURED) == 0
    switch.check()
    page.wait_for_function(COLOURED)  # the answer is read once more
    switch.uncheck()
    page.wait_for_function(f"() => !({COLOURED})()")
    switch.check()
    assert visitor.answering(visitor.button("Retry").click) == plain
    page.wait_for_function(f"() => ({COLOURED})() > 2")
    # What the base would have said: by mouse and by keyboard.
    card = page.locator("#xray-card")
    assert not card.is_visible()
    page.mouse.move(*page.evaluate(A_WORD))
    card.wait_for()
    assert re.search(r"With the adapter [\d.]+ %, without (< )?[\d.]+ %", card.inner_text())
    assert card.locator(".top").count() == 3
    page.mouse.move(0, 0)
    card.wait_for(state="hidden")
    page.locator('#chat [data-testid="bot"][tabindex]').last.focus()
    page.keyboard.press("ArrowRight")
    first = card.locator(".word").inner_text()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("word => document.querySelector('#xray-card .word').textContent !== word", arg=first)
    assert plain.startswith(first)
    page.evaluate("document.querySelector('#chat .message-wrap').dispatchEvent(new Event('scroll'))")
    assert card.is_visible(), "the chat scrolls while an answer is written"
    page.keyboard.press("Escape")
    card.wait_for(state="hidden")
    # The frozen base has nothing to show.
    visitor.pick("")
    visitor.ask("And the sea?")
    assert page.evaluate("() => document.querySelectorAll('#chat [data-testid=bot][tabindex]').length") == 1
    # A browser without highlights has no error, as of every visitor.
    visitor.context.add_init_script("delete window.Highlight; delete CSS.highlights")
    visitor.reload()
    assert page.evaluate("CSS.highlights === undefined")


def test_gates_are_painted_and_the_answer_is_written_beside(inside: InsideVisitor) -> None:
    visitor, panel, page = inside.visitor, inside.panel, inside.page
    visitor.pick("pirate")
    original = visitor.ask("Why is the sky blue?")
    inside.toggle()
    inside.wait_for_charts(1)
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
    # By keyboard: amplified, then put back.
    for brush, count in (("amplify", 1), ("put back", 0)):
        panel.get_by_role("radio", name=brush).check()
        cells.nth(0).focus()
        page.keyboard.press("Enter")
        assert panel.locator("td.loud").count() == count
    assert visitor.answers()[-1] == original, "the conversation is what it was"
    # Another answer has its own gates.
    visitor.ask("And the sea?")
    rewritten.wait_for(state="detached")
    panel.locator("td.shut").first.wait_for(state="detached")
