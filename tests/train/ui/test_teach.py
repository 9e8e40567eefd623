"""Training on corrections, and the question that is asked again while that runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapter.ui.chat.corrections import Correction
from tests.fake_engine import EchoEngine, FakeCatalog, ReadyProvider, event_request
from train.config import read_recipe
from train.ui import texts
from train.ui.events import TrainEvents
from train.ui.metrics import RunProgress
from train.ui.runs import RECIPE, RunRecord, TrainingRun, TrainingRuns
from train.ui.teach import LEAST, TeachEvents


def correction(number: int) -> Correction:
    return {
        "messages": [{"role": "user", "content": f"{number}?"}, {"role": "assistant", "content": f"{number}!"}]
    }


KNOWN = [correction(i) for i in range(LEAST)]


class Runs(TrainingRuns):
    """Starts no process; `get` gives what a test says."""

    shown: TrainingRun | None = None
    stopped: tuple[str, ...] = ()

    def _launch(self, name: str, record: RunRecord, resume: bool) -> None:
        recipe = read_recipe(self.folder / name / RECIPE, [])
        self.shown = TrainingRun(name, "starting", record, recipe, RunProgress(), "", False, "")

    def get(self, name: str) -> TrainingRun | None:
        return self.shown

    def stop(self, name: str, launched: float | None = None) -> None:
        self.stopped += (name,)


@pytest.fixture
def teach(tmp_path: Path, tiny_folder: Path) -> TeachEvents:
    handlers = TrainEvents(Runs(tmp_path / "runs"), FakeCatalog(), str(tiny_folder), public=True)  # type: ignore[arg-type]
    return TeachEvents(handlers, ReadyProvider(EchoEngine()))


def test_eight_corrections_can_be_trained_on(teach: TeachEvents, toasts: list[str]) -> None:
    for known, enabled in ((KNOWN[1:], False), (KNOWN, True), ("forged", False)):
        assert teach.count(known)["interactive"] is enabled
    teach.start("", KNOWN[1:], None, None)
    assert toasts == [texts.train_on_these(1)] and teach.runs.names() == []
    owner, lesson, _ = teach.start("", KNOWN, None, "Who are you?")
    recipe = teach.runs.get("").recipe  # type: ignore[union-attr]
    assert owner and lesson["run"] == "my-voice" and len(toasts) == 1
    assert len(Path(recipe.data[0].path).read_text().splitlines()) == LEAST
    # Words that are in no record are in no file of the run that others see.
    assert "Who are you?" not in "".join(f.read_text() for f in teach.runs.folder.rglob("*") if f.is_file())
    teach.stop("stranger", lesson)
    assert toasts[1:] == [texts.NOT_YOURS] and not teach.runs.stopped  # type: ignore[attr-defined]
    for forged in (None, "x", {"run": 1}, {"run": "voice", "question": "?", "answers": [["x"]]}):
        assert teach.follow(owner, forged, event_request())[1] == ""
    teach.stop(owner, lesson)
    assert teach.runs.stopped == ("my-voice",)  # type: ignore[attr-defined]
