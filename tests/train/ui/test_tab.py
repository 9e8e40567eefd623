"""The handlers of the Train tab, and which of them may be called."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from adapter.errors import BadInput
from adapter.method.checkpoint import save_adapter
from tests.fake_engine import EchoEngine, FakeCatalog, ReadyProvider, event_request
from tests.fake_hub import fake_hub
from tests.tiny_models import random_adapter
from train.ui import texts
from train.ui.events import LEAST, TrainEvents, last_turn
from train.ui.run_view import publish_run
from train.ui.runs import RunRecord, TrainingRuns, WatchedAnswer

EMPTY: tuple[Any, ...] = (None, "", "", "")  # no plan yet, and nothing typed


def events(runs: Path, base: Path | str, public: bool = False) -> TrainEvents:
    catalog: Any = FakeCatalog()
    return TrainEvents(TrainingRuns(runs), catalog, ReadyProvider(EchoEngine()), str(base), public)


@pytest.fixture
def tab(tmp_path: Path, tiny_folder: Path) -> TrainEvents:
    return events(tmp_path / "runs", tiny_folder)


@pytest.mark.parametrize(
    "name, steps, rate",
    [*((name, 40, 0.004) for name in ("../x", "poet", None)), ("good", 10**12, 0.004), ("good", "many", 0.004),
     ("good", 40, 1e9), ("good", 40, float("nan"))],
)  # fmt: skip
def test_forged_values_start_nothing_and_show_a_toast(
    name: Any, steps: Any, rate: float, tab: TrainEvents, toasts: list[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    plan = tab.choose_sample(next(iter(tab.samples)), *EMPTY)[3]
    tab.start("", plan, name, "", "", steps, rate)
    assert len(toasts) == 1 and tab.runs.names() == []


def test_chosen_data_fills_the_settings_and_what_was_typed_stays(tab: TrainEvents) -> None:
    sample = next(iter(tab.samples))
    *_, shown, plan, name, _, question, _, _, command, start = tab.choose_sample(sample, *EMPTY)
    assert "records" in shown and name == f"my-{sample}" and question and start["interactive"]
    assert command.startswith("python -m train data=assets/samples/") and f"name=my-{sample}" in command
    rows = "Who are you?=>A pirate, arr => arr!\n\n" + "\n".join(f"{i}?\tArr {i}!" for i in range(4))
    _, path, shown, typed, name, description, *_ = tab.use_rows(rows, plan, "mine", "Says arr.", question)
    assert name == "mine" and description == "Says arr." and "5 records of text" in shown
    first, blank, second, *_ = Path(path).read_text().splitlines()
    assert json.loads(first) == {"question": "Who are you?", "answer": "A pirate, arr => arr!"} and not blank
    assert json.loads(second) == {"question": "0?", "answer": "Arr 0!"}
    assert (
        "line 1: " in tab.use_rows("no arrow", *EMPTY)[2] and tab.choose_upload("/etc/passwd", *EMPTY)[3] is None
    )
    assert tab.describe(typed, "mine", "", "", 80, 0.01)[0].count("steps=80") == 1
    for bad, message in (("-rf", "letters, digits"), ("Poet", "already")):
        problem, start = tab.describe(typed, bad, "", "", 40, 0.004)
        assert message in problem and not start["interactive"]


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that were stopped; none has a process."""

    def launch(runs: TrainingRuns, name: str, record: RunRecord, resume: bool) -> None:
        (runs.folder / name / "run.json").write_text(json.dumps(dataclasses.asdict(record)))

    names: list[str] = []
    monkeypatch.setattr(TrainingRuns, "_launch", launch)
    monkeypatch.setattr(TrainingRuns, "stop", lambda self, name: names.append(name))
    return names


