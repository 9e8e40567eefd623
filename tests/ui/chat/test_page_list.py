"""Several conversations in Chromium over a fake engine: their list, reloads in mid-answer, phones."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from adapter.ui.texts import page as texts
from tests.app_process import wait_until
from tests.browser import PHOTOGRAPHS, Visitor
from tests.ui.fake_page import GatedEngine, closed_gate, runs_folder, url

__all__ = ["closed_gate", "runs_folder", "url"]  # fixtures
pytestmark = [pytest.mark.slow, pytest.mark.browser]


def test_each_conversation_has_its_words_pictures_and_settings(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    visitor.pick("poet")
    visitor.set("Strength", 0.5)
    visitor.ask("Good morning.")
    poem = visitor.rows()
    visitor.new_conversation()
    assert visitor.picked == "poet", "a new conversation begins with the settings of the one before"
    visitor.pick("see")
    visitor.set("Strength", 1)
    visitor.ask_about(PHOTOGRAPHS / "cheetah1.jpg", "What is this?")
    seen, picture = visitor.rows(), visitor.loaded_picture()
    visitor.open_conversation("Good morning.")
    visitor.wait_for_rows(poem)
    visitor.page.locator('#picker input[value="poet"]:checked').wait_for()
    assert visitor.page.get_by_label("number input for Strength").input_value() == "0.5"
    visitor.ask("And now?")
    visitor.open_conversation("What is this?")
    visitor.wait_for_rows(seen)
    visitor.page.locator('#picker input[value="see"]:checked').wait_for()
    assert visitor.loaded_picture() == picture
    # The same picture in another conversation is kept once.
    visitor.new_conversation()
    visitor.ask_about(PHOTOGRAPHS / "cheetah1.jpg", "Again?")
    wait_until(lambda: len(visitor.stored()) == 3)
    visitor.reload()
    assert visitor.loaded_picture() == picture
    count = """() => new Promise(done => {
        indexedDB.open("llama-adapter").onsuccess = ({ target: { result } }) => {
            result.transaction("pictures").objectStore("pictures").count().onsuccess = e => done(e.target.result);
        };
    })"""
    assert visitor.page.evaluate(count) == 1


def test_search_rename_delete_and_undo(visit: Callable[..., Visitor]) -> None:
    visitor = visit(390, 844)
    page = visitor.page
    for words in ("Good morning.", "Why is the sky blue?"):
        visitor.ask(words)
        visitor.new_conversation()
    visitor.open_list()
    # On a phone it is a sheet, which a touch beside it closes.
    box = page.locator("#conversations dialog").bounding_box()
    assert box["x"] == 0 and box["width"] <= 390 - 40 and box["height"] == 844
    page.mouse.click(380, 400)
    page.locator("#conversations dialog").wait_for(state="hidden")
    visitor.open_list()
    assert visitor.titles() == ["Why is the sky blue?", "Good morning."]
    search = page.get_by_label(texts.SEARCH)
    search.fill("YOU SAID: GOOD")  # any of its words
    assert visitor.titles() == ["Good morning."]
    search.fill("nobody said this")
    page.get_by_text(texts.NOTHING_FOUND).wait_for()
    search.fill("")
    for key, title in (("Escape", "Good morning."), ("Enter", "<b>Small talk</b>")):
        page.get_by_label(texts.RENAME).last.click()
        page.keyboard.type("<b>Small talk</b>")
        page.keyboard.press(key)
        assert visitor.titles() == ["Why is the sky blue?", title]
    page.get_by_label(texts.DELETE).first.click()
    assert visitor.titles() == ["<b>Small talk</b>"]
    page.locator("#conversations [name=undo]").click()
    page.locator("#chat").get_by_text("you said: Why is the sky blue?!").wait_for()
    visitor.reload()
    visitor.open_list()
    assert visitor.titles() == ["Why is the sky blue?", "<b>Small talk</b>"]
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390


def test_clearing_can_be_undone(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    visitor.ask("Good morning.")
    rows = visitor.rows()
    visitor.clear()
    undo = visitor.page.locator("#conversations [name=undo]")
    undo.click()
    visitor.wait_for_rows(rows)
    undo.wait_for(state="hidden")
    visitor.ask("And now?")
    gone_on = visitor.rows()
    visitor.reload()
    visitor.wait_for_rows(gone_on)
    visitor.clear()
    wait_until(lambda: any(record["deleted"] for record in visitor.stored()))
    visitor.reload()
    visitor.open_list()
    assert visitor.titles() == [] and visitor.rows() == []


def test_what_two_tabs_make_of_one_conversation_is_both_kept(visit: Callable[..., Visitor], url: str) -> None:
    one = visit()
    one.ask("Good morning.")
    two = Visitor(one.context, url)
    two.wait_for_rows(one.rows())
    one.ask("One goes on.")
    two.ask("Two goes on.")
    rows = [one.rows(), two.rows()]
    for tab, expected in zip((one, two), rows, strict=True):
        tab.reload()
        tab.wait_for_rows(expected)
    two.open_list()
    wait_until(lambda: two.titles() == ["Good morning.", "Good morning."])
    assert two.complaints == []


def test_an_answer_goes_on_while_another_conversation_is_shown(
    visit: Callable[..., Visitor], closed_gate: GatedEngine
) -> None:
    visitor = visit()
    visitor.type("Good morning.")
    visitor.await_answers(1)
    visitor.new_conversation()
    visitor.page.locator("#box .submit-button").wait_for()
    visitor.type("And now?")
    visitor.await_answers(1)
    closed_gate.gate.set()
    assert visitor.settle() == "you said: And now?!"
    visitor.open_conversation("Good morning.")
    visitor.page.locator("#chat").get_by_text("you said: Good morning.!").wait_for()
    assert visitor.settle() == "you said: Good morning.!"
