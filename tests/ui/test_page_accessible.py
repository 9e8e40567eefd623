"""The page for everybody: axe-core's rules on every tab in light and dark, the keyboard, and reduced motion."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.browser import Visitor, wait_for_fades

pytestmark = [pytest.mark.slow, pytest.mark.browser]
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
SERIOUS = {"serious", "critical"}


def findings(page: Any, context: str | None = None) -> list[str]:
    """What axe-core calls serious or critical, and headings out of order, everywhere or below `context`."""
    wait_for_fades(page)  # a half faded text has half its contrast
    report = axe.Axe().run(page, context=context).response
    assert len(report["passes"]) > 10, "the rules were not run"
    return [
        f"{rule['id']}: {node['target']} {node['html'][:120]}"
        for rule in report["violations"]
        if rule["impact"] in SERIOUS or rule["id"] == "heading-order"
        for node in rule["nodes"]
    ]


def open_all(page: Any) -> None:
    """Every accordion of the tab that is shown."""
    for button in page.locator("button.label-wrap:visible").all():
        if "open" not in (button.get_attribute("class") or ""):
            button.click()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_findings_on_any_tab(visit: Callable[..., Visitor], scheme: str) -> None:
    visitor = visit()
    page = visitor.page
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.reload()
    page.locator(".status.ready").wait_for()
    found = {"empty chat": findings(page)}
    page.get_by_label("What is this animal?").click()
    visitor.await_answers(1)
    visitor.settle()
    for tab in ("Chat", "Compare", "Train"):
        page.get_by_role("tab", name=tab).click()
        open_all(page)
        found[tab] = findings(page)
    assert not any(found.values()), "\n".join(line for lines in found.values() for line in lines)


def test_every_button_has_a_name_and_24_pixels_and_tab_reaches_the_box(visit: Callable[..., Visitor]) -> None:
    page = visit(390, 844).page
    for button in page.get_by_role("button").all():
        name = button.inner_text().strip() or button.get_attribute("aria-label") or button.get_attribute("title")
        assert name, button.evaluate("e => e.outerHTML")
    size = "b => { const { width, height } = b.getBoundingClientRect(); return Math.min(width, height); }"
    for button in page.locator("button:visible").all():
        assert button.evaluate(size) >= 24, button.evaluate("e => e.outerHTML")
    box = page.locator("#box")
    assert page.get_by_role("textbox", name="Message", exact=True).is_visible()
    page.get_by_role("tab", name="Chat").focus()
    unfocused = box.screenshot()  # without the caret, which Playwright hides
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("() => document.activeElement.matches('#box textarea')"):
            break
    else:
        pytest.fail("thirty tabs from the top do not reach the message box")
    assert box.screenshot() != unfocused, "nobody sees where the focus is"


def test_reduced_motion_stops_animations(visit: Callable[..., Visitor]) -> None:
    page = visit().page
    moving = """() => [...document.querySelectorAll('*')].filter(e => {
        const style = getComputedStyle(e);
        return style.animationName !== 'none' && parseFloat(style.animationDuration) > 0.011
            && style.animationIterationCount === 'infinite' && e.getClientRects().length;
    }).map(e => e.className)"""
    # As while the model is being loaded.
    page.evaluate("() => { document.querySelector('.status').className = 'status loading'; }")
    assert page.evaluate(moving) != []
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(moving) == []
