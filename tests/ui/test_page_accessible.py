"""The page for everybody, over a fake engine: axe-core's rules on every tab, the keyboard, motion, and a phone."""

import pytest

from tests.app_process import wait_until
from tests.browser import findings
from tests.ui.fake_page import url

__all__ = ["url"]  # fixtures
pytestmark = [pytest.mark.slow, pytest.mark.browser]
pytest.importorskip("axe_playwright_python.sync_playwright")


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_no_serious_findings_and_no_scrolling_aside_on_any_tab(visit, width, scheme):
    visitor = visit(width, 844)
    page = visitor.page
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.wait_for_function("dark => document.body.classList.contains('dark') === dark", arg=scheme == "dark")
    found = {"empty chat": findings(page)}
    page.get_by_label("What is this animal?").click()
    visitor.await_answers(1)
    visitor.settle()
    visitor.ask("Say " + "averyverylongword" * 12)
    assert visitor.box.evaluate("e => e.clientHeight") < 60, "it has shrunk, though nothing may move"
    said = page.locator("#said[aria-live=polite]")  # once, where the log would be read anew with each word
    wait_until(lambda: said.inner_text() == visitor.answers()[-1])
    assert page.locator(".bubble-wrap[aria-live=off]").count() == 1
    for tab in ("Chat", "Compare", "Train"):
        page.get_by_role("tab", name=tab).click()
        for button in page.locator("button.label-wrap:visible").all():
            if "open" not in (button.get_attribute("class") or ""):
                button.click()
        found[tab] = findings(page)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width, tab
    page.get_by_role("tab", name="Compare").click()
    page.get_by_label("Side by side").check()
    found["side by side"] = findings(page)
    one, other = (pane.bounding_box() for pane in page.locator("#panes .pane").all()[:2])
    assert (one["y"] < other["y"]) == (width == 390), "side by side, on a phone one below the other"
    assert not any(found.values()), "\n".join(line for lines in found.values() for line in lines)


def test_every_button_has_a_name_and_24_pixels_and_tab_reaches_the_box(visit):
    page = visit(390, 844).page
    for button in page.get_by_role("button").all():
        name = button.inner_text().strip() or button.get_attribute("aria-label") or button.get_attribute("title")
        assert name, button.evaluate("e => e.outerHTML")
    size = "b => { const { width, height } = b.getBoundingClientRect(); return Math.min(width, height); }"
    for button in page.locator("button:visible").all():
        assert button.evaluate(size) >= 24, button.evaluate("e => e.outerHTML")
    box = page.locator("#dock")
    assert page.get_by_role("textbox", name="Message", exact=True).is_visible()
    page.get_by_role("tab", name="Chat").focus()
    unfocused = box.screenshot()  # without the caret, which Playwright hides
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("() => document.activeElement.matches('#box textarea')"):
            break
    else:
        pytest.fail("thirty tabs from the top do not reach the message box")
    wait_until(lambda: box.screenshot() != unfocused, lambda: "nobody sees where the focus is")
    # Reduced motion stops animations, as while the model is being loaded.
    moving = """() => [...document.querySelectorAll('*')].filter(e => {
        const style = getComputedStyle(e);
        return style.animationName !== 'none' && parseFloat(style.animationDuration) > 0.011
            && style.animationIterationCount === 'infinite' && e.getClientRects().length;
    }).map(e => e.className)"""
    page.evaluate("() => { document.querySelector('.status').className = 'status loading'; }")
    assert page.evaluate(moving) != []
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(moving) == []
