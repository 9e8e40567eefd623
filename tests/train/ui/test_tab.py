"""The handlers of the Train tab, and which of them may be called."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.fake_engine import EchoEngine, FakeCatalog, ReadyProvider, event_request
from train.ui import texts
from train.ui.events import TrainEvents
from train.ui.runs import RunRecord, TrainingRuns
from train.ui.teach import LEAST, TeachEvents


@pytest.fixture
def tab(tmp_path: Path, tiny_folder: Path) -> TrainEvents:
    return TrainEvents(TrainingRuns(tmp_path / "runs"), FakeCatalog(), str(tiny_folder))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name, sample, steps, rate",
    [
        *((name, None, 40, 0.004) for name in ("../x", "poet", None)),
        *(("good", sample, 40, 0.004) for sample in ("no such sample", 7)),
        *(("good", None, steps, 0.004) for steps in (10**12, "many")),
        *(("good", None, 40, rate) for rate in (1e9, float("nan"))),
    ],
)
def test_forged_values_start_nothing_and_show_a_toast(
    name: Any, sample: Any, steps: Any, rate: float, tab: TrainEvents, toasts: list[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    forged: Any = {"sample": "../../x"}
    tab.start("", sample or next(iter(tab.samples)), None, forged, name, "", steps, rate)
    assert len(toasts) == 1 and tab.runs.names() == []


def test_chosen_data_fills_the_settings_and_a_typed_name_stays(tab: TrainEvents) -> None:
    sample = next(iter(tab.samples))
    _, shown, summary, name, *_, command, start = tab.choose_sample(sample, None, "", "")
    assert "records" in shown and name == f"my-{sample}" and start["interactive"]
    assert command.startswith("python -m train data=assets/samples/") and f"name=my-{sample}" in command
    assert tab.describe_settings(summary, "mine", "", 80, 0.01)[1].count("steps=80") == 1
    assert tab.choose_upload("/etc/passwd", summary, "mine", "")[2] is None
    for bad, message in (("-rf", "letters, digits"), ("Poet", "already")):
        problem, command, start = tab.describe_settings(summary, bad, "", 40, 0.004)
        assert message in problem and command == texts.NO_COMMAND and not start["interactive"]
        assert not tab.panel(None, summary, bad, "", None)[4]["interactive"]  # nor does the timer allow it
    assert tab.panel(None, summary, "mine", "", None)[4]["interactive"]


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that were stopped; none has a process."""

    def launch(runs: TrainingRuns, name: str, record: RunRecord, resume: bool) -> None:
        (runs.folder / name / "run.json").write_text(json.dumps(dataclasses.asdict(record)))

    names: list[str] = []
    monkeypatch.setattr(TrainingRuns, "_launch", launch)
    monkeypatch.setattr(TrainingRuns, "stop", lambda self, name, launched=None: names.append(name))
    return names


def test_who_did_not_start_a_run_may_not_stop_it_on_a_public_page(
    tmp_path: Path, tiny_folder: Path, toasts: list[str], stopped: list[str]
) -> None:
    runs, owners = TrainingRuns(tmp_path / "runs"), []
    public, local = (TrainEvents(runs, FakeCatalog(), str(tiny_folder), public=public) for public in (True, False))  # type: ignore[arg-type]
    sample = next(iter(public.samples))
    owner, *panel = public.start("", sample, None, None, "mine", "", 40, 0.004)
    assert owner and owner not in (tmp_path / "runs" / "mine" / "run.json").read_text()
    stop, go_on = 5, 6  # their places in the panel
    assert panel[go_on]["visible"]  # its process is none
    for stranger in ("", "x", owners):
        panel = public.stop("mine", None, None, "", stranger)  # type: ignore[arg-type]
        assert toasts.pop() == texts.NOT_YOURS and not stopped
        assert not panel[stop]["visible"] and not panel[go_on]["visible"]
        public.resume("mine", None, "", stranger)  # type: ignore[arg-type]
        assert toasts.pop() == texts.NOT_YOURS
    public.stop("mine", None, None, "", owner)
    local.stop("mine", None, None, "", "")  # only this machine may ask: it is its owner
    assert stopped == ["mine", "mine"] and not toasts


def test_eight_corrections_can_be_trained_on(
    tmp_path: Path, tiny_folder: Path, toasts: list[str], stopped: list[str]
) -> None:
    runs = TrainingRuns(tmp_path / "runs")
    tab = TrainEvents(runs, FakeCatalog(), str(tiny_folder), public=True)  # type: ignore[arg-type]
    teach = TeachEvents(tab, ReadyProvider(EchoEngine()))
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    known: Any = [{"messages": said}] * LEAST
    for corrections, enabled in ((known[1:], False), (known, True), ("forged", False)):
        assert teach.count(corrections)["interactive"] is enabled
    teach.start("", known[1:], None, None)
    assert toasts.pop() == texts.train_on_these(1) and runs.names() == []
    owner, lesson, _ = teach.start("", known, None, "Who are you?")
    run = runs.get("my-voice")
    assert owner and lesson["run"] == "my-voice" and run is not None and not toasts
    assert len(Path(run.recipe.data[0].path).read_text().splitlines()) == LEAST
    # Words that are in no record are in no file of the run that others see.
    assert "Who are you?" not in "".join(f.read_text() for f in runs.folder.rglob("*") if f.is_file())
    for forged in (None, "x", {"run": 1}, {"run": "voice", "question": "?", "answers": [["x"]]}):
        assert teach.follow(owner, forged, event_request())[1] == ""
    teach.stop("stranger", lesson)
    assert toasts == [texts.NOT_YOURS] and not stopped
    teach.stop(owner, lesson)
    assert stopped == ["my-voice"]
