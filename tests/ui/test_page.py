"""The page in a real browser, on the real embedded base with the shipped adapters: what a visitor does."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from adapter.serve.store import SHIPPED
from adapter.ui.chat.chatbot import WORD_JOINER
from adapter.ui.texts import page as texts
from tests.app_process import AppProcess, wait_until
from tests.browser import PHOTOGRAPHS, Visitor

pytestmark = [pytest.mark.slow, pytest.mark.browser]
STATS = re.compile(r"(frozen base|\w+ · strength [\d.]+) · \d+ tokens? · [\d.]+ tokens/s")


def test_text_answer_streams(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    final = visitor.answering(lambda: visitor.type("Write one sentence about the sea."))
    seen = visitor.page.evaluate("() => window.shown")
    assert len(seen) >= 3 and final.startswith(seen[0].rstrip())
    assert STATS.match(visitor.stats()) and visitor.stats().startswith("frozen base")


def test_the_swap_changes_the_answer_in_mid_conversation(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    plain = visitor.ask("Why is the sky blue?")
    visitor.pick("pirate")
    assert visitor.answering(visitor.button("Retry").click) != plain
    assert visitor.stats().startswith("pirate · strength 1 ·")
    visitor.set("Strength", 0)
    assert visitor.answering(visitor.button("Retry").click) == plain  # strength 0 is the frozen base
    assert len(visitor.answers()) == 1


def test_what_goes_in_circles_ends_and_a_penalty_system_prompt_and_stop_texts_change_the_answer(
    visit: Callable[..., Visitor],
) -> None:
    visitor = visit()
    visitor.set("Max tokens", 96)
    visitor.set("Repetition penalty", 1)
    asked = "Count: one, one, one, one, one, one, one, one,"
    circles = visitor.ask(asked)
    assert "it began to repeat itself" in visitor.stats() and circles.count("one") > 20
    visitor.set("Repetition penalty", 1.1)
    penalised = visitor.answering(visitor.button("Retry").click)
    assert penalised != circles and "repeat itself" not in visitor.stats()
    visitor.page.get_by_role("button", name="System prompt").click()
    system = visitor.page.get_by_role("textbox", name="System prompt")
    system_text = "Answer every message with the word yes only."
    system.fill(system_text)
    told = visitor.answering(visitor.button("Retry").click)
    assert told != penalised
    stop = visitor.page.get_by_role("textbox", name="Stop texts")
    stop.fill(told[1:4])
    assert visitor.answering(visitor.button("Retry").click) == told[:1]
    visitor.reload()
    for panel in ("Sampling", "System prompt"):
        visitor.page.get_by_role("button", name=panel).click()
    assert (system.input_value(), stop.input_value()) == (system_text, told[1:4])


def test_stop_stops_and_the_conversation_goes_on(visit: Callable[..., Visitor], real_page: AppProcess) -> None:
    visitor = visit()
    visitor.set("Max tokens", 512)
    with real_page.steps_of(0.1):
        visitor.type("Tell me a very long story about a dragon, in many chapters.")
        visitor.await_answers(1)
        visitor.page.locator("#box .stop-button").click()
        text = visitor.settle()
    assert "stopped" in visitor.stats()
    visitor.page.wait_for_timeout(800)
    assert visitor.answers() == [text]
    visitor.set("Max tokens", 16)
    assert visitor.ask("Thank you.")
    assert len(visitor.answers()) == 2


def test_edit_and_undo(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    first = visitor.ask("Say the word apple.")
    visitor.page.locator("#chat .user-row").last.hover()
    visitor.button("Edit").click()
    visitor.page.locator("#chat textarea.edit-textarea").fill("Say the word river.")
    assert visitor.answering(visitor.button("Submit").click) != first
    assert len(visitor.answers()) == 1 and "river" in visitor.rows()[0]
    visitor.button("Undo").click()
    visitor.page.locator("#chat .example").first.wait_for()
    assert visitor.box.input_value() == "Say the word river."


def test_words_are_shown_as_they_were_written(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    visitor.context.grant_permissions(["clipboard-read", "clipboard-write"])
    stranger = "http://stranger.example/x.png"
    written = f'What is <div>, <img src="{stranger}"> or &lt;? ![x]({stranger}) \\(y\\)\n\nשלום.'
    visitor.ask(written)
    message = visitor.page.locator('#chat [data-testid="user"]').last
    shown = written.replace(f"[x]({stranger})", "x")  # a link, that nothing is fetched from
    assert message.inner_text().replace(WORD_JOINER, "") == shown and message.locator("img").count() == 0
    # What is copied, edited or taken back is what was written.
    visitor.page.locator("#chat .user-row").last.hover()
    visitor.page.locator('#chat .message-buttons-right [title*="opy"]').last.click()
    assert visitor.page.evaluate("() => navigator.clipboard.readText()") == written
    message.select_text()
    visitor.page.keyboard.press("ControlOrMeta+c")
    assert visitor.page.evaluate("() => navigator.clipboard.readText()") == shown
    # Hebrew begins on the right.
    indent = """e => { const range = document.createRange(); range.selectNodeContents(e);
        return range.getBoundingClientRect().left - e.getBoundingClientRect().left; }"""
    english, hebrew = (paragraph.evaluate(indent) for paragraph in message.locator("p").all())
    assert english < 2 and hebrew > 20
    visitor.button("Edit").click()
    field = visitor.page.locator("#chat textarea.edit-textarea")
    field.fill(field.input_value() + " <i>")
    visitor.answering(visitor.button("Submit").click)
    visitor.button("Undo").click()
    visitor.page.locator("#chat .example").first.wait_for()
    assert visitor.box.input_value() == written + " <i>"


def test_example_photograph_is_seen(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    visitor.page.get_by_label("What is this animal?").click()
    visitor.await_answers(1)
    assert re.search("cheetah|leopard|cat", visitor.settle(), re.IGNORECASE)
    assert visitor.picked == "see" and visitor.stats().startswith("see ·")


def test_photograph_for_a_text_adapter_is_offered_to_the_other(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    visitor.pick("pirate")
    visitor.attach(PHOTOGRAPHS / "cheetah1.jpg")
    visitor.type("What is in this picture?")
    visitor.page.get_by_role("button", name="Use see for this picture").click()
    visitor.await_answers(1)
    assert re.search("cheetah|leopard|cat", visitor.settle(), re.IGNORECASE)
    assert visitor.picked == "see"
    # An edit keeps the picture.
    visitor.page.locator("#chat .user-row").last.hover()
    visitor.button("Edit").click()
    visitor.page.locator("#chat textarea.edit-textarea").fill("Which animal is this?")
    assert visitor.answering(visitor.button("Submit").click) and "no image" not in visitor.stats()
    assert visitor.page.locator("#chat .user-row img").count() == 1


def test_pictures_can_be_pasted_and_dropped(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    data = base64.b64encode((PHOTOGRAPHS / "logo.png").read_bytes()).decode()
    transfer = """data => {
        const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], 'logo.png', {type: 'image/png'}));
        return transfer;
    }"""
    visitor.page.evaluate(
        f"""data => document.querySelector('#box textarea').dispatchEvent(
            new ClipboardEvent('paste', {{clipboardData: ({transfer})(data), bubbles: true}}))""",
        data,
    )
    visitor.page.locator("#box .thumbnail-item").wait_for()
    visitor.page.locator("#box .thumbnail-item .delete-button").click()
    visitor.page.locator("#box .thumbnail-item").wait_for(state="hidden")
    dropped = visitor.page.evaluate_handle(transfer, data)
    visitor.page.locator("#box .full-container").dispatch_event("drop", {"dataTransfer": dropped})
    visitor.page.locator("#box .thumbnail-item").wait_for()


def test_bad_input_is_a_toast_and_the_conversation_stays(visit: Callable[..., Visitor], tmp_path: Path) -> None:
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


def test_two_people_at_once_get_what_each_gets_alone(visit: Callable[..., Visitor]) -> None:
    question = "What should I do on a rainy day?"
    alone = {}
    people = {name: visit() for name in ("", "pirate")}
    for name, visitor in people.items():
        visitor.pick(name)
        alone[name] = visitor.ask(question)
        visitor.page.locator('#chat [title="Clear"]').click()
        visitor.page.locator("#chat .example").first.wait_for()
    assert alone[""] != alone["pirate"]
    for visitor in people.values():
        visitor.type(question)
    for name, visitor in people.items():
        visitor.await_answers(1)
        assert visitor.settle() == alone[name]
        assert visitor.stats().startswith(name or "frozen base")


def test_adapters_come_and_go_while_the_page_is_open(visit: Callable[..., Visitor], adapters: Path) -> None:
    visitor = visit()
    shutil.copytree(SHIPPED / "pirate", adapters / "parrot")
    card = visitor.page.locator('#picker label:has(input[value="parrot"])')
    card.wait_for()
    visitor.pick("parrot")
    shutil.rmtree(adapters / "parrot")
    assert visitor.toast().endswith(texts.adapter_gone("parrot"))  # nobody has to send a message first
    card.wait_for(state="hidden")
    assert visitor.picked == ""


def test_phone_has_no_horizontal_scroll(visit: Callable[..., Visitor]) -> None:
    visitor = visit(390, 844)
    wide = "() => document.documentElement.scrollWidth"
    assert visitor.page.evaluate(wide) <= 390
    visitor.set("Max tokens", 16)
    visitor.ask("Say " + "averyverylongword" * 12)
    assert visitor.page.evaluate(wide) <= 390
    assert visitor.page.locator("#box .submit-button").bounding_box()["width"] >= 24
