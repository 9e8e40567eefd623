"""The message box in Chromium over a fake engine: pictures, what is refused, the keyboard."""

import base64
from pathlib import Path

import pytest

from adapter.ui.texts import page as texts
from tests.app_process import wait_until
from tests.browser import PHOTOGRAPHS, Visitor
from tests.ui.fake_page import url

__all__ = ["url"]  # fixtures
pytestmark = [pytest.mark.slow, pytest.mark.browser]
PASTE = """([data, text]) => {
    const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
    const clipboardData = new DataTransfer();
    clipboardData.items.add(new File([bytes], 'logo.png', {type: 'image/png'}));
    if (text) clipboardData.setData('text/plain', text);
    const field = document.querySelector('#box textarea');
    const pasted = new ClipboardEvent('paste', {clipboardData, bubbles: true});
    let taken = false;
    field.addEventListener('paste', () => (taken = true), {once: true});
    field.dispatchEvent(pasted);
    return taken;
}"""
FOCUSED = "() => document.activeElement.matches('#box textarea')"


def drop(visitor: Visitor, target: str, *files: Path) -> None:
    """Drops files as a hand does: what the page does not take, the browser opens."""
    visitor.page.locator(target).scroll_into_view_if_needed()
    place = visitor.page.locator(target).bounding_box()
    at = {"x": place["x"] + place["width"] / 2, "y": place["y"] + place["height"] / 2}
    data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
    hand = visitor.context.new_cdp_session(visitor.page)
    for kind in ("dragEnter", "dragOver", "drop"):
        hand.send("Input.dispatchDragEvent", {"type": kind, **at, "data": data})


def test_a_picture_dropped_anywhere_or_pasted_lands_in_the_message(visit, tmp_path):
    visitor = visit()
    page, picture = visitor.page, visitor.page.locator("#box .thumbnail-item")
    logo = base64.b64encode((PHOTOGRAPHS / "logo.png").read_bytes()).decode()
    assert not page.evaluate(PASTE, [logo, "cells of a table"]), (
        "the browser writes the text, and Gradio takes nothing"
    )
    assert page.evaluate(PASTE, [logo, ""])
    picture.wait_for()
    picture.locator(".delete-button").click()
    picture.wait_for(state="hidden")
    drop(visitor, "#chat", PHOTOGRAPHS / "cheetah1.jpg", PHOTOGRAPHS / "logo.png")
    assert texts.ONE_PICTURE in visitor.toast()
    picture.wait_for()
    assert picture.count() == 1
    notes = tmp_path / "notes.txt"
    notes.write_text("hello")
    drop(visitor, "#who", notes)
    assert texts.NO_PICTURE in visitor.toast()
    page.get_by_role("tab", name="Compare").click()
    drop(visitor, "h1", PHOTOGRAPHS / "logo.png")
    page.locator(".box:visible .thumbnail-item").wait_for()
    assert len(visitor.context.pages) == 1 and visitor.complaints == []


# The Enter that ends a composition, as Safari sends it.
COMPOSED = """field => field.dispatchEvent(
    new KeyboardEvent("keydown", { key: "Enter", keyCode: 229, bubbles: true, cancelable: true }))"""


def test_keyboard(visit):
    visitor = visit(locale="ru-RU")  # in which Gradio names its buttons
    page, keyboard = visitor.page, visitor.page.keyboard
    assert page.evaluate("() => document.body.lang") == "en", "and the page its words"
    # A group of radios is one Tab stop.
    page.locator("#picker input:checked").focus()
    keyboard.press("ArrowDown")
    wait_until(lambda: visitor.picked == "poet")
    keyboard.press("Tab")
    assert page.evaluate("() => !document.activeElement.closest('#picker')")
    # / acts everywhere but where one writes.
    page.locator("#picker input:checked").focus()
    keyboard.press("/")
    assert page.evaluate(FOCUSED)
    keyboard.type("/")
    assert visitor.box.input_value() == "/"
    visitor.box.fill("")
    # The drawer is closed by Esc, and its button has the focus again.
    visitor.open_drawer()
    page.get_by_role("button", name="Sampling").focus()
    keyboard.press("Escape")
    page.locator("#more > .label-wrap:focus:not(.open)").wait_for()
    # An edit: Esc puts the message back, Enter sends it.
    visitor.ask("Good morning.")
    edit = visitor.edit("Good night.")
    edit.press("Escape")
    edit.wait_for(state="hidden")
    assert visitor.rows()[0] == "Good morning."
    edit = visitor.edit("Good night.")
    edit.evaluate(COMPOSED)
    assert edit.is_visible()
    assert visitor.answering(lambda: edit.press("Enter"))
    assert visitor.rows()[0] == "Good night."


PLACE = """() => {
    const wrap = document.querySelector('#chat .bubble-wrap');
    return [wrap.scrollTop, wrap.scrollHeight - wrap.clientHeight].map(Math.round);
}"""


def test_who_reads_further_up_stays_there_until_the_end_is_asked_for(visit):
    visitor = visit(390, 600)
    page = visitor.page

    def read_up() -> None:
        wait_until(lambda: len({*page.evaluate(PLACE)}) == 1)
        page.mouse.move(195, 150)
        page.mouse.wheel(0, -250)
        wait_until(lambda: len({*page.evaluate(PLACE)}) == 2)

    for number in range(3):
        visitor.ask(f"{number} " + "word " * 80)
    read_up()
    page.evaluate(
        "() => { const w = document.querySelector('#chat .bubble-wrap'); w.scrollTo(0, w.scrollHeight); }"
    )
    assert len({*page.evaluate(PLACE)}) == 2, "as Gradio scrolls some time after each piece of an answer"
    page.mouse.wheel(0, 5000)
    read_up()
    page.evaluate("() => (window.requestAnimationFrame = (act) => setTimeout(act, 2000))")  # a slow page
    visitor.ask("And now?")
    wait_until(lambda: len({*page.evaluate(PLACE)}) == 1)