def test_who_did_not_start_a_run_may_neither_see_its_question_nor_stop_or_publish_it_on_a_public_page(
    tmp_path: Path, tiny_folder: Path, toasts: list[str], stopped: list[str]
) -> None:
    public, local = (events(tmp_path / "runs", tiny_folder, public) for public in (True, False))
    plan = public.choose_sample(next(iter(public.samples)), *EMPTY)[3]
    owner = public.start("", plan, "mine", "", "Who am I?", 40, 0.004)
    assert owner and owner not in (tmp_path / "runs" / "mine" / "run.json").read_text()
    html, stop, go_on = 1, 2, 3  # their places in the panel
    public._watch.runs.add_watched("mine", WatchedAnswer(0, "Nobody."))
    panel = public.panel("mine", owner, None, event_request())
    assert "Who am I?" in panel[html] and "Nobody." in panel[html] and panel[go_on]["visible"]  # without a process
    for stranger in ("", "x", []):
        public.stop("mine", stranger)  # type: ignore[arg-type]
        public.resume("mine", stranger)  # type: ignore[arg-type]
        assert toasts == [texts.NOT_YOURS] * 2 and not stopped
        with pytest.raises(BadInput, match=texts.NOT_YOURS):
            publish_run(public, "mine", stranger, "somebody/mine", "hf_stranger")  # type: ignore[arg-type]
        panel = public.panel("mine", stranger, None, event_request())  # type: ignore[arg-type]
        assert not panel[stop]["visible"] and not panel[go_on]["visible"] and "Who am I?" not in panel[html]
        toasts.clear()
    public.stop("mine", owner)
    local.stop("mine", "")  # only this machine may ask: it is its owner
    assert stopped == ["mine", "mine"] and not toasts


def test_eight_corrections_can_be_trained_on(
    tmp_path: Path, tiny_folder: Path, toasts: list[str], stopped: list[str]
) -> None:
    tab = events(tmp_path / "runs", tiny_folder, public=True)
    said = [{"role": "user", "content": "Where do you live?"}, {"role": "assistant", "content": "!"}]
    short = [*said, {"role": "user", "content": "And why?"}, {"role": "assistant", "content": "!"}]
    assert last_turn({"messages": [*short, *said]}) == {"messages": said}
    assert last_turn({"messages": [*said, *short]}) == {"messages": short}, "alone it would mean nothing"
    known: Any = [{"messages": said}] * LEAST
    for corrections, enabled in ((known[1:], False), (known, True), ("forged", False)):
        assert tab.lesson("", corrections, event_request())[-2]["interactive"] is enabled
    tab.teach("", known[1:], None, None)
    assert toasts.pop() == texts.train_on_these(1) and tab.runs.names() == []
    owner = tab.teach("", known, None, "Who are you?")
    name, html, *_ = tab.lesson(owner, known, event_request())
    run = tab.runs.get(name)
    assert name == "my-voice" and "Who" not in html and run is not None and not toasts
    assert run.record.question == "Who are you?" and run.record.taught
    assert len(Path(run.recipe.data[0].path).read_text().splitlines()) == LEAST
    assert tab.lesson("stranger", known, event_request())[:2] == ("", "")
    tab.stop(name, "stranger")
    assert toasts == [texts.NOT_YOURS] and not stopped
    tab.stop(name, owner)
    assert stopped == ["my-voice"]


@pytest.mark.parametrize(("public", "visitor"), [(False, None), (True, "hf_of_the_visitor"), (True, None)])
def test_only_its_own_visitor_publishes_with_a_machines_login(
    public: bool, visitor: str | None, tmp_path: Path, tiny_folder: Path, tiny_fingerprint: Any,
    stopped: list[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_machine")
    tab = events(tmp_path / "runs", tiny_folder, public)
    plan = tab.choose_sample(next(iter(tab.samples)), *EMPTY)[3]
    owner = tab.start("", plan, "mine", "", "Who am I?", 40, 0.004)
    save_adapter(random_adapter(tiny_fingerprint), tmp_path / "runs" / "mine", "# mine\n")
    for answer in (WatchedAnswer(0, "A  language model."), WatchedAnswer(10, "A pirate.")):
        tab.runs.add_watched("mine", answer)
    with fake_hub() as hub:
        if public and visitor is None:
            with pytest.raises(BadInput, match="Others use this server too"):
                publish_run(tab, "mine", owner, "somebody/mine", visitor)
            assert not hub.tokens and not hub.files
            return
        assert f"{hub.url}/somebody/mine" in publish_run(tab, "mine", owner, "somebody/mine", visitor)
    assert set(filter(None, hub.tokens)) == {f"Bearer {visitor or 'hf_of_this_machine'}"}
    files = hub.files["somebody/mine"]
    assert sorted(files) == ["README.md", "adapter.safetensors", "config.json"]
    card = files["README.md"].decode()
    assert card.startswith("# mine") and "A language model." in card and card.rstrip().endswith("A pirate.")
