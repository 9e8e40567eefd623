"""The message box in Chromium over a fake engine: pictures, what is refused, the keyboard, the picker."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import pytest

from adapter.ui.texts import page as texts
from tests.app_process import wait_until
from tests.browser import PHOTOGRAPHS, Visitor
from tests.fake_engine import FakeCard
from tests.ui.fake_page import CATALOG, runs_folder, url

__all__ = ["runs_folder", "url"]  # fixtures
pytestmark = [pytest.mark.slow, pytest.mark.browser]
PASTE = """data => {
    const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
    const clipboardData = new DataTransfer();
    clipboardData.items.add(new File([bytes], 'logo.png', {type: 'image/png'}));
    const pasted = new ClipboardEvent('paste', {clipboardData, bubbles: true});
    document.querySelector('#box textarea').dispatchEvent(pasted);
}"""
FOCUSED = "() => document.activeElement.matches('#box textarea')"


def drop(visitor: Visitor, target: str, *files: Path, text: str = "") -> None:
    """Drops files or a text as a hand does: what the page does not take, the browser opens."""
    visitor.page.locator(target).scroll_into_view_if_needed()
    place = visitor.page.locator(target).bounding_box()
    at = {"x": place["x"] + place["width"] / 2, "y": place["y"] + place["height"] / 2}
    items = [{"mimeType": "text/plain", "data": text}] if text else []
    data = {"items": items, "files": [str(file) for file in files], "dragOperationsMask": 1}
    hand = visitor.context.new_cdp_session(visitor.page)
    for kind in ("dragEnter", "dragOver", "drop"):
        hand.send("Input.dispatchDragEvent", {"type": kind, **at, "data": data})


def test_a_picture_dropped_anywhere_or_pasted_lands_in_the_message(
    visit: Callable[..., Visitor], tmp_path: Path
) -> None:
    visitor = visit()
    page, picture = visitor.page, visitor.page.locator("#box .thumbnail-item")
    data = base64.b64encode((PHOTOGRAPHS / "logo.png").read_bytes()).decode()
    for target in ("#chat", "#picker", "h1", "#box .full-container", ""):
        if target:
            drop(visitor, target, PHOTOGRAPHS / "cheetah1.jpg")
        else:
            page.evaluate(PASTE, data)
        picture.wait_for()
        picture.locator(".delete-button").click()
        picture.wait_for(state="hidden")
    drop(visitor, "#chat", PHOTOGRAPHS / "cheetah1.jpg", PHOTOGRAPHS / "logo.png")
    assert texts.ONE_PICTURE in visitor.toast()
    picture.wait_for()
    assert picture.count() == 1
    notes = tmp_path / "notes.txt"
    notes.write_text("hello")
    drop(visitor, "#chat", notes)
    assert texts.NO_PICTURE in visitor.toast()
    drop(visitor, "#chat", text="Words from elsewhere")
    wait_until(lambda: visitor.box.input_value() == "Words from elsewhere")
    page.get_by_role("tab", name="Train").click()
    page.locator("#train-start").wait_for()
    drop(visitor, "#train-run", PHOTOGRAPHS / "logo.png")
    picture.wait_for()
    page.get_by_role("tab", name="Compare").click()
    drop(visitor, "h1", PHOTOGRAPHS / "logo.png")
    page.locator(".box:visible .thumbnail-item").wait_for()
    assert len(visitor.context.pages) == 1 and visitor.complaints == []


def test_keyboard(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    page, keyboard = visitor.page, visitor.page.keyboard
    # Three Tab stops from the top; the tabs are one, and arrows choose.
    page.evaluate("() => document.activeElement.blur()")
    page.locator("h1").click()
    for _ in range(3):
        keyboard.press("Tab")
    assert page.evaluate(FOCUSED)
    keyboard.press("Shift+Tab")
    keyboard.press("Shift+Tab")
    keyboard.press("ArrowRight")
    page.get_by_role("tab", name="Compare", selected=True).wait_for()
    keyboard.press("ArrowLeft")
    visitor.box.wait_for()
    # A group of radios is one stop too.
    page.locator("#picker input:checked").focus()
    keyboard.press("ArrowDown")
    wait_until(lambda: visitor.picked == "poet")
    keyboard.press("Tab")
    assert page.evaluate("() => !document.activeElement.closest('#picker')")
    # / and ? act everywhere but where one writes.
    page.locator("#picker input:checked").focus()
    keyboard.press("/")
    assert page.evaluate(FOCUSED)
    keyboard.type("/?")
    assert visitor.box.input_value() == "/?" and not page.locator("#keys dialog").is_visible()
    visitor.box.fill("")
    page.locator("#picker input:checked").focus()
    keyboard.press("?")
    page.locator("#keys dialog").wait_for()
    keyboard.press("Escape")
    page.locator("#keys dialog").wait_for(state="hidden")
    # An edit: Esc puts the message back, Enter sends it.
    visitor.pick("")
    visitor.ask("Good morning.")
    edit = visitor.edit("Good night.")
    edit.press("Escape")
    edit.wait_for(state="hidden")
    assert visitor.rows()[0] == "Good morning."
    visitor.edit("Good").press("Shift+Enter")
    keyboard.type("night.")
    assert edit.input_value() == "Good\nnight."
    assert visitor.answering(lambda: edit.press("Enter"))
    assert visitor.rows()[0].split() == ["Good", "night."]


def test_a_chip_opens_the_picker_as_a_sheet_on_a_phone(
    visit: Callable[..., Visitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    visitor = visit(390, 844)
    page, chip, panel = visitor.page, visitor.page.locator("#chip"), visitor.page.locator("#adapter-panel")
    assert not panel.is_visible() and chip.inner_text() == "No adapter"
    visitor.pick("poet")
    page.get_by_label("number input for Strength").fill("0.5")
    wait_until(lambda: chip.inner_text() == "poet · strength 0.5")
    assert not page.locator("#find-adapter").is_visible()
    for number in range(7):
        monkeypatch.setitem(CATALOG.cards, f"parrot-{number}", FakeCard(f"parrot-{number}"))
    page.locator("#find-adapter").wait_for()
    page.locator("#find-adapter textarea").fill("PARROT-2")
    shown = page.locator("#picker label:visible")
    wait_until(lambda: [card.split("\n")[0] for card in shown.all_inner_texts()] == ["parrot-2", "poet"])
    page.keyboard.press("Escape")
    panel.wait_for(state="hidden")
    assert page.evaluate("() => document.activeElement.id") == "chip"
    assert visitor.ask("Good morning.") and visitor.stats().startswith("poet · strength 0.5")


def test_what_is_refused_is_a_toast_and_the_conversation_stays(
    visit: Callable[..., Visitor], tmp_path: Path
) -> None:
    visitor = visit()
    visitor.ask("Good morning.")
    before = visitor.rows()
    renamed = tmp_path / "cat.png"
    renamed.write_text("not a picture")
    visitor.attach(renamed)
    visitor.type("What is this?")
    said = visitor.toast()
    assert "picture" in said and str(tmp_path) not in said and "Traceback" not in said
    wait_until(lambda: visitor.rows() == before and visitor.box.input_value() == "What is this?")
    visitor.type("x" * 100_000)
    assert "100,000" in visitor.toast()
    wait_until(lambda: visitor.rows() == before and len(visitor.box.input_value()) == 100_000)
    visitor.type("")
    assert "Type a message" in visitor.toast()
    assert visitor.ask("And good night.") and len(visitor.answers()) == 2
