"""The page in a real browser, on the real embedded base with the shipped adapters: what answers there."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapter.serve.store import SHIPPED
from adapter.ui.texts import page as texts
from tests.app_process import ROOT, AppProcess, app_process, free_port, wait_until
from tests.browser import PHOTOGRAPHS, Visitor

pytestmark = [pytest.mark.slow, pytest.mark.browser]
STATS = re.compile(r"(frozen base|\w+ · strength [\d.]+) · \d+ tokens? · [\d.]+ tokens/s")
CHEETAH = re.compile("cheetah|leopard|cat", re.IGNORECASE)


def test_an_answer_streams_and_the_swap_changes_it_in_mid_conversation(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    plain = visitor.answering(lambda: visitor.type("Why is the sky blue?"))
    seen = visitor.page.evaluate("() => window.shown")
    assert len(seen) >= 3 and plain.startswith(seen[0].rstrip())
    assert STATS.match(visitor.stats()) and visitor.stats().startswith("frozen base")
    visitor.pick("pirate")
    assert visitor.answering(visitor.button("Retry").click) != plain
    assert visitor.stats().startswith("pirate · strength 1 ·")
    visitor.set("Strength", 0)
    assert visitor.answering(visitor.button("Retry").click) == plain  # strength 0 is the frozen base
    assert len(visitor.answers()) == 1


def test_a_second_adapter_changes_the_answer_and_does_not_follow_to_another_adapter(
    visit: Callable[..., Visitor],
) -> None:
    visitor = visit()
    page, chip = visitor.page, visitor.page.locator("#chip")
    visitor.pick("extract")
    alone = visitor.ask("Why is the sky blue?")
    assert not chip.is_visible(), "the picker shows it"
    page.get_by_role("button", name="Mix in another").click()

    def mix(name: str) -> None:
        page.get_by_label("Second adapter").click()
        page.get_by_role("option", name=name).click()

    mix("pirate")
    wait_until(lambda: chip.is_visible() and chip.inner_text().startswith("extract · strength 1 · with pirate "))
    visitor.set("Second strength", 1)
    assert visitor.answering(visitor.button("Retry").click) != alone
    assert visitor.stats().startswith("extract · strength 1 · with pirate at 1 ·")
    visitor.pick("pirate")
    assert texts.not_taken_along("pirate") in visitor.toast()
    chip.wait_for(state="hidden")
    assert page.get_by_label("Second adapter").input_value() == texts.NO_MIX
    mix("pirate")
    before = visitor.rows()
    visitor.type("And the sea?")
    assert "mixed with itself" in visitor.toast()
    wait_until(lambda: visitor.rows() == before)


def test_what_goes_in_circles_ends_and_a_penalty_system_prompt_and_stop_texts_change_the_answer(
    visit: Callable[..., Visitor],
) -> None:
    visitor = visit()
    visitor.set("Max tokens", 96)
    visitor.set("Repetition penalty", 1)
    circles = visitor.ask("Count: one, one, one, one, one, one, one, one,")
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


def test_esc_stops_and_the_conversation_goes_on(visit: Callable[..., Visitor], real_page: AppProcess) -> None:
    visitor = visit()
    visitor.set("Max tokens", 512)
    with real_page.steps_of(0.1):
        visitor.type("Tell me a very long story about a dragon, in many chapters.")
        visitor.await_answers(1)
        visitor.page.locator("h1").click()  # from anywhere
        visitor.page.keyboard.press("Escape")
        text = visitor.settle()
    assert "stopped" in visitor.stats()
    visitor.page.wait_for_function("() => document.activeElement === document.querySelector('#box textarea')")
    visitor.set("Max tokens", 16)
    assert visitor.ask("Thank you.") and visitor.answers()[0] == text


def test_a_photograph_is_seen_and_offered_to_an_adapter_that_sees(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    visitor.page.get_by_label("What is this animal?").click()
    visitor.await_answers(1)
    assert CHEETAH.search(visitor.settle())
    assert visitor.picked == "see" and visitor.stats().startswith("see ·")
    visitor.new_conversation()
    visitor.pick("pirate")
    visitor.attach(PHOTOGRAPHS / "cheetah1.jpg")
    visitor.type("What is in this picture?")
    visitor.page.get_by_role("button", name="Use see for this picture").click()
    visitor.await_answers(1)
    assert CHEETAH.search(visitor.settle()) and visitor.picked == "see"
    visitor.edit("Which animal is this?")  # keeps the picture
    assert visitor.answering(visitor.button("Submit").click) and "no image" not in visitor.stats()
    assert visitor.page.locator("#chat .user-row img").count() == 1


def test_two_people_at_once_get_what_each_gets_alone(visit: Callable[..., Visitor]) -> None:
    question = "What should I do on a rainy day?"
    alone = {}
    people = {name: visit() for name in ("", "pirate")}
    for name, visitor in people.items():
        visitor.pick(name)
        alone[name] = visitor.ask(question)
        visitor.clear()
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


def test_the_command_line_and_a_reload_give_the_answer_again(
    visit: Callable[..., Visitor], tmp_path: Path
) -> None:
    visitor = visit()
    visitor.open_conversation_panel()
    visitor.pick("see")
    visitor.set("Strength", 0.9)
    visitor.set("Temperature", 1.2)
    visitor.page.get_by_label("Seed").fill("5")
    seen = visitor.ask_about(PHOTOGRAPHS / "cheetah1.jpg", 'It\'s "raining" & 5 > 3; what $now?')
    visitor.export(tmp_path / "conversation.json")
    command = shlex.split(visitor.page.locator("#code textarea").input_value())
    assert command[0] == "python"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *command[1:]], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == seen.split()
    rows, picture = visitor.rows(), visitor.loaded_picture()
    visitor.reload()
    visitor.wait_for_rows(rows)
    assert visitor.picked == "see" and visitor.loaded_picture() == picture
    visitor.page.get_by_role("button", name="Sampling").click()
    for label, value in (("Strength", "0.9"), ("Temperature", "1.2"), ("Max tokens", "16")):
        assert visitor.page.get_by_label(f"number input for {label}").input_value() == value
    assert visitor.page.get_by_label("Seed").input_value() == "5"
    assert visitor.answering(visitor.button("Retry").click) == seen and "no image" not in visitor.stats()


def test_a_restart_without_uploads_and_with_fewer_adapters(browser: Any, tmp_path: Path) -> None:
    port = free_port()
    shutil.copytree(SHIPPED / "see", tmp_path / "adapters" / "owl")
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    with app_process(tmp_path, "--adapters", str(tmp_path / "adapters"), port=port) as server:
        visitor = Visitor(context, server.url)
        visitor.pick("owl")
        visitor.ask_about(PHOTOGRAPHS / "cheetah1.jpg", "What is this?")
        rows = visitor.rows()
        wait_until(lambda: "about" in visitor.stored()[0]["document"]["messages"][-1])  # the browser has all of it
        assert visitor.complaints == []
        context.pages[0].close()
    shutil.rmtree(tmp_path / "uploads")
    shutil.rmtree(tmp_path / "adapters")
    with app_process(tmp_path, port=port, ready=()) as server:
        page = context.new_page()
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.goto(server.url)
        visitor.page = page
        assert "owl" in visitor.toast()  # as soon as the server knows, which is before the model is there
        page.locator(".status.ready").wait_for()
        visitor.wait_for_rows(rows)
        visitor.loaded_picture()
        assert visitor.picked == "" and errors == []
        visitor.pick("see")
        assert "no image" not in (visitor.answering(visitor.button("Retry").click) and visitor.stats())
    context.close()


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


# The browser notes each table that it shows, and what it shows in between.
WATCH = """() => {
    window.seen = [];
    new MutationObserver(() => {
        const answer = [...document.querySelectorAll('#chat [data-testid="bot"]:not(:has(.aside))')].at(-1);
        const rows = answer && [...answer.querySelectorAll('tbody > tr')].map(row => row.innerText.trim());
        const table = answer && Boolean(answer.querySelector('.json-answer table'));
        const last = JSON.stringify([table, rows]);
        if (answer && window.seen.at(-1) !== last) window.seen.push(last);
    }).observe(document.body, {childList: true, subtree: true, characterData: true});
}"""


def test_extract_answers_with_a_table_that_grows(visit: Callable[..., Visitor], tmp_path: Path) -> None:
    visitor = visit()
    page = visitor.page
    visitor.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visitor.pick("extract")
    visitor.set("Max tokens", 96)
    page.evaluate(WATCH)
    visitor.ask("Please save Maria Keller from Nordlicht Ltd, maria.keller@gmail.com")
    shown = visitor.table()
    assert shown["type"] == "person" and shown["name"] == "Maria Keller"
    # Rows are added while it is written; none is taken back, and no text stands between two tables.
    seen = [json.loads(state) for state in page.evaluate("window.seen")]
    tables = [rows for is_table, rows in seen if is_table]
    assert [is_table for is_table, _ in seen] == sorted(is_table for is_table, _ in seen) and tables
    for before, after in itertools.pairwise(tables):
        complete = [row for row in before if row != "…"]
        assert after[: len(complete)] == complete
    # Its text is behind it, is what is copied, and is what is kept.
    page.locator("#chat .json-answer summary").click()
    text = page.locator("#chat .json-answer code").inner_text()
    assert json.loads(text) == shown
    page.locator("#chat .json-answer button").click()
    page.locator("#chat .json-answer button.copied").wait_for()
    assert page.evaluate("() => navigator.clipboard.readText()") == text
    page.locator("#chat .message-row:has(.json-answer)").hover()
    page.locator('#chat .message-row:has(.json-answer) + .message-buttons [title="Copy message"]').click()
    assert page.evaluate("() => navigator.clipboard.readText()") == text
    visitor.open_conversation_panel()
    assert visitor.export(tmp_path / "c.json")["messages"][-1]["text"] == text
    visitor.reload()
    page.locator("#chat .json-answer table").wait_for()
    assert visitor.table() == shown
