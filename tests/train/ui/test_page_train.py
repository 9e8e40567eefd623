"""The Train tab in a real browser: from a sample to an answer of the trained adapter, and from corrections to one.

On a tiny base, which trains in seconds.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adapter.ui.chat.chatbot import WORD_JOINER
from adapter.ui.texts import page as page_texts
from tests.app_process import app_process
from tests.browser import PHOTOGRAPHS, Visitor
from tests.tiny_models import endless_base
from train.ui import texts

pytestmark = [pytest.mark.slow, pytest.mark.browser]

LEAST = 4  # corrections, of this page: fewer than of others
PROGRAM = f"""
import runpy
import train.ui.teach
train.ui.teach.LEAST = {LEAST}
runpy.run_path("app.py", run_name="__main__")
"""


@pytest.fixture(scope="module")
def url(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("train")
    base = endless_base(tiny_folder, folder / "base")
    environment = {"LLAMA_ADAPTER_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "1"}
    with app_process(folder, "--base", str(base), program=("-c", PROGRAM), environment=environment) as server:
        yield server.url


class TrainTab:
    """The Train tab as one visitor sees it."""

    def __init__(self, visitor: Visitor) -> None:
        self.visitor, self.page = visitor, visitor.page
        self.name = self.page.get_by_label("Name", exact=True)
        self.run = self.page.locator("#train-run")
        self.open()

    def open(self) -> None:
        self.page.get_by_role("tab", name="Train").click()
        self.page.locator("#train-run .data-preview, #train-run .run").first.wait_for()

    def choose_sample(self, title: str) -> None:
        self.page.locator("#samples label", has_text=title).click()
        self.page.locator("#train-preview .records").wait_for()

    def upload(self, path: Path) -> Any:
        self.page.locator("#train-upload input[type=file]").set_input_files(path)
        preview = self.page.locator("#train-preview .data-preview:not(.empty)")
        preview.wait_for()
        return preview

    def clear_upload(self) -> None:
        self.page.locator('#train-upload [aria-label="Clear"]').click()
        self.page.get_by_text(texts.NO_DATA).wait_for()

    def button(self, key: str) -> Any:
        return self.page.locator(f"#train-{key}")

    def wait_for_command(self, part: str) -> None:
        script = "part => document.querySelector('#train-command textarea').value.includes(part)"
        self.page.wait_for_function(script, arg=part)

    def wait_for_state(self, *states: str) -> None:
        self.page.locator(", ".join(f"#train-run .run.{state}" for state in states)).first.wait_for()


def test_from_a_sample_to_an_answer_of_the_trained_adapter(visit: Callable[..., Visitor]) -> None:
    tab = TrainTab(visit())
    page = tab.page
    page.get_by_text(texts.NOTHING_YET).wait_for()
    assert tab.button("start").is_disabled()
    tab.choose_sample("butler")
    assert "30 records of text" in page.locator("#train-preview").inner_text()
    assert tab.name.input_value() == "my-butler"
    tab.name.fill("jeeves")
    tab.wait_for_command("name=jeeves")
    tab.visitor.set("Steps", 40)
    tab.button("start").click()
    tab.wait_for_state("starting")
    assert tab.button("start").is_disabled()
    # Stopped while it still loads, and gone on with.
    tab.button("stop").click()
    tab.wait_for_state("stopped")
    tab.button("go_on").click()
    tab.wait_for_state("starting")
    # The chat answers meanwhile, and the run is there again after a reload.
    page.get_by_role("tab", name="Chat").click()
    assert tab.visitor.ask("Say hello.")
    page.reload()
    page.locator(".status.ready").wait_for()
    tab.open()
    tab.wait_for_state("starting", "training", "ended")
    assert "jeeves" in tab.run.inner_text()
    tab.wait_for_state("ended")
    assert "Step 40 of 40" in tab.run.inner_text()
    assert len(page.locator("#train-run polyline.loss").get_attribute("points").split()) == 40
    before, after = (float(text) for text in page.locator("#train-run dd").all_inner_texts()[:2])
    assert after < before
    with page.expect_download() as download:
        tab.button("download").click()
    names = zipfile.ZipFile(io.BytesIO(Path(download.value.path()).read_bytes())).namelist()
    assert sorted(names) == ["jeeves/README.md", "jeeves/adapter.safetensors", "jeeves/config.json"]
    # Chat with it.
    tab.button("chat").click()
    page.locator('#picker input[value="jeeves"]:checked').wait_for()
    page.locator("#chat").wait_for()
    assert tab.visitor.box.input_value().startswith("What is the best way")
    page.locator("#chat .example").first.wait_for()
    assert tab.visitor.answering(lambda: tab.visitor.box.press("Enter"))
    assert tab.visitor.stats().startswith("jeeves · strength 1")
    assert len(tab.visitor.answers()) == 1, "it begins a conversation of its own"
    # Compare it with the base.
    tab.open()
    tab.button("compare").click()
    page.locator("#panes").wait_for()
    message = page.locator("#message textarea")
    assert message.input_value().startswith("What is the best way")
    message.press("Enter")
    page.locator("#panes .stats").nth(1).wait_for()
    page.locator("#message .submit-button").wait_for()
    base, trained = page.locator("#panes .answer-text").all_inner_texts()[:2]
    assert base and trained and base != trained
    stats = [line.partition(" ·")[0] for line in page.locator("#panes .stats").all_inner_texts()]
    assert stats == ["frozen base", "jeeves"]


def test_an_adapter_is_taught_by_chatting(visit: Callable[..., Visitor]) -> None:
    visitor = visit()
    page = visitor.page

    def correct(number: int, text: str) -> None:
        visitor.ask(f"Question {number}?")
        page.locator("#chat .bot-row").nth(-2).hover()
        page.locator('#chat [title="Say it like this"]:visible').last.click()
        page.locator("#chat textarea.edit-textarea").fill(text)
        visitor.button("Submit").click()
        page.locator("#teach summary", has_text=f"{number} correction").wait_for()

    for number in range(1, LEAST):
        correct(number, f"Yes, sir, <b> {number}.")
    assert page.locator("#teach-start").is_disabled()
    assert visitor.answers()[-1].replace(WORD_JOINER, "") == "Yes, sir, <b> 3."
    visitor.reload()
    page.locator("#teach summary", has_text="3 corrections").wait_for()
    correct(LEAST, "Yes, sir.")
    page.locator("#teach summary").click()
    assert "Yes, sir, <b> 3." in page.locator("#teach .corrections").inner_text()
    with page.expect_download() as download:
        page.get_by_role("button", name=page_texts.EXPORT_CORRECTIONS).click()
    rows = [json.loads(line) for line in Path(download.value.path()).read_text().splitlines()]
    assert [row["messages"][-1]["content"] for row in rows][-2:] == ["Yes, sir, <b> 3.", "Yes, sir."]
    page.locator("#teach-start:enabled").click()
    # The question is answered by the base, and by the adapter as it learns; a reload finds the run again.
    page.locator("#teach-run li", has_text="Before").wait_for()
    visitor.reload()
    page.locator("#teach-run li", has_text="Step").first.wait_for()
    page.locator("#teach-run .run.ended").wait_for()
    page.locator("#teach-run li", has_text="Step 60").wait_for()
    page.locator("#teach-chat").click()
    page.locator('#picker input[value="my-voice"]:checked').wait_for()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 1440
    page.get_by_role("button", name=page_texts.FORGET_CORRECTION).click()
    page.locator("#teach summary", has_text="3 corrections").wait_for()


def test_uploads_are_previewed_before_anything_is_trained(visit: Callable[..., Visitor], tmp_path: Path) -> None:
    tab = TrainTab(visit(390, 844))
    page = tab.page
    hint = page.locator("#steps .step > .hint").bounding_box()["y"]
    assert page.get_by_text("zip of pictures").bounding_box()["y"] >= hint  # nothing of it is cut off
    rows = [json.dumps({"instruction": f"Say {i}.", "output": f"{i}!"}) for i in range(12)]
    (tmp_path / "numbers.jsonl").write_text("\n".join([*rows, '{"instruction": "x"}']))
    preview = tab.upload(tmp_path / "numbers.jsonl")
    page.locator("#train-preview .records").wait_for()
    text = preview.inner_text()
    assert "13 records of text in numbers.jsonl" in text and "line 13: 'output' is missing" in text
    tab.wait_for_command("data=numbers.jsonl")
    assert tab.button("start").is_enabled()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    # A proposed name leaves with its data.
    assert tab.name.input_value() == "numbers"
    tab.clear_upload()
    assert tab.button("start").is_disabled() and tab.name.input_value() == ""
    # A zip of images, one of them without a caption, and a zip that reaches outside.
    with zipfile.ZipFile(tmp_path / "cats.zip", "w") as archive:
        archive.write(PHOTOGRAPHS / "cheetah1.jpg", "nameless.jpg")
        for i in range(5):
            archive.write(PHOTOGRAPHS / "cheetah1.jpg", f"{i}.jpg")
            archive.writestr(f"{i}.txt", "a cheetah")
    tab.upload(tmp_path / "cats.zip")
    page.locator("#train-preview img").nth(4).wait_for()
    assert page.locator("#train-preview li", has_text="nameless.jpg").is_visible()
    assert tab.name.input_value() == "cats"
    tab.wait_for_command("vision.projection=global")
    tab.clear_upload()
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../evil.txt", "x")
    assert "outside of itself" in tab.upload(tmp_path / "evil.zip").inner_text()
    assert tab.button("start").is_disabled()
    # A taken name blocks Start, says why, and stays in its field.
    page.locator('#train-upload [aria-label="Clear"]').click()
    tab.choose_sample("butler")
    tab.name.fill("pirate")
    page.locator("#train-takes", has_text="already").wait_for()
    page.locator("#train-start:disabled").wait_for()
    assert tab.name.input_value() == "pirate"
    tab.name.fill("mine")
    page.locator("#train-start:enabled").wait_for()
    # Rows are typed, after the template.
    with page.expect_download() as download:
        page.locator("a.template").click()
    download.value.save_as(tmp_path / "template.csv")
    tab.upload(tmp_path / "template.csv")
    page.locator("#train-preview", has_text="3 records").wait_for()  # which are too few
    tab.clear_upload()
    page.locator("#train-rows button.label-wrap").click()
    for row in range(4):
        for column, text in enumerate((f"Say {row}.", f"{row}!")):
            page.locator(f'#train-rows [data-row="{row}"][data-col="{column}"]').dblclick()
            page.locator("#train-rows [role=grid] textarea").fill(text)
            page.keyboard.press("Enter")
    page.get_by_role("button", name=texts.USE_ROWS).click()
    page.locator("#train-preview .records").wait_for()
    preview = page.locator("#train-preview").inner_text()
    assert "4 records of text in typed-rows.jsonl" in preview and "Say 3." in preview and "4 are few" in preview
    page.locator("#train-start:enabled").wait_for()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
