"""The handlers of the Train tab, and which of them may be called."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

import app
from tests.fake_engine import FakeCatalog, ReadyProvider
from tests.train.ui.test_data_upload import ROWS, write_jsonl
from train.ui import texts
from train.ui.events import TrainEvents
from train.ui.runs import RunRecord, TrainingRuns


@pytest.fixture
def tab(tmp_path: Path, tiny_folder: Path) -> TrainEvents:
    return TrainEvents(TrainingRuns(tmp_path / "runs"), FakeCatalog(), str(tiny_folder))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name, sample, steps, rate",
    [
        *((name, None, 40, 0.004) for name in ("../x", "poet", "", None)),
        *(("good", sample, 40, 0.004) for sample in ("no such sample", 7)),
        *(("good", None, steps, 0.004) for steps in (10**12, "many")),
        *(("good", None, 40, rate) for rate in (1e9, float("nan"))),
    ],
)
def test_forged_values_start_nothing_and_show_a_toast(
    name: Any,
    sample: Any,
    steps: Any,
    rate: float,
    tab: TrainEvents,
    toasts: list[str],
    monkeypatch: pytest.MonkeyPatch,
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
    for bad, message in (
        ("-rf", "letters, digits"),
        ("Poet", "already"),
        ("con", "something else"),
        ("", "needs"),
    ):
        problem, command, start = tab.describe_settings(summary, bad, "", 40, 0.004)
        assert message in problem and command == texts.NO_COMMAND and not start["interactive"]
        assert not tab.panel(None, summary, bad, "", None)[4]["interactive"]  # nor does the timer allow it
    assert tab.panel(None, summary, "mine", "", None)[4]["interactive"]


def test_untouched_proposals_follow_the_data_and_typed_values_stay(tab: TrainEvents, tmp_path: Path) -> None:
    rows, broken = write_jsonl(tmp_path / "rows.jsonl", ROWS), write_jsonl(tmp_path / "broken.jsonl", ["{"])
    name, sample = next(iter(tab.samples.items()))
    _, _, plan, *proposed = tab.choose_upload(str(rows), None, "", "")[:5]
    assert proposed == ["rows", ""]
    description = sample.settings["description"]
    for typed, shown in (
        (("rows", ""), (f"my-{name}", description)),
        (("mine", ""), ("mine", description)),
        (("rows", "Mine."), (f"my-{name}", "Mine.")),
    ):
        assert tab.choose_sample(name, plan, *typed)[3:5] == shown
    assert tab.clear_data(plan, *proposed)[3:5] == ("", "")
    _, _, plan, *fields = tab.choose_upload(str(broken), plan, *proposed)[:5]
    assert plan is None and fields == ["", ""]


def test_who_did_not_start_a_run_may_not_stop_it_on_a_public_page(
    tmp_path: Path, tiny_folder: Path, toasts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[str] = []
    monkeypatch.setattr(TrainingRuns, "_launch", lambda self, name, record, resume: _alive(self, name, record))
    monkeypatch.setattr(TrainingRuns, "stop", lambda self, name, launched: stopped.append(name))
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


def _alive(runs: TrainingRuns, name: str, record: RunRecord) -> None:
    (runs.folder / name / "run.json").write_text(json.dumps(dataclasses.asdict(record)))


def test_typed_rows_become_a_file_whose_faults_name_their_row(tab: TrainEvents) -> None:
    rows = [[f"Say {i}.", f"{i}!"] for i in range(5)] + [["", ""], ["", "no question"], ["Say 8.", None]]
    path = tab.use_rows(rows)
    _, shown, summary, *_, start = tab.choose_upload(path, None, "", "")
    assert "line 7: &#x27;question&#x27; is empty" in shown or "line 7: 'question' is empty" in shown
    assert "6 are few" in shown and 'class="bars"' not in shown and summary and start["interactive"]
    with pytest.raises(gr.Error, match=texts.NO_ROWS):
        tab.use_rows([["", None], [" ", ""]])


def test_events_that_may_show_a_toast_pass_through_the_queue() -> None:
    """Toasts come through it alone; the other events explain problems in their place on the page."""

    def own(page: Any) -> list[Any]:
        return [fn for fn in page.fns.values() if getattr(fn.fn, "__module__", "").startswith("train.ui")]

    page, without = (
        app.build_page(ReadyProvider(None), FakeCatalog(), training=training)  # type: ignore[arg-type]
        for training in (True, False)
    )
    unqueued = {fn.name for fn in own(page) if not fn.queue}
    assert unqueued == {"clear_data", "count", "describe_settings", "panel", "select_tab"}
    toasting = {"toast", "errors_as_toasts", "refuse", "Info", "Warning"}
    for fn in page.fns.values():  # nor do the other tabs' show any
        handler = inspect.unwrap(fn.fn) if fn.fn else None
        code = getattr(getattr(handler, "__func__", handler), "__code__", None)
        assert fn.queue or code is None or not toasting & set(code.co_names), fn.name
    assert own(without) == [], "a server without training has no events for it"
