"""The message box in Chromium on the real base: pictures dropped anywhere, the keyboard, a server that is gone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapter.serve.store import SHIPPED
from adapter.ui.texts import page as texts
from tests.app_process import app_process, free_port, wait_until
from tests.browser import PHOTOGRAPHS, Visitor

pytestmark = [pytest.mark.slow, pytest.mark.browser]
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


def test_a_picture_dropped_anywhere_lands_in_the_message(visit: Callable[..., Visitor], tmp_path: Path) -> None:
    visitor = visit()
    page, picture = visitor.page, visitor.page.locator("#box .thumbnail-item")
    for target in ("#chat", "#picker", "h1", "#box .full-container"):
        drop(visitor, target, PHOTOGRAPHS / "cheetah1.jpg")
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
    wait_until(lambda: visitor.picked == "extract")
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
    edit = page.locator("#chat textarea.edit-textarea")
    page.locator("#chat .user-row").last.hover()
    visitor.button("Edit").click()
    edit.fill("Good night.")
    edit.press("Escape")
    edit.wait_for(state="hidden")
    assert visitor.rows()[0] == "Good morning."
    visitor.button("Edit").click()
    edit.fill("Good")
    edit.press("Shift+Enter")
    keyboard.type("night.")
    assert edit.input_value() == "Good\nnight."
    assert visitor.answering(lambda: edit.press("Enter"))
    assert visitor.rows()[0].split() == ["Good", "night."]


def test_a_chip_opens_the_picker_as_a_sheet_on_a_phone(visit: Callable[..., Visitor], adapters: Path) -> None:
    visitor = visit(390, 844)
    page, chip, panel = visitor.page, visitor.page.locator("#chip"), visitor.page.locator("#adapter-panel")
    assert not panel.is_visible() and chip.inner_text() == "No adapter"
    visitor.pick("pirate")
    page.get_by_label("number input for Strength").fill("0.5")
    wait_until(lambda: chip.inner_text() == "pirate · strength 0.5")
    assert not page.locator("#find-adapter").is_visible()
    names = [f"parrot-{number}" for number in range(4)]
    for name in names:
        shutil.copytree(SHIPPED / "pirate", adapters / name)
    page.locator("#find-adapter").wait_for()
    page.locator("#find-adapter textarea").fill("PARROT-2")
    shown = page.locator("#picker label:visible")
    wait_until(lambda: [card.split("\n")[0] for card in shown.all_inner_texts()] == ["parrot-2", "pirate"])
    page.keyboard.press("Escape")
    panel.wait_for(state="hidden")
    assert page.evaluate("() => document.activeElement.id") == "chip"
    for name in names:
        shutil.rmtree(adapters / name)
    assert visitor.ask("Good morning.") and visitor.stats().startswith("pirate · strength 0.5")


def test_what_is_mixed_in_does_not_follow_to_another_adapter(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    page, chip = visitor.page, visitor.page.locator("#chip")
    visitor.pick("pirate")
    assert not chip.is_visible(), "the picker shows it"
    page.locator("#mix").get_by_role("button").first.click()
    page.get_by_label("Second adapter").click()
    page.get_by_role("option", name="see").click()
    wait_until(lambda: chip.is_visible() and chip.inner_text().startswith("pirate · strength 1 · with see "))
    visitor.pick("tutor")
    assert texts.not_taken_along("see") in visitor.toast()
    chip.wait_for(state="hidden")
    assert page.get_by_label("Second adapter").input_value() == texts.NO_MIX
    assert visitor.ask("Hello.") and "with see" not in visitor.stats()


def test_an_adapter_that_was_added_here_is_renamed_and_deleted_with_undo(visit: Callable[..., Visitor]) -> None:
    runs = Path(os.environ["LLAMA_ADAPTER_RUNS"])
    shutil.copytree(SHIPPED / "pirate", runs / "macaw")
    visitor = visit()
    page = visitor.page
    visitor.pick("pirate")
    assert not page.locator("#delete-adapter").is_visible()
    visitor.pick("macaw")
    name = page.locator("#own-actions").get_by_label(texts.RENAME)
    wait_until(lambda: name.input_value() == "macaw")
    name.fill("pirate")
    name.press("Enter")
    assert "already" in visitor.toast()
    name.fill("cockatoo")
    name.press("Enter")
    wait_until(lambda: visitor.picked == "cockatoo")
    assert visitor.ask("Hello.") and visitor.stats().startswith("cockatoo")
    page.locator("#delete-adapter").click()
    undo = page.get_by_role("button", name=texts.undo_delete("cockatoo"))
    undo.wait_for()
    assert visitor.picked == "" and not (runs / "cockatoo").exists()
    undo.click()
    wait_until(lambda: visitor.picked == "cockatoo")
    undo.wait_for(state="hidden")
    assert (runs / "cockatoo").is_dir()
    page.goto("about:blank")
    shutil.rmtree(runs / "cockatoo")


def test_a_server_that_is_gone_is_red_and_nothing_is_lost_when_it_is_back(browser: Any, tmp_path: Path) -> None:
    port = free_port()
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    with app_process(tmp_path, port=port) as server:
        visitor = Visitor(context, server.url)
        visitor.ask("Good morning.")
        rows = visitor.rows()
        visitor.box.fill("Not sent yet")
        server.process.terminate()
        visitor.page.get_by_role("alert").get_by_text(texts.SERVER_GONE).wait_for()
        assert not visitor.page.locator("#status").is_visible()
        server.process.wait()
    with app_process(tmp_path, port=port):
        visitor.page.locator(".status.ready").wait_for()
        assert not visitor.page.locator("#server-gone").is_visible()
        wait_until(lambda: visitor.rows() == rows and visitor.box.input_value() == "Not sent yet")
        assert visitor.answering(lambda: visitor.box.press("Enter"))
    context.close()
