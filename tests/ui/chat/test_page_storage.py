"""The browser's storage, files and links in Chromium, over a fake engine."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapter.errors import Busy
from adapter.ui.chat import conversation_json
from adapter.ui.texts import page as texts
from tests.app_process import PATIENCE, wait_until
from tests.browser import PHOTOGRAPHS, Visitor
from tests.ui.fake_page import GatedEngine, closed_gate, runs_folder, url

__all__ = ["closed_gate", "runs_folder", "url"]  # fixtures
pytestmark = [pytest.mark.slow, pytest.mark.browser]


def test_each_tab_keeps_its_own_conversation_and_a_new_one_has_the_newest(
    visit: Callable[..., Visitor], url: str
) -> None:
    one = visit()
    one.pick("see")
    one.ask_about(PHOTOGRAPHS / "cheetah1.jpg", "What is this?")
    two = Visitor(one.context, url)
    two.wait_for_rows(one.rows())  # what was changed last
    one.ask("And now?")
    two.reload()
    two.wait_for_rows(one.rows())  # a tab that has changed nothing has no conversation of its own
    two.clear()
    two.ask_about(PHOTOGRAPHS / "logo.png", "And this?")
    for tab in (one, two):
        rows = tab.rows()
        tab.reload()
        tab.wait_for_rows(rows)
    assert one.rows() != two.rows() and two.complaints == []
    one.page.get_by_role("button", name="Sampling").click()
    one.ask("And good night.")
    three = Visitor(one.context, url)
    three.wait_for_rows(one.rows())
    assert three.loaded_picture() == one.loaded_picture()


def test_a_full_storage_keeps_what_it_has_and_says_so(browser: Any, url: str) -> None:
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    # Before the first use: Chromium remembers the quota for a while.
    quota = {"origin": url.rstrip("/"), "quotaSize": 120_000}
    context.new_cdp_session(context.new_page()).send("Storage.overrideQuotaForOrigin", quota)
    visitor = Visitor(context, url)
    visitor.ask("Good morning.")
    for number in range(12):
        kept = visitor.rows()
        assert visitor.ask(f"{number} {'?' * 19_000}")
        if visitor.page.get_by_test_id("toast-body").count():
            break
    assert texts.STORAGE_FULL in visitor.toast() and visitor.complaints == []
    visitor.reload()
    wait_until(lambda: visitor.rows()[:3] == kept[:3])
    context.close()


def test_without_any_storage_the_page_works(browser: Any, url: str) -> None:
    context = browser.new_context()
    context.add_init_script(
        """for (const name of ["localStorage", "sessionStorage", "indexedDB"])
            Object.defineProperty(window, name,
                { configurable: true, get() { throw new DOMException("no", "SecurityError"); } })"""
    )
    visitor = Visitor(context, url)
    assert visitor.ask("Good morning.")
    visitor.new_conversation()
    assert visitor.ask("Good evening.")
    visitor.open_list()
    visitor.page.get_by_text(texts.NOTHING_IS_KEPT).wait_for()
    visitor.page.locator("#conversations li").get_by_text("Good morning.").click()
    visitor.page.locator("#chat").get_by_text("you said: Good morning.!").wait_for()
    assert visitor.complaints == []
    context.close()


def test_broken_storage_is_an_empty_conversation(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    visitor.ask("Good morning.")
    visitor.page.evaluate(
        """() => new Promise(done => {
            [localStorage, sessionStorage].forEach(
                storage => Object.keys(storage).forEach(key => storage.setItem(key, '{broken')));
            indexedDB.open("llama-adapter").onsuccess = ({ target: { result } }) => {
                const put = result.transaction("conversations", "readwrite").objectStore("conversations");
                const messages = [null, 7, { role: "user", text: [] }];
                const document = { format: "llama-adapter conversation", version: 2, messages };
                put.put({ id: "{broken", document }).onsuccess = done;
            };
        })"""
    )
    visitor.reload()
    visitor.page.get_by_text("cannot be read any more").first.wait_for()
    visitor.open_list()
    assert visitor.page.locator("#conversations li").count() == 2
    visitor.page.keyboard.press("Escape")
    assert visitor.ask("Good evening.")
    # Gradio notes each broken BrowserState in the console and goes on with its default.
    visitor.complaints[:] = [c for c in visitor.complaints if not c.startswith("Error reading from localStorage:")]


def test_a_file_is_exported_and_imported_and_what_an_earlier_version_stored_is_taken_over_once(
    visit: Callable[..., Visitor], tmp_path: Path
) -> None:
    visitor = visit()
    visitor.ask("Why is the sky blue?")
    visitor.pick("see")
    visitor.ask_about(PHOTOGRAPHS / "cheetah1.jpg", "What is this?")
    rows = visitor.rows()
    visitor.open_conversation_panel()
    file = tmp_path / "a.json"
    found = visitor.export(file)
    assert [m["role"] for m in found["messages"]] == ["user", "assistant", "user", "user", "assistant"]
    assert found["version"] == 2 and found["settings"]["adapter"] == "see"
    assert found["pictures"][found["messages"][2]["picture"]].startswith("data:image/jpeg;base64,")
    assert found["messages"][4]["record"]["adapter"] == "see"
    visitor.clear()
    visitor.pick("poet")
    visitor.import_file(file)
    visitor.wait_for_rows(rows)
    assert visitor.picked == "see" and visitor.loaded_picture()
    assert visitor.export(tmp_path / "b.json") == found
    # A file that is refused is a toast and changes nothing.
    head = {"format": "llama-adapter conversation", "version": 1}
    for number, (text, sentence) in enumerate(
        [
            ("{", "not JSON"),
            (json.dumps({**head, "version": 9}), "version"),
            (json.dumps({**head, "messages": [{"role": "user", "picture": "/etc/hosts"}]}), "data URL"),
        ]
    ):
        (tmp_path / f"{number}.json").write_text(text)
        visitor.import_file(tmp_path / f"{number}.json")
        assert sentence in visitor.toast()
        wait_until(lambda: visitor.rows() == rows)
    visitor.reload()
    visitor.wait_for_rows(rows)
    pictures = found.pop("pictures")
    visitor = visit()
    visitor.page.evaluate(
        """([words, pictures]) => [localStorage, sessionStorage].forEach(storage => {
            storage.setItem("llama-adapter:words", JSON.stringify(words));
            storage.setItem("llama-adapter:pictures", JSON.stringify(pictures));
        })""",
        [found, pictures],
    )
    for _ in range(2):
        visitor.reload()
        visitor.wait_for_rows(rows)
    assert visitor.loaded_picture()
    visitor.open_list()
    assert visitor.page.locator("#conversations li").count() == 1


def test_a_link_opens_elsewhere_and_replaces_nothing_until_one_goes_on(
    visit: Callable[..., Visitor], tmp_path: Path, closed_gate: GatedEngine
) -> None:
    closed_gate.gate.set()
    sender = visit()
    sender.pick("see")
    sender.set("Strength", 0.5)
    sender.ask_about(PHOTOGRAPHS / "cheetah1.jpg", "What is this?")
    sender.open_conversation_panel()
    link = sender.copy_link()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/#chat=[\w-]+", link)
    rows = [texts.PICTURE_NOT_SENT, *sender.rows()[1:]]
    address = link.partition("#")[0]

    reader = visit()
    reader.ask("Good morning.")
    own = reader.rows()
    reader.page.goto(link)  # only the part after # is another one
    reader.wait_for_rows(rows)
    assert "came with the link" in reader.toast()
    reader.page.locator('#picker input[value="see"]:checked').wait_for()
    assert reader.page.get_by_label("number input for Strength").input_value() == "0.5"
    reader.page.goto(address)
    reader.wait_for_rows(own)
    reader.page.goto(link)
    reader.wait_for_rows(rows)
    reader.toast()
    closed_gate.gate.clear()
    reader.type("And the sea?")
    reader.page.wait_for_url(address)  # while it is being answered
    closed_gate.gate.set()
    reader.await_answers(2)
    reader.settle()
    gone_on = reader.rows()
    assert gone_on[: len(rows)] == rows
    reader.reload()
    reader.wait_for_rows(gone_on)
    reader.page.goto(f"{address}#chat=broken")
    assert "no conversation" in reader.toast() and reader.rows() == []
    # A file that is brought in is the reader's own, and leaves the link.
    reader.open_conversation_panel()
    sender.export(tmp_path / "own.json")
    reader.import_file(tmp_path / "own.json")
    reader.wait_for_rows(sender.rows())
    reader.page.wait_for_url(address)
    reader.reload()
    reader.wait_for_rows(sender.rows())
    assert not [u for u in reader.requested if "chat=" in u]


def test_a_message_during_the_restore_waits_for_it(
    visit: Callable[..., Visitor], monkeypatch: pytest.MonkeyPatch
) -> None:
    visitor = visit()
    visitor.ask("Good morning.")
    rows = visitor.rows()
    restore, gate = conversation_json.from_browser, threading.Event()
    monkeypatch.setattr(
        conversation_json, "from_browser", lambda *stored: gate.wait(PATIENCE) and restore(*stored)
    )
    visitor.page.reload()
    visitor.page.locator(".status.ready").wait_for()
    visitor.type("And now?")
    assert visitor.box.input_value() == "And now?" and visitor.rows() == []
    gate.set()
    visitor.await_answers(2)
    visitor.settle()
    gone_on = visitor.rows()
    assert gone_on[: len(rows)] == rows
    visitor.reload()
    visitor.wait_for_rows(gone_on)


def test_a_failed_answer_leaves_the_adapter_that_was_chosen_meanwhile(
    visit: Callable[..., Visitor], closed_gate: GatedEngine
) -> None:
    visitor = visit()
    visitor.pick("poet")
    for choice in ("see", "poet"):
        closed_gate.gate.clear()
        closed_gate.error = Busy("Pulled.")
        visitor.type("Good morning.")
        visitor.await_answers(1)
        visitor.pick(choice)
        closed_gate.gate.set()
        assert "Pulled." in visitor.toast()
        wait_until(lambda: visitor.rows() == [] and visitor.box.input_value() == "Good morning.")
        assert visitor.picked == choice
    # What the answer itself has chosen is put back.
    closed_gate.gate.clear()
    visitor.page.get_by_label("What is this animal?").click()
    visitor.await_answers(1)
    assert visitor.picked == "see"
    closed_gate.gate.set()
    assert "Pulled." in visitor.toast()
    visitor.page.locator('#picker input[value="poet"]:checked').wait_for()


def test_clear_while_an_answer_is_written(visit: Callable[..., Visitor], closed_gate: GatedEngine) -> None:
    visitor = visit()
    visitor.type("Good morning.")
    visitor.await_answers(1)
    visitor.clear()
    closed_gate.gate.set()
    visitor.page.locator("#box .submit-button").wait_for()
    assert visitor.ask("And now?") == "you said: And now?!" and len(visitor.answers()) == 1
    rows = visitor.rows()
    visitor.reload()
    visitor.wait_for_rows(rows)
