"""Several conversations in Chromium over a fake engine: their list, on a desk and on a phone."""

import json
from typing import Any

import pytest

from adapter.ui.texts import page as texts
from tests.app_process import wait_until
from tests.browser import PHOTOGRAPHS, Visitor
from tests.ui.fake_page import closed_gate, url

__all__ = ["closed_gate", "url"]  # fixtures
pytestmark = [pytest.mark.slow, pytest.mark.browser]


def test_each_conversation_has_its_words_pictures_and_settings(visit):
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
    strength = visitor.page.get_by_label("number input for Strength")
    wait_until(lambda: (visitor.picked, strength.input_value()) == ("poet", "0.5"))
    visitor.open_conversation("What is this?")
    visitor.wait_for_rows(seen)
    visitor.page.locator('#picker input[value="see"]:checked').wait_for()
    assert visitor.loaded_picture() == picture


def test_an_adapter_of_the_hub_that_a_link_names_is_asked_about_first(visit, url):
    visitor = visit()
    page, question = visitor.page, visitor.page.locator("#hub-link")
    assert not question.is_visible()
    page.goto(f"{url}#adapter=me/pirate")
    question.get_by_text("me/pirate").wait_for()
    question.get_by_role("button", name=texts.HUB_LEAVE).click()
    question.wait_for(state="hidden")
    page.wait_for_url(lambda address: "#" not in address)


def test_search_rename_delete_and_undo(visit):
    visitor = visit(390, 844)  # a sheet, on a phone
    page = visitor.page
    for words in ("Good morning.", "Why is the sky blue?"):
        visitor.ask(words)
        visitor.new_conversation()
    visitor.open_list()
    wait_until(lambda: visitor.titles() == ["Why is the sky blue?", "Good morning."], visitor.titles)
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
    assert page.evaluate("() => document.activeElement.closest('li') !== null"), "the next row"
    page.locator("#conversations [name=undo]").click()
    page.locator("#chat").get_by_text("you said: Why is the sky blue?!").wait_for()
    visitor.reload()
    visitor.open_list()
    wait_until(lambda: visitor.titles() == ["Why is the sky blue?", "<b>Small talk</b>"], visitor.titles)
    sheet = page.locator("#conversations dialog")
    sheet.click(position={"x": 5, "y": 300})  # its padding
    assert sheet.is_visible()
    page.mouse.click(385, 300)  # beside it
    sheet.wait_for(state="hidden")
    row = page.locator("#conversations li").first.element_handle()
    visitor.open_list()
    assert row.evaluate("row => row.isConnected"), "a row that may be pressed just now is not drawn anew"


def test_what_came_after_an_edited_question_stays_in_the_list(visit):
    visitor = visit()
    for words in ("One?", "Two?"):
        visitor.ask(words)
    rows = visitor.rows()
    visitor.page.locator("#chat .user-row").first.hover()
    visitor.page.locator('#chat .message-buttons [title="Edit"]').first.click()
    field = visitor.page.locator("#chat textarea.edit-textarea")
    field.fill("Three?")
    visitor.answering(lambda: field.press("Enter"))
    assert texts.KEPT_APART in visitor.toast() and visitor.rows()[:2] == ["Three?", "you said: Three?!"]
    visitor.open_list()
    assert visitor.titles() == ["Three?", "One?"]
    visitor.page.locator("#conversations [name=open]").last.click()
    visitor.wait_for_rows(rows)
    for words in ("abcd", "cde"):  # a long one loses its oldest messages, which no edit has done
        document = {"messages": [{"role": "user", "text": word} for word in words]}
        text = json.dumps({"keep": {"id": "long", "document": document}})
        visitor.page.evaluate("text => window.chatPage.receive(text)", text)
    visitor.open_list()
    assert visitor.titles() == ["c", "Three?", "One?"]


