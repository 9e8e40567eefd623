"""The Train tab in a real browser: from a sample to an answer of the trained adapter, and from corrections to one.

The page runs in this process on a tiny base. The trainer is the real one once, and otherwise a stub.
"""

import hashlib
import io
import json
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import app
from adapter.base.llama import load_base
from adapter.method.checkpoint import save_adapter
from adapter.serve.engine import Engine
from adapter.serve.store import SHIPPED, AdapterStore
from adapter.server.generation import AdapterCatalog
from adapter.ui.chat.chatbot import WORD_JOINER
from adapter.ui.texts import page as page_texts
from tests.app_process import PATIENCE, wait_until
from tests.browser import TWO_FRAMES, Visitor
from tests.fake_engine import ReadyProvider
from tests.tiny_models import endless_base, random_adapter
from tests.train.ui.test_data_upload import write_zip
from tests.ui.fake_page import served
from train.ui import events, preview, texts
from train.ui.runs import TrainingRuns

pytestmark = [pytest.mark.slow, pytest.mark.browser]
# In place of the trainer: saves the adapter of the folder beside its run at step 10, and ends.
STUB = """
import pathlib, shutil, sys, time
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
(out / "metrics.jsonl").write_text('{"step": 10, "loss": 1, "seconds": 1, "evaluation_seconds": 1}\\n')
shutil.copytree(out.parent.parent / "trained", out, dirs_exist_ok=True)
(out / "state.pt").touch()
while not (out.parent.parent / "go").exists():
    time.sleep(0.01)
(out / "README.md").write_text("# taught")
(out / "state.pt").unlink()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def url(folder: Path, tiny_folder: Path) -> Iterator[str]:
    base = load_base(str(endless_base(tiny_folder, folder / "base")), quantization="none")
    save_adapter(random_adapter(base.fingerprint), folder / "trained")
    runs = TrainingRuns(folder / "runs")
    store, catalog = AdapterStore(runs.folder, SHIPPED), AdapterCatalog()
    catalog.bind(store)  # as the program: what is shipped is there from the beginning
    with pytest.MonkeyPatch.context() as patch, closing(Engine(base, store)) as engine:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(events, "LEAST", 2)  # corrections
        build = partial(app.build_page, ReadyProvider(engine), catalog, runs=runs, base=str(folder / "base"))
        (folder / "uploads").mkdir()
        with served(build, folder / "uploads") as address:
            yield address
        runs.close()


class TrainTab:
    """The Train tab as one visitor sees it."""

    def __init__(self, visitor: Visitor) -> None:
        self.visitor, self.page = visitor, visitor.page
        self.name = self.page.get_by_label("Name", exact=True)
        self.run = self.page.locator("#train-run")
        self.preview = self.page.locator("#train-preview")
        self.open()

    def open(self) -> None:
        self.page.get_by_role("tab", name="Train").click()
        self.page.locator("#train-run .data-preview, #train-run .run").first.wait_for()

    def button(self, key: str, state: str = "") -> Any:
        return self.page.locator(f"#train-{key}{state}")


def test_from_a_sample_to_an_answer_of_the_trained_adapter(visit, folder):
    tab = TrainTab(visit())
    page = tab.page
    page.locator("#samples label", has_text="butler").click()
    page.locator("#train-preview .records").wait_for()
    wait_until(lambda: tab.name.input_value() == "my-butler" and "30 records of text" in tab.preview.inner_text())
    tab.name.fill("jeeves")
    wait_until(lambda: "name=jeeves" in page.locator("#train-command textarea").input_value())
    tab.visitor.set("Steps", 10)
    tab.button("start", ":enabled").click()
    page.locator("#train-run .run.starting").wait_for()
    tab.button("start", ":disabled").wait_for()
    # Whoever started it has a secret that all tabs of the browser share.
    secret = page.evaluate("() => localStorage.getItem('llama-adapter:owner')")
    owner = json.loads((folder / "runs/jeeves/run.json").read_text())["owner"]
    assert owner == hashlib.sha256(secret.encode()).hexdigest()
    # The chat answers meanwhile, and the run is there again after a reload.
    page.get_by_role("tab", name="Chat").click()
    assert tab.visitor.ask("Say hello.")
    tab.visitor.reload()
    tab.open()
    page.locator("#train-run .run.ended").wait_for()
    assert "jeeves" in tab.run.inner_text() and "Step 10 of 10" in tab.run.inner_text()
    assert len(page.locator("#train-run polyline.loss").get_attribute("points").split()) == 10
    before, after = map(float, re.findall(r"([0-9.]+) (?:before|after)", tab.run.inner_text()))
    assert after < before
    # What its question was answered before and after.
    page.locator("#train-run li", has_text="Step 10").wait_for()
    assert "Before" in page.locator("#train-run li").first.inner_text()
    with page.expect_download() as download:
        tab.button("download").click()
    names = zipfile.ZipFile(io.BytesIO(Path(download.value.path()).read_bytes())).namelist()
    assert sorted(names) == ["jeeves/README.md", "jeeves/adapter.safetensors", "jeeves/config.json"]
    # Chat with it.
    tab.button("chat").click()
    page.locator('#picker input[value="jeeves"]:checked').wait_for()
    page.locator("#chat .example").first.wait_for()
    assert tab.visitor.box.input_value().startswith("What is the best way")
    assert tab.visitor.answering(lambda: tab.visitor.box.press("Enter"))
    assert tab.visitor.stats().startswith("jeeves · strength 1")
    assert len(tab.visitor.answers()) == 1, "it begins a conversation of its own"


def test_an_adapter_is_taught_by_chatting(visit, folder, monkeypatch):
    monkeypatch.setattr(preview, "MIN_RECORDS", 2)
    start = subprocess.Popen
    stub = [sys.executable, "-c", STUB]
    monkeypatch.setattr(
        "train.ui.runs.subprocess.Popen", lambda command, **more: start([*stub, *command[1:]], **more)
    )
    visitor = visit(late=400)
    tab, page = TrainTab(visitor), visitor.page
    page.get_by_role("tab", name="Chat").click()

    def correct(number: int, text: str) -> None:
        visitor.ask(f"Question {number}?")
        page.locator("#chat .bot-row").nth(-2).hover()
        page.locator('#chat [title="Say it like this"]:visible').last.click()
        page.locator("#chat textarea.edit-textarea").fill(text)
        visitor.button("Submit").click()
        page.locator("#teach summary", has_text=f"{number} correction").wait_for()

    correct(1, "Yes, sir, <b> 1.")
    assert page.locator("#teach-start").is_disabled()
    assert visitor.answers()[-1].replace(WORD_JOINER, "") == "Yes, sir, <b> 1."
    visitor.reload()
    visitor.await_answers(1)
    correct(2, "Yes, sir.")
    page.locator("#teach summary").click()
    assert "Yes, sir, <b> 1." in page.locator("#teach .corrections").inner_text()
    with page.expect_download() as download:
        page.get_by_role("button", name=page_texts.EXPORT_CORRECTIONS).click()
    rows = [json.loads(line) for line in Path(download.value.path()).read_text().splitlines()]
    assert [row["messages"][-1]["content"] for row in rows] == ["Yes, sir, <b> 1.", "Yes, sir."]
    page.locator("#teach-start:enabled").click()
    tab.button("start", ":enabled").click()
    # The question is answered by the base, and by the adapter as it learns; a reload finds the run again.
    page.locator("#train-run li", has_text="Before").wait_for()
    visitor.reload()
    tab.open()
    page.locator("#train-run li", has_text="Step 10").wait_for()
    wait_until(lambda: tab.button("start").is_disabled() and tab.button("chat").inner_text() == texts.TRY)
    (folder / "go").touch()
    page.locator("#train-run .run.ended").wait_for()
    tab.button("chat").click()
    page.locator('#picker input[value="my-voice"]:checked').wait_for()
    page.get_by_role("button", name=page_texts.FORGET_CORRECTION).click()
    page.locator("#teach summary", has_text="1 correction").wait_for()


def test_uploads_and_typed_rows_are_previewed_on_a_phone(visit, tmp_path, monkeypatch):
    tab = TrainTab(visit(390, 844))
    page = tab.page
    rows = [json.dumps({"instruction": f"Say {i}.", "output": f"{i}!"}) for i in range(12)]
    file = write_zip(tmp_path / "numbers.zip", {"a/b.jsonl": "\n".join([*rows, '{"instruction": "x"}']).encode()})
    page.locator("#train-upload input[type=file]").set_input_files(file)
    page.locator("#train-preview .data-preview:not(.empty)").wait_for()
    text = tab.preview.inner_text()
    assert "13 records of text in numbers.zip" in text and "line 13: 'output' is missing" in text
    assert " data=a/b.jsonl " in page.locator("#train-command textarea").input_value()
    wait_until(lambda: tab.button("start").is_enabled() and tab.name.input_value() == "numbers")
    page.locator('#train-upload [aria-label="Clear"]').click()
    page.get_by_text(texts.NO_DATA).wait_for()
    wait_until(lambda: tab.button("start").is_disabled() and tab.name.input_value() == "")  # it was proposed
    page.locator("#train-rows button.label-wrap").click()
    page.evaluate(TWO_FRAMES)  # in which Gradio gives a field that was hidden its first value again
    # Typed with the keys of the page in them, and pasted from a table.
    page.locator("#train-rows textarea").press_sequentially("What? / Say 0. => 0!\n")
    assert not page.locator("dialog[open]").count()
    pasted = page.locator("#train-rows textarea").input_value() + "\n".join(f"Say {i}.\t{i}!" for i in (1, 2, 3))
    page.locator("#train-rows textarea").fill(pasted)
    page.reload()
    TrainTab(tab.visitor)
    page.locator("#train-rows button.label-wrap").click()
    page.evaluate(TWO_FRAMES)
    assert page.locator("#train-rows textarea").input_value() == pasted
    page.get_by_role("button", name=texts.USE_ROWS).click()
    page.locator("#train-preview .records").wait_for()
    text = tab.preview.inner_text()
    assert "4 records of text in typed-rows.jsonl" in text and "Say 3." in text and "4 are few" in text
    tab.button("start", ":enabled").wait_for()
    # While other data are read, a press of Start would train on these.
    read = threading.Event()
    monkeypatch.setattr(events, "make_preview", lambda *data: read.wait(PATIENCE) and preview.make_preview(*data))
    page.locator("#samples label").first.click()
    for pressed in ("none", "auto"):
        wait_until(lambda: tab.button("start").evaluate("e => getComputedStyle(e).pointerEvents") == pressed)  # noqa: B023
        read.set()
    wait_until(lambda: tab.name.input_value() == "my-butler" and tab.button("start").is_enabled())
    page.locator("#train-upload input[type=file]").set_input_files({"name": "a.x", "mimeType": "", "buffer": b"x"})
    page.locator("[data-testid=status-tracker]:has(> .error)").locator("visible=false").wait_for(state="attached")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
