"""Several conversations in Chromium over a fake engine: their list, reloads in mid-answer, links, phones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from adapter.ui import answer_stream
from adapter.ui.texts import page as texts
from tests.app_process import wait_until
from tests.browser import PHOTOGRAPHS, Visitor
from tests.ui.chat.test_page_storage import (
    GatedEngine,
    ask_about,
    clear,
    closed_gate,
    loaded_picture,
    new_conversation,
    open_conversation_panel,
    open_list,
    stored,
    titles,
    url,
    wait_for_rows,
)

__all__ = ["closed_gate", "url"]  # fixtures
pytestmark = [pytest.mark.slow, pytest.mark.browser]


def open_first(visitor: Visitor, words: str) -> None:
    open_list(visitor)
    visitor.page.locator("#conversations li button[name=open]").get_by_text(words, exact=True).click()


def test_each_conversation_has_its_words_pictures_and_settings(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    visitor.pick("poet")
    visitor.set("Strength", 0.5)
    visitor.ask("Good morning.")
    poem = visitor.rows()
    new_conversation(visitor)
    assert visitor.picked == "poet", "a new conversation begins with the settings of the one before"
    visitor.pick("see")
    visitor.set("Strength", 1)
    ask_about(visitor, PHOTOGRAPHS / "cheetah1.jpg", "What is this?")
    seen, picture = visitor.rows(), loaded_picture(visitor)
    open_first(visitor, "Good morning.")
    wait_for_rows(visitor, poem)
    visitor.page.locator('#picker input[value="poet"]:checked').wait_for()
    assert visitor.page.get_by_label("number input for Strength").input_value() == "0.5"
    visitor.ask("And now?")
    open_first(visitor, "What is this?")
    wait_for_rows(visitor, seen)
    visitor.page.locator('#picker input[value="see"]:checked').wait_for()
    assert loaded_picture(visitor) == picture
    # The same picture in another conversation is kept once.
    new_conversation(visitor)
    ask_about(visitor, PHOTOGRAPHS / "cheetah1.jpg", "Again?")
    wait_until(lambda: len(stored(visitor)) == 3)
    visitor.reload()
    assert loaded_picture(visitor) == picture
    count = """() => new Promise(done => {
        indexedDB.open("llama-adapter").onsuccess = ({ target: { result } }) => {
            result.transaction("pictures").objectStore("pictures").count().onsuccess = e => done(e.target.result);
        };
    })"""
    assert visitor.page.evaluate(count) == 1


def test_search_rename_delete_and_undo(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    page = visitor.page
    for words in ("Good morning.", "Why is the sky blue?"):
        visitor.ask(words)
        new_conversation(visitor)
    open_list(visitor)
    assert titles(visitor) == ["Why is the sky blue?", "Good morning."]
    page.get_by_label(texts.SEARCH).fill("YOU SAID: GOOD")  # any of its words
    assert titles(visitor) == ["Good morning."]
    page.get_by_label(texts.SEARCH).fill("nobody said this")
    page.get_by_text(texts.NOTHING_FOUND).wait_for()
    page.get_by_label(texts.SEARCH).fill("")
    page.get_by_label(texts.RENAME).last.click()
    page.keyboard.press("Escape")
    assert titles(visitor) == ["Why is the sky blue?", "Good morning."]
    page.get_by_label(texts.RENAME).last.click()
    page.keyboard.type("<b>Small talk</b>")
    page.keyboard.press("Enter")
    assert titles(visitor) == ["Why is the sky blue?", "<b>Small talk</b>"]
    page.get_by_label(texts.DELETE).first.click()
    assert titles(visitor) == ["<b>Small talk</b>"]
    page.locator("#conversations [name=undo]").click()
    visitor.page.locator("#chat").get_by_text("you said: Why is the sky blue?!").wait_for()
    visitor.reload()
    open_list(visitor)
    assert titles(visitor) == ["Why is the sky blue?", "<b>Small talk</b>"]


def test_clearing_can_be_undone(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    visitor.ask("Good morning.")
    rows = visitor.rows()
    clear(visitor)
    undo = visitor.page.locator("#conversations [name=undo]")
    undo.click()
    wait_for_rows(visitor, rows)
    undo.wait_for(state="hidden")
    visitor.ask("And now?")
    gone_on = visitor.rows()
    visitor.reload()
    wait_for_rows(visitor, gone_on)
    clear(visitor)
    wait_until(lambda: any(record["deleted"] for record in stored(visitor)))
    visitor.reload()
    open_list(visitor)
    assert titles(visitor) == [] and visitor.rows() == []


def test_what_two_tabs_make_of_one_conversation_is_both_kept(visit: Callable[..., Visitor], url: str) -> None:
    one = visit()
    one.ask("Good morning.")
    two = Visitor(one.context, url)
    wait_for_rows(two, one.rows())
    one.ask("One goes on.")
    two.ask("Two goes on.")
    rows = [one.rows(), two.rows()]
    for tab, expected in zip((one, two), rows, strict=True):
        tab.reload()
        wait_for_rows(tab, expected)
    open_list(two)
    wait_until(lambda: titles(two) == ["Good morning.", "Good morning."])
    assert two.complaints == []


def test_a_reload_follows_the_answer_that_is_being_written(
    visit: Callable[..., Visitor], closed_gate: GatedEngine
) -> None:
    visitor = visit()
    visitor.type("Good morning.")
    visitor.await_answers(1)
    wait_until(lambda: any("answer" in record["document"] for record in stored(visitor)))
    visitor.reload()
    visitor.page.get_by_text(texts.CUT_OFF).first.wait_for()  # until the server has noticed the reload
    closed_gate.gate.set()
    wait_until(lambda: visitor.answers()[-1:] == ["you said: Good morning.!"])  # none while the list is redrawn
    visitor.settle()
    visitor.page.get_by_text(texts.CUT_OFF).wait_for(state="hidden")
    rows = visitor.rows()
    wait_until(lambda: not any("answer" in record["document"] for record in stored(visitor)))
    visitor.reload()
    wait_for_rows(visitor, rows)


def test_an_answer_goes_on_while_another_conversation_is_shown(
    visit: Callable[..., Visitor], closed_gate: GatedEngine
) -> None:
    visitor = visit()
    visitor.type("Good morning.")
    visitor.await_answers(1)
    new_conversation(visitor)
    visitor.page.locator("#box .submit-button").wait_for()
    visitor.type("And now?")
    visitor.await_answers(1)
    closed_gate.gate.set()
    assert visitor.settle() == "you said: And now?!"
    open_first(visitor, "Good morning.")
    visitor.page.locator("#chat").get_by_text("you said: Good morning.!").wait_for()
    assert visitor.settle() == "you said: Good morning.!"


def test_an_answer_that_has_ended_without_the_page_is_shown_as_far_as_it_was_seen(
    visit: Callable[..., Visitor], closed_gate: GatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_stream, "UNREAD_SECONDS", 0.0)
    visitor = visit()
    visitor.type("Good morning.")
    visitor.await_answers(1)
    wait_until(lambda: any("answer" in record["document"] for record in stored(visitor)))
    visitor.page.goto("about:blank")
    closed_gate.gate.set()
    visitor.page.go_back()
    visitor.page.get_by_text(texts.CUT_OFF).first.wait_for()
    assert visitor.rows()[0] == "Good morning."
    visitor.page.locator("#box .submit-button").wait_for()


def test_a_link_carries_settings_and_says_what_it_lacks(visit: Callable[..., Visitor], tmp_path: Path) -> None:
    sender = visit()
    sender.context.grant_permissions(["clipboard-read", "clipboard-write"])
    sender.pick("see")
    sender.set("Strength", 0.5)
    ask_about(sender, PHOTOGRAPHS / "cheetah1.jpg", "What is this?")
    open_conversation_panel(sender)
    sender.page.get_by_role("button", name=texts.COPY_LINK).click()
    assert "settings" in sender.toast()
    reader = visit()
    reader.page.goto(sender.page.evaluate("() => navigator.clipboard.readText()"))
    reader.page.get_by_text(texts.PICTURE_NOT_SENT).wait_for()
    reader.page.locator('#picker input[value="see"]:checked').wait_for()
    assert reader.page.get_by_label("number input for Strength").input_value() == "0.5"


def test_a_phone_has_the_list_as_a_sheet_of_one_button(visit: Callable[..., Visitor]) -> None:
    visitor = visit(390, 844)
    visitor.ask("Good morning.")
    open_list(visitor)
    box = visitor.page.locator("#conversations dialog").bounding_box()
    assert box["x"] == 0 and box["width"] <= 390 - 40 and box["height"] == 844
    visitor.page.mouse.click(380, 400)  # beside it
    visitor.page.locator("#conversations dialog").wait_for(state="hidden")
    assert visitor.page.evaluate("() => document.documentElement.scrollWidth") <= 390