def test_two_tabs_go_on_with_one_conversation_and_lose_neither_a_title_nor_a_deletion(visit, url, closed_gate):
    closed_gate.gate.set()
    one = visit()
    one.ask("Good morning.")
    two = Visitor(one.context, url)
    two.wait_for_rows(one.rows())
    one.ask("One goes on.")
    two.page.evaluate("document.dispatchEvent(new Event('visibilitychange', {bubbles: true}))")
    two.wait_for_rows(one.rows())
    two.type("Two goes on.")
    two.await_answers(3)
    two.settle()
    one.open_list()
    one.page.get_by_label(texts.RENAME).click()
    one.page.keyboard.type("Small talk")
    one.page.keyboard.press("Enter")
    closed_gate.gate.clear()
    two.type("And on.")
    two.await_answers(4)
    one.page.get_by_label(texts.DELETE).click()
    closed_gate.gate.set()
    two.settle()
    wait_until(lambda: "And on.!" in str(one.stored()))
    wait_until(lambda: [(bool(r["deleted"]), r["title"]) for r in one.stored()] == [(True, "Small talk")])
    begun = """text?.replace('"begins": true', '"begins": 0')"""
    two.page.evaluate(f"(({{ receive }}) => void (chatPage.receive = (text) => receive({begun})))(chatPage)")
    two.ask("And back.")  # which brings it back, though the page has missed the update that begins it
    wait_until(lambda: [(bool(r["deleted"]), r["title"]) for r in one.stored()] == [(False, "Small talk")])
    assert two.complaints == []


def test_corrections_of_two_tabs_come_together(visit, url):
    one = visit()
    one.ask("Good morning.")
    two = Visitor(one.context, url)
    pencil = f'#chat [title="{texts.SAY_IT_LIKE_THIS}"]:visible'

    def correct() -> None:
        one.page.locator(pencil).click()
        one.page.locator("#chat textarea.edit-textarea").fill("Better.")
        one.page.keyboard.press("Enter")

    correct()
    for visitor in (one, two):
        visitor.page.get_by_text(texts.corrections(1)).wait_for()
        two.page.locator(pencil).click()  # which loads it anew
    full = "Storage.prototype.setItem = () => { throw new DOMException('', 'QuotaExceededError') }"
    one.page.add_init_script(full)
    one.reload()
    correct()
    assert texts.STORAGE_FULL in one.toast()


def test_a_conversation_that_cannot_be_opened_leaves_the_page_able_to_send(visit):
    visitor = visit()
    visitor.ask("Good morning.")
    visitor.open_edit()
    visitor.new_conversation()
    held = list[Any]()

    def hold(route: Any) -> None:
        if "Good morning." in (route.request.post_data or "") and not held:
            held.append(route)
        else:
            route.continue_()

    visitor.page.route("**/queue/join*", hold)
    visitor.open_conversation("Good morning.")
    wait_until(lambda: visitor.page.evaluate("1") and held)
    visitor.type("For that one.")
    held[0].fulfill(status=413, json={"detail": "too large"})
    visitor.page.get_by_text(texts.NOT_OPENED).wait_for()
    assert visitor.box.input_value() == "For that one." and visitor.rows() == []
    assert visitor.ask("And now?") == "you said: And now?!" and visitor.rows()[0] == "And now?"
    assert "413" in visitor.complaints.pop() and not visitor.complaints
    visitor.open_conversation("Good morning.")
    visitor.page.locator("#chat").get_by_text("you said: Good morning.!").wait_for()
    visitor.page.route("**/run/predict*", lambda route: route.fulfill(status=502), times=1)  # as a proxy does
    visitor.page.get_by_role("alert").get_by_text(texts.SERVER_GONE).wait_for()
    visitor.complaints.clear()
    # A proxy may also end a stream of results as if it were whole.
    visitor.page.route("**/queue/data*", lambda route: route.fulfill(content_type="text/event-stream"), times=1)
    with visitor.page.expect_event("load"):
        visitor.type("Good evening.")
    visitor.page.wait_for_function("() => window.chatPage?.restored")
    assert visitor.ask("Still there?") == "you said: Still there?!"
