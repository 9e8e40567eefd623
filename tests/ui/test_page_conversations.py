"""A conversation beyond the open page, in Chromium on the real base: after a reload and a restart, as a file, a
link and a command line; the keyboard, dividers and the camera.
"""

from __future__ import annotations

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
from tests.app_process import ROOT, app_process, free_port
from tests.browser import CHROMIUM, PHOTOGRAPHS, QUIET, Visitor
from tests.ui.test_page_compare import CompareVisitor

pytestmark = [pytest.mark.slow, pytest.mark.browser]
LONG = "Tell me a very long story about a dragon, in many chapters."


def open_conversation_panel(visitor: Visitor) -> None:
    visitor.page.get_by_role("button", name=texts.THIS_CONVERSATION).click()
    visitor.page.get_by_role("button", name=texts.EXPORT).wait_for()


def value(visitor: Visitor, label: str) -> str:
    return visitor.page.get_by_label(f"number input for {label}").input_value()


def clear(visitor: Visitor) -> None:
    visitor.page.locator('#chat [title="Clear"]').click()
    visitor.page.locator("#chat .example").first.wait_for()


def wait_for_rows(visitor: Visitor, rows: list[str]) -> None:
    expected = (
        "rows => JSON.stringify([...document.querySelectorAll('#chat .message')].map(e => e.innerText.trim())"
    )
    visitor.page.wait_for_function(f"{expected}) === JSON.stringify(rows)", arg=[row.strip() for row in rows])


def export(visitor: Visitor, to: Path) -> dict[str, Any]:
    with visitor.page.expect_download() as download:
        visitor.page.get_by_role("button", name=texts.EXPORT).click()
    assert download.value.suggested_filename == "conversation.json"
    download.value.save_as(to)
    return json.loads(to.read_text(encoding="utf-8"))


def import_file(visitor: Visitor, file: Path) -> None:
    visitor.page.locator("#this-conversation input[type=file]").set_input_files(file)


def ask_about(visitor: Visitor, picture: Path, question: str) -> str:
    visitor.attach(picture)
    return visitor.ask(question)


def loaded_picture(visitor: Visitor) -> str:
    """The address of the conversation's picture, once it is shown."""
    picture = visitor.page.locator("#chat .user-row img")
    picture.wait_for()
    assert picture.evaluate("async e => { await e.decode(); return e.naturalWidth; }") > 100
    return picture.get_attribute("src")


# Reload.


