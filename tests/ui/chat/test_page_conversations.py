"""Conversations in Chromium on the real base: after a reload and a restart, as a command line; the keyboard."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapter.serve.store import SHIPPED
from tests.app_process import ROOT, AppProcess, app_process, free_port, wait_until
from tests.browser import PHOTOGRAPHS, Visitor
from tests.ui.chat.test_page_storage import (
    ask_about,
    export,
    loaded_picture,
    open_conversation_panel,
    stored,
    wait_for_rows,
)
from tests.ui.compare.test_page_compare import CompareVisitor

pytestmark = [pytest.mark.slow, pytest.mark.browser]
LONG = "Tell me a very long story about a dragon, in many chapters."


def value(visitor: Visitor, label: str) -> str:
    return visitor.page.get_by_label(f"number input for {label}").input_value()


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


def test_a_reload_while_an_answer_is_written_goes_on_with_it(
    visit: Callable[..., Visitor], real_page: AppProcess
) -> None:
    visitor = visit()
    visitor.set("Max tokens", 1024)
    with real_page.steps_of(0.1):
        visitor.type(LONG)
        visitor.await_answers(1)
        wait_until(lambda: any(record["document"]["messages"][1:] for record in stored(visitor)))
        visitor.reload()
        visitor.page.locator("#box .stop-button").wait_for()
        seen = visitor.answers()[0]
        visitor.page.locator("#box .stop-button").click()
    assert len(visitor.settle()) >= len(seen) > 0 and visitor.rows()[0] == LONG and "stopped" in visitor.stats()
    visitor.page.get_by_role("button", name="Sampling").click()
    visitor.set("Max tokens", 16)
    assert visitor.ask("Thank you.") and visitor.rows()[0] == LONG
    assert visitor.page.locator("#box .submit-button").is_visible()


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


def test_keys(visit: Callable[..., Visitor], real_page: AppProcess) -> None:
    visitor = visit()
    visitor.set("Max tokens", 1024)
    visitor.box.fill("Tell me")
    visitor.box.press("Shift+Enter")
    visitor.page.keyboard.type(LONG)
    assert visitor.box.input_value() == f"Tell me\n{LONG}" and visitor.rows() == []
    with real_page.steps_of(0.1):
        visitor.box.press("Enter")
        visitor.await_answers(1)
        visitor.page.locator("h1").click()  # from anywhere
        visitor.page.keyboard.press("Escape")
        visitor.settle()
    assert "stopped" in visitor.stats()
    visitor.page.wait_for_function("() => document.activeElement === document.querySelector('#box textarea')")
    comparer = CompareVisitor(visitor, tokens=512)
    with real_page.steps_of(0.1):
        comparer.send(LONG)
        comparer.page.keyboard.press("Escape")
        comparer.settle()
    assert all("stopped" in footer for footer in comparer.footers())


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
