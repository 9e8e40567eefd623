"""Several conversations in Chromium over a fake engine: their list, on a desk and on a phone."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from adapter.ui.texts import page as texts
from tests.app_process import wait_until
from tests.browser import PHOTOGRAPHS, Visitor
from tests.ui.fake_page import runs_folder, url

__all__ = ["runs_folder", "url"]  # fixtures
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
    visitor.open_conversation("What is this?")
    visitor.wait_for_rows(seen)
    visitor.page.locator('#picker input[value="see"]:checked').wait_for()
    assert visitor.loaded_picture() == picture


def test_search_rename_delete_and_undo(visit: Callable[..., Visitor]) -> None:
    visitor = visit(390, 844)  # a sheet, on a phone
    page = visitor.page
    for words in ("Good morning.", "Why is the sky blue?"):
        visitor.ask(words)
        visitor.new_conversation()
    visitor.open_list()
    assert visitor.titles() == ["Why is the sky blue?", "Good morning."]
    search = page.get_by_label(texts.SEARCH)
    search.fill("YOU SAID: GOOD")  # any of its words
    assert visitor.titles() == ["Good morning."]
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