def test_a_reload_restores_text_picture_settings_and_the_same_answer(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    visitor.pick("see")
    visitor.set("Strength", 0.9)
    visitor.set("Temperature", 1.2)
    visitor.page.get_by_label("Seed").fill("5")
    answer = ask_about(visitor, PHOTOGRAPHS / "cheetah1.jpg", "What is this?")
    rows, picture = visitor.rows(), loaded_picture(visitor)
    visitor.reload()
    wait_for_rows(visitor, rows)
    assert visitor.picked == "see" and loaded_picture(visitor) == picture
    visitor.page.get_by_role("button", name="Sampling").click()
    assert [value(visitor, label) for label in ("Strength", "Temperature", "Max tokens")] == ["0.9", "1.2", "16"]
    assert visitor.page.get_by_label("Seed").input_value() == "5"
    assert visitor.answering(visitor.button("Retry").click) == answer
    assert "no image" not in visitor.stats()
    visitor.button("Undo").click()
    visitor.page.locator("#chat .example").first.wait_for()
    visitor.reload()
    assert visitor.rows() == []


def test_a_reload_while_an_answer_is_written_keeps_its_text(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    visitor.set("Max tokens", 1024)
    visitor.type(LONG)
    visitor.await_answers(1)
    visitor.page.wait_for_function("() => localStorage.getItem('llama-adapter:words')?.length > 1000")
    visitor.reload()
    visitor.page.get_by_text(texts.CUT_OFF).first.wait_for()
    assert visitor.rows()[0] == LONG
    visitor.page.get_by_role("button", name="Sampling").click()
    visitor.set("Max tokens", 16)
    assert visitor.ask("Thank you.") and visitor.rows()[0] == LONG
    assert visitor.page.locator("#box .submit-button").is_visible()


def test_each_tab_keeps_its_own_conversation(visit: Callable[..., Visitor], url: str) -> None:
    one = visit()
    one.ask("Good morning.")
    two = Visitor(one.context, url)
    wait_for_rows(two, one.rows())  # what was changed last
    one.ask("And now?")
    two.reload()
    wait_for_rows(two, one.rows())  # a tab that has changed nothing has no conversation of its own
    clear(two)
    two.ask("Why is the sky blue?")
    for tab in (one, two):
        rows = tab.rows()
        tab.reload()
        wait_for_rows(tab, rows)
    assert one.rows() != two.rows() and two.complaints == []
    one.page.get_by_role("button", name="Sampling").click()
    one.ask("And good night.")
    three = Visitor(one.context, url)
    wait_for_rows(three, one.rows())


def test_a_restart_without_uploads_and_with_fewer_adapters(browser: Any, tmp_path: Path) -> None:
    port = free_port()
    shutil.copytree(SHIPPED / "see", tmp_path / "adapters" / "owl")
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    with app_process(tmp_path, "--adapters", str(tmp_path / "adapters"), port=port) as server:
        visitor = Visitor(context, server.url)
        visitor.pick("owl")
        ask_about(visitor, PHOTOGRAPHS / "cheetah1.jpg", "What is this?")
        rows = visitor.rows()
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
        wait_for_rows(visitor, rows)
        loaded_picture(visitor)
        assert visitor.picked == "" and errors == []
        visitor.pick("see")
        assert "no image" not in (visitor.answering(visitor.button("Retry").click) and visitor.stats())
    context.close()


def test_a_full_storage_breaks_nothing(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    visitor.page.evaluate(
        """() => {
            for (let size = 1 << 22; size; size >>= 1)
                for (let n = 0; n < 3; n++)
                    try { localStorage.setItem(`theirs${size}-${n}`, "x".repeat(size)); } catch {}
        }"""
    )
    visitor.pick("see")
    assert ask_about(visitor, PHOTOGRAPHS / "cheetah1.jpg", "What is this?")
    assert visitor.toast() and visitor.answers()
    visitor.reload()
    assert visitor.complaints == []


def test_without_any_storage_the_page_works(browser: Any, url: str) -> None:
    context = browser.new_context()
    context.add_init_script(
        """Object.defineProperty(window, "localStorage",
            { configurable: true, get() { throw new DOMException("no", "SecurityError"); } })"""
    )
    visitor = Visitor(context, url)
    assert visitor.ask("Good morning.") and visitor.complaints == []
    context.close()


def test_broken_storage_is_an_empty_conversation(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    visitor.ask("Good morning.")
    visitor.page.evaluate("() => Object.keys(localStorage).forEach(key => localStorage.setItem(key, '{broken'))")
    visitor.reload()
    assert visitor.rows() == [] and visitor.ask("Good evening.")


# Files and links.


def test_export_clear_import(visit: Callable[..., Visitor], tmp_path: Path) -> None:
    visitor = visit()
    visitor.ask("Why is the sky blue?")
    visitor.pick("see")
    ask_about(visitor, PHOTOGRAPHS / "cheetah1.jpg", "What is this?")
    rows = visitor.rows()
    open_conversation_panel(visitor)
    file = tmp_path / "talk.json"
    found = export(visitor, file)
    assert [m["role"] for m in found["messages"]] == ["user", "assistant", "user", "user", "assistant"]
    assert found["version"] == 1 and found["settings"]["adapter"] == "see"
    assert found["messages"][2]["picture"].startswith("data:image/jpeg;base64,")
    assert found["messages"][4]["record"]["adapter"] == "see"
    clear(visitor)
    visitor.pick("pirate")
    import_file(visitor, file)
    wait_for_rows(visitor, rows)
    assert visitor.picked == "see" and loaded_picture(visitor)
    assert export(visitor, tmp_path / "again.json") == found
    visitor.reload()
    wait_for_rows(visitor, rows)


def test_an_invalid_import_is_a_toast_and_changes_nothing(visit: Callable[..., Visitor], tmp_path: Path) -> None:
    visitor = visit()
    visitor.ask("Good morning.")
    rows = visitor.rows()
    open_conversation_panel(visitor)
    head = {"format": "llama-adapter conversation", "version": 1}
    wrong = [
        ("{", "not JSON"),
        (json.dumps({**head, "version": 9}), "version"),
        (json.dumps({**head, "messages": [{"role": "user", "picture": "/etc/hosts"}]}), "data URL"),
        (json.dumps({**head, "messages": [{"role": "user", "picture": "data:image/png;base64,AAAA"}]}), "picture"),
    ]
    for number, (text, words) in enumerate(wrong):
        file = tmp_path / f"{number}.json"
        file.write_text(text)
        import_file(visitor, file)
        assert words in visitor.toast()
        assert visitor.rows() == rows


def test_a_link_opens_elsewhere_and_replaces_nothing_until_one_goes_on(
    visit: Callable[..., Visitor], tmp_path: Path
) -> None:
    sender = visit()
    sender.context.grant_permissions(["clipboard-read", "clipboard-write"])
    sender.ask("Why is the sky blue?")
    rows = sender.rows()
    open_conversation_panel(sender)
    sender.page.get_by_role("button", name=texts.COPY_LINK).click()
    assert "Link copied" in sender.toast()
    link = sender.page.evaluate("() => navigator.clipboard.readText()")
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/#chat=[\w-]+", link)

    reader = visit()
    reader.ask("Good morning.")
    own = reader.rows()
    reader.page.goto(link)  # only the part after # is another one
    wait_for_rows(reader, rows)
    assert "came with the link" in reader.toast()
    reader.page.goto(link.partition("#")[0])
    wait_for_rows(reader, own)
    reader.page.goto(link)
    wait_for_rows(reader, rows)
    reader.toast()
    reader.page.get_by_role("button", name="Sampling").click()
    assert reader.ask("And the sea?")
    assert reader.page.url == link.partition("#")[0]
    gone_on = reader.rows()
    assert gone_on[: len(rows)] == rows
    reader.reload()
    wait_for_rows(reader, gone_on)
    reader.page.goto(link.partition("#")[0] + "#chat=broken")
    assert "no conversation" in reader.toast()
    wait_for_rows(reader, gone_on)
    # A file that is brought in is the reader's own, and leaves the link.
    open_conversation_panel(reader)
    export(reader, tmp_path / "own.json")
    reader.page.goto(link)
    wait_for_rows(reader, rows)
    reader.toast()
    open_conversation_panel(reader)
    import_file(reader, tmp_path / "own.json")
    wait_for_rows(reader, gone_on)
    reader.page.wait_for_url(link.partition("#")[0])
    reader.reload()
    wait_for_rows(reader, gone_on)
    assert not [u for u in reader.requested if "chat=" in u]


# Keys, dividers, camera.


def test_keys(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    visitor.set("Max tokens", 1024)
    visitor.box.fill("Tell me")
    visitor.box.press("Shift+Enter")
    visitor.page.keyboard.type(LONG)
    assert visitor.box.input_value() == f"Tell me\n{LONG}" and visitor.rows() == []
    visitor.box.press("Enter")
    visitor.await_answers(1)
    visitor.page.locator("h1").click()  # from anywhere
    visitor.page.keyboard.press("Escape")
    visitor.settle()
    assert "stopped" in visitor.stats()
    visitor.page.wait_for_function("() => document.activeElement === document.querySelector('#box textarea')")
    comparer = CompareVisitor(visitor, tokens=512)
    comparer.send(LONG)
    comparer.page.keyboard.press("Escape")
    comparer.settle()
    assert all("stopped" in footer for footer in comparer.footers())


def test_dividers_through_retry_edit_and_undo(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    dividers = visitor.page.locator("#chat .divider")
    visitor.ask("Why is the sky blue?")
    visitor.pick("pirate")
    visitor.ask("And the sea?")
    assert dividers.all_inner_texts() == ["pirate"] and visitor.rows()[3] == "pirate"
    visitor.pick("")
    visitor.answering(visitor.button("Retry").click)
    assert dividers.count() == 0
    visitor.pick("extract")
    visitor.answering(visitor.button("Retry").click)
    assert dividers.all_inner_texts() == ["extract"]
    visitor.page.locator("#chat .user-row").last.hover()
    visitor.button("Edit").click()
    visitor.page.locator("#chat textarea.edit-textarea").fill("And the moon?")
    visitor.pick("pirate")
    visitor.answering(visitor.button("Submit").click)
    assert dividers.all_inner_texts() == ["pirate"] and len(visitor.answers()) == 2
    visitor.button("Undo").click()
    dividers.wait_for(state="detached")
    assert visitor.box.input_value() == "And the moon?" and len(visitor.rows()) == 3


def test_the_camera_takes_a_picture(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    visitor.attach(PHOTOGRAPHS / "cheetah1.jpg")  # the box holds one picture: the new one
    visitor.page.get_by_label(texts.TAKE_PICTURE).first.click()
    visitor.page.wait_for_function("() => document.querySelector('#camera video').videoWidth > 0")
    visitor.page.get_by_role("button", name=texts.TAKE, exact=True).click()
    visitor.page.locator('#box .thumbnail-item img[src*="camera"]').wait_for()
    assert visitor.page.locator("#box .thumbnail-item").count() == 1
    assert visitor.page.evaluate("() => document.querySelector('#camera video').srcObject.active") is False
    visitor.pick("see")
    assert visitor.ask("What is this?") and loaded_picture(visitor)


@pytest.mark.parametrize(("secure", "words"), [(True, texts.NO_CAMERA), (False, texts.CAMERA_INSECURE)])
def test_no_camera_is_a_sentence(browser: Any, url: str, secure: bool, words: str) -> None:
    bare = browser.browser_type.launch(executable_path=CHROMIUM, args=QUIET)  # without the camera of the tests
    context = bare.new_context(permissions=["camera"])
    if not secure:  # as on http elsewhere than on localhost
        context.add_init_script("Object.defineProperty(navigator, 'mediaDevices', { value: undefined })")
    visitor = Visitor(context, url)
    visitor.page.get_by_label(texts.TAKE_PICTURE).first.click()
    visitor.page.get_by_text(words).wait_for()
    visitor.page.keyboard.press("Escape")
    visitor.page.locator("#camera dialog").wait_for(state="hidden")
    assert visitor.complaints == []
    bare.close()


# The command line.


def test_the_command_line_reproduces_the_answer(visit: Callable[..., Visitor], tmp_path: Path) -> None:
    visitor = visit()
    open_conversation_panel(visitor)
    visitor.pick("pirate")
    visitor.set("Temperature", 1)
    visitor.set("Max tokens", 32)

    def run() -> str:
        line = visitor.page.locator("#code textarea").input_value()
        command = shlex.split(line)
        assert command[0] == "python"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, *command[1:]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    alone = visitor.ask('It\'s "raining" & 5 > 3; what $now?')
    assert " ".join(run().split()) == " ".join(alone.split())
    visitor.pick("see")
    seen = ask_about(visitor, PHOTOGRAPHS / "cheetah1.jpg", "What is this?")
    export(visitor, tmp_path / "conversation.json")
    assert " ".join(run().split()) == " ".join(seen.split())
