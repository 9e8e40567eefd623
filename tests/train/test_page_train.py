"""The Train tab in a real browser, on the real embedded base: from a sample to an answer of one's own adapter."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adapter.ui.texts import train as texts
from tests.app_process import app_process
from tests.browser import PHOTOGRAPHS, Visitor

pytestmark = [pytest.mark.slow, pytest.mark.browser]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("train")
    with app_process(folder, environment={"LLAMA_ADAPTER_RUNS": str(folder / "runs")}) as server:
        yield server.url


class Apprentice:
    """A visitor on the Train tab."""

    def __init__(self, visitor: Visitor) -> None:
        self.visitor, self.page = visitor, visitor.page
        self.open()

    def open(self) -> None:
        self.page.get_by_role("tab", name="Train").click()
        self.page.locator("#train-run .found, #train-run .run").first.wait_for()

    def take_sample(self, title: str) -> None:
        self.page.locator("#samples label", has_text=title).click()
        self.page.locator("#train-preview .records").wait_for()

    def upload(self, path: Path) -> Any:
        self.page.locator("#train-upload input[type=file]").set_input_files(path)
        preview = self.page.locator("#train-preview .found:not(.none)")
        preview.wait_for()
        return preview

    def button(self, key: str) -> Any:
        return self.page.locator(f"#train-{key}")

    def wait_for(self, *states: str) -> None:
        chosen = ", ".join(f"#train-run .run.{state}" for state in states)
        self.page.locator(chosen).first.wait_for()

    def step(self) -> int:
        line = self.page.locator("#train-run .line")
        found = re.search(r"Step ([\d,]+) of", line.first.inner_text()) if line.count() else None
        return int(found[1].replace(",", "")) if found else 0

    def wait_for_step(self, step: int) -> None:
        pattern = "el => +(/Step (\\d+)/.exec(el.innerText)?.[1] ?? 0) >= " + str(step)
        self.page.wait_for_function(f"() => ({pattern})(document.querySelector('#train-run'))", polling=100)


def test_from_a_sample_to_an_answer_of_ones_own(visit: Callable[..., Visitor], tmp_path: Path) -> None:
    apprentice = Apprentice(visit())
    page = apprentice.page
    page.get_by_text(texts.NOTHING_YET).wait_for()
    assert apprentice.button("start").is_disabled()
    apprentice.take_sample("butler")
    assert "30 records of text" in page.locator("#train-preview").inner_text()
    assert page.get_by_label("Name", exact=True).input_value() == "my-butler"
    page.get_by_label("Name", exact=True).fill("jeeves")
    page.wait_for_function("() => document.querySelector('#train-command textarea').value.includes('name=jeeves')")
    apprentice.visitor.set("Steps", 30)
    apprentice.button("start").click()
    apprentice.wait_for("starting")
    assert apprentice.button("start").is_disabled() and apprentice.button("stop").is_visible()
    # The loss moves, and the chat answers meanwhile.
    apprentice.wait_for_step(2)
    page.locator("#train-run polyline.loss").wait_for()
    points = page.locator("#train-run polyline.loss").get_attribute("points")
    page.get_by_role("tab", name="Chat").click()
    plain = apprentice.visitor.ask("Say hello.")
    assert plain
    # Somebody else, and whoever comes back after a reload, find the run.
    page.reload()
    page.locator(".status.ready").wait_for()
    apprentice.open()
    apprentice.wait_for("training", "ended")
    assert "jeeves" in page.locator("#train-run").inner_text()
    apprentice.wait_for_step(6)
    assert page.locator("#train-run polyline.loss").get_attribute("points") != points
    # Stop saves; Go on goes on from there.
    apprentice.button("stop").click()
    apprentice.wait_for("stopped")
    assert texts.STOPPED in page.locator("#train-run").inner_text()
    stopped_at = apprentice.step()
    assert stopped_at > 2
    page.screenshot(path=tmp_path / "stopped.png", full_page=True)
    apprentice.button("go_on").click()
    apprentice.wait_for("starting")
    assert apprentice.step() == stopped_at
    apprentice.wait_for("ended")
    assert re.search(r"Step (\d+) of \1\s", page.locator("#train-run").inner_text())
    before, after = (float(text) for text in page.locator("#train-run dd").all_inner_texts()[:2])
    assert after < before - 0.5
    page.screenshot(path=tmp_path / "ended.png", full_page=True)
    with page.expect_download() as download:
        apprentice.button("download").click()
    names = zipfile.ZipFile(io.BytesIO(Path(download.value.path()).read_bytes())).namelist()
    assert sorted(names) == ["jeeves/README.md", "jeeves/adapter.safetensors", "jeeves/config.json"]
    # Chat with it.
    apprentice.button("chat").click()
    page.locator('#picker input[value="jeeves"]:checked').wait_for()
    page.locator("#chat").wait_for()
    assert apprentice.visitor.box.input_value().startswith("What is the best way")
    answer = apprentice.visitor.answering(lambda: apprentice.visitor.box.press("Enter"))
    assert "sir" in answer and apprentice.visitor.stats().startswith("jeeves · strength 1")
    # Compare it with the base.
    apprentice.open()
    apprentice.button("compare").click()
    page.locator("#panes").wait_for()
    message = page.locator("#message textarea")
    assert message.input_value().startswith("What is the best way")
    message.press("Enter")
    page.locator("#panes .stats").nth(1).wait_for()
    page.locator("#message .submit-button").wait_for()
    base, own = page.locator("#panes .words").all_inner_texts()[:2]
    assert "sir" in own and "sir" not in base
    assert [line.partition(" ·")[0] for line in page.locator("#panes .stats").all_inner_texts()] == [
        "frozen base",
        "jeeves",
    ]


def test_ones_own_files_are_shown_before_anything_is_trained(
    visit: Callable[..., Visitor], tmp_path: Path
) -> None:
    apprentice = Apprentice(visit(390, 844))
    page = apprentice.page
    hint = page.locator("#steps .step > .hint").bounding_box()["y"]
    assert page.get_by_text(texts.UPLOAD_HINT).bounding_box()["y"] >= hint  # nothing of it is cut off
    rows = [json.dumps({"instruction": f"Say {i}.", "output": f"{i}!"}) for i in range(12)]
    (tmp_path / "numbers.jsonl").write_text("\n".join([*rows, '{"instruction": "x"}']))
    preview = apprentice.upload(tmp_path / "numbers.jsonl")
    page.locator("#train-preview .records").wait_for()
    text = preview.inner_text()
    assert "13 records of text in numbers.jsonl" in text and "line 13: 'output' is missing" in text
    page.wait_for_function(
        "() => document.querySelector('#train-command textarea').value.includes('data=numbers.jsonl')"
    )
    assert apprentice.button("start").is_enabled()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    # What nobody typed goes with its data.
    assert page.get_by_label("Name", exact=True).input_value() == "numbers"
    page.locator('#train-upload [aria-label="Clear"]').click()
    page.get_by_text(texts.NO_DATA).wait_for()
    assert apprentice.button("start").is_disabled()
    assert page.get_by_label("Name", exact=True).input_value() == ""
    # A zip of pictures, one of them without a caption, and a zip that reaches outside.
    with zipfile.ZipFile(tmp_path / "cats.zip", "w") as archive:
        archive.write(PHOTOGRAPHS / "cheetah1.jpg", "nameless.jpg")
        for i in range(5):
            archive.write(PHOTOGRAPHS / "cheetah1.jpg", f"{i}.jpg")
            archive.writestr(f"{i}.txt", "a cheetah")
    apprentice.upload(tmp_path / "cats.zip")
    page.locator("#train-preview img").nth(4).wait_for()
    assert page.locator("#train-preview li", has_text="nameless.jpg").is_visible()
    assert page.get_by_label("Name", exact=True).input_value() == "cats"
    page.wait_for_function(
        "() => document.querySelector('#train-command textarea').value.includes('vision.projection=global')"
    )
    page.locator('#train-upload [aria-label="Clear"]').click()
    page.get_by_text(texts.NO_DATA).wait_for()
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../evil.txt", "x")
    assert "outside of itself" in apprentice.upload(tmp_path / "evil.zip").inner_text()
    assert apprentice.button("start").is_disabled()
    # A name that is taken is a toast, and nothing is lost.
    page.locator('#train-upload [aria-label="Clear"]').click()
    apprentice.take_sample("butler")
    page.get_by_label("Name", exact=True).fill("pirate")
    page.wait_for_function(
        "() => document.querySelector('#train-command textarea').value.includes('“pirate” already')"
    )
    apprentice.button("start").click()
    assert "already" in apprentice.visitor.toast()
    assert page.get_by_label("Name", exact=True).input_value() == "pirate"
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
