"""The handlers of the Train tab, and which of them may be called."""

import dataclasses
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from adapter.method.checkpoint import save_adapter
from adapter.server import adapter_upload
from tests.app_process import wait_until
from tests.fake_engine import EchoEngine, FakeCatalog, ReadyProvider, event_request
from tests.fake_hub import fake_hub
from tests.tiny_models import random_adapter
from train.ui import texts
from train.ui.events import LEAST, TrainEvents, last_turn
from train.ui.runs import RunRecord, TrainingRuns, WatchedAnswer


def events(runs: Path, base: Path | str, public: bool = False) -> TrainEvents:
    chat: Any = SimpleNamespace(
        catalog=FakeCatalog(), provider=ReadyProvider(EchoEngine())
    )  # it is not opened here
    return TrainEvents(TrainingRuns(runs), chat, str(base), public)


@pytest.fixture(autouse=True)
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))


@pytest.fixture
def tab(tmp_path: Path, tiny_folder: Path) -> TrainEvents:
    return events(tmp_path / "runs", tiny_folder)


@pytest.mark.parametrize(
    "name, steps, rate",
    [*((name, 40, 0.004) for name in ("../x", "poet", None, "no-room")), ("good", 10**12, 0.004),
     ("good", "many", 0.004), ("good", 40, 1e9), ("good", 40, float("nan"))],
)  # fmt: skip
def test_forged_values_start_nothing_and_show_a_toast(name, steps, rate, tab, toasts, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    monkeypatch.setattr(adapter_upload, "FOLDER_ADAPTERS", 500 if name != "no-room" else 0)
    plan = tab.choose_sample(next(iter(tab.samples)))[3]
    tab.start("", plan, event_request(), name, "", "", steps, rate)
    assert len(toasts) == 1 and tab.runs.names() == []


def test_chosen_data_fills_the_settings(tab):
    sample = next(iter(tab.samples))
    *_, shown, _, name, _, question, _, _, command, start = tab.choose_sample(sample, None, "", "", "")
    assert "records" in shown and name == f"my-{sample}" and question and start["interactive"]
    plan, settings = tab.choose_sample(sample)[3], ("a b", *tab.choose_sample(sample)[5:9])
    why, start = tab.panel(None, "", plan, event_request(), *settings)[6:8]
    assert "letters, digits" in why and start["interactive"] is False
    former = plan, "mine", plan.description, "Mine?", 40, 0.004  # two of them typed
    assert tab.choose_sample(sample, *former)[4:7] == ("mine", plan.description, "Mine?")
    for updates in (tab.choose_upload("gone.csv", *former), tab.choose_upload(None, *former)):
        assert updates[4:7] == ("mine", "", "Mine?")
    assert command.startswith("python -m train data=assets/samples/") and f"name=my-{sample}" in command
    rows = "Who are you?=>A pirate, arr => arr!\n\n" + "\n".join(f"{i}?\tArr {i}!" for i in range(4))
    _, path, shown, typed, name, *_ = tab.use_rows(rows)
    assert name == "typed-rows" and "5 records of text" in shown
    first, blank, second, *_ = Path(path).read_text().splitlines()
    copied = Path(tab.use_rows('How?\tLike this: a => b\nWho?\t"One ""I"",\nand you"\n' * 2)[1]).read_text()
    pairs = [("How?", "Like this: a => b"), ("Who?", 'One "I",\nand you')] * 2
    assert [tuple(json.loads(line).values()) for line in copied.splitlines()] == pairs
    torn = Path(tab.use_rows('Say it.\t"Hi" he said\nAnd?\t"No\n' * 2)[1]).read_text()
    assert json.loads(torn.splitlines()[1])["answer"] == '"No', "quotes that are none of a table stay"
    assert json.loads(first) == {"question": "Who are you?", "answer": "A pirate, arr => arr!"} and not blank
    assert json.loads(second) == {"question": "0?", "answer": "Arr 0!"}
    with pytest.raises(gr.Error, match="No row has two parts"):
        tab.use_rows("no arrow\nnone here")
    with pytest.raises(gr.Error, match="more than 100,000 characters"):
        tab.use_rows("a => b\n" * 20_000)
    headed = Path(tab.use_rows("Id\tAnswer\tQuestion\n1\tI.\tWho?\n")[1]).read_text()
    assert json.loads(headed) == {"id": "1", "answer": "I.", "question": "Who?"}
    with pytest.raises(gr.Error, match="Row 2 has 3 columns"):
        tab.use_rows("a\tb\na\tb\tc\n")
    assert "5 records with control tokens" in tab.use_rows("\n".join(f"{i}? => {i}<end>" for i in range(5)))[2]
    assert tab.describe(typed, "mine", "", "", 80, 0.01)[0].count("steps=80") == 1
    problem, start = tab.describe(typed, "Poet", "", "", 40, 0.004)
    assert "already" in problem and not start["interactive"]


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
    tmp_path, tiny_folder, toasts, stopped, monkeypatch
):
    public, local = (events(tmp_path / "runs", tiny_folder, public) for public in (True, False))
    plan, me = public.choose_sample(next(iter(public.samples)))[3], event_request()
    public.start(owner := "mine alone", plan, me, "mine", "", "Who am I?", 40, 0.004)
    assert owner not in (tmp_path / "runs" / "mine" / "run.json").read_text()
    html, stop = 1, 2  # their places in the panel
    wait_until(lambda: public.runs.watched("mine"))  # the base was asked in a thread of its own
    public.runs.add_watched("mine", "Who am I?", WatchedAnswer(0, "Nobody."))
    public.runs.add_watched("mine", "Who was I?", WatchedAnswer(1, "Its former run's."))
    (tmp_path / "runs" / "mine" / "messages.txt").write_text("error: my.csv, line 3")
    panel = public.panel("mine", owner, None, me)
    assert [w in panel[html] for w in ("Who am I?", "Nobody.", "my.csv", "former")] == [True] * 3 + [False]
    assert panel[stop]["visible"]
    assert panel[stop]["value"] == texts.GO_ON  # without a process
    for stranger in ("", "x", []):
        for pressed in (texts.STOP, texts.GO_ON):
            panel = public.stop_or_go_on(pressed, "mine", stranger, None, me)
            assert not panel[stop]["visible"] and "Who am I?" not in panel[html] and "my.csv" not in panel[html]
        assert public.publish("mine", stranger, "somebody/mine", gr.OAuthToken("hf_stranger", "", 0)) == ""
        assert toasts == [texts.NOT_YOURS] * 3 and not stopped
        toasts.clear()
    public.stop_or_go_on(texts.STOP, "mine", owner, None, me)
    local.stop_or_go_on(texts.STOP, "mine", "", None, me)  # only this machine may ask: it is its owner
    assert stopped == ["mine", "mine"] and not toasts
    run = SimpleNamespace(name="mine", adapter=True, record=public.runs.record("mine"))
    monkeypatch.setattr(public.runs, "get", lambda _: run)
    monkeypatch.setattr(public, "store", SimpleNamespace(names=lambda: ["mine"]))
    monkeypatch.setattr(public, "conversations", SimpleNamespace(opened=(), begin=lambda *given: given[1:2]))
    asked = [next(public.chat_with("mine", who, None, me))[2] for who in ("x", owner)]
    assert asked == [None, {"text": "Who am I?", "files": []}]


def test_eight_corrections_can_be_trained_on(tmp_path, tiny_folder, stopped, monkeypatch):
    monkeypatch.setattr("adapter.ui.images.count_upload", (counted := list[int]()).append)
    tab = events(tmp_path / "runs", tiny_folder, public=True)
    said = [{"role": "user", "content": "Where do you live?"}, {"role": "assistant", "content": "!"}]
    short = [*said, {"role": "user", "content": "And why?"}, {"role": "assistant", "content": "!"}]
    assert last_turn({"messages": [*short, *said]}) == {"messages": said}
    assert last_turn({"messages": [*said, *short]}) == {"messages": short}, "alone it would mean nothing"
    known: Any = [{"messages": said}] * LEAST
    for corrections, enabled in ((known[1:], False), (known, True), ("forged", False)):
        assert tab.count_corrections(corrections)["interactive"] is enabled
    with pytest.raises(gr.Error, match=texts.train_on_these(1)):
        tab.use_corrections(known[1:])
    _, _, shown, plan, name, *settings, _, _ = tab.use_corrections(known)
    assert name == "my-voice" and "8 records" in shown
    tab.start("", plan, event_request(), name, *settings)
    run = tab.runs.get(name)
    assert run is not None and run.record.question == texts.WATCHED_QUESTION and run.recipe.train.patience == 1
    text = Path(run.recipe.data[0].path).read_text()
    assert len(text.splitlines()) == LEAST and counted == [len(text)] * 2  # the run has a copy, which it may keep
    monkeypatch.setattr(tab.runs, "running", lambda: name)  # the data that are prepared there would be lost
    with pytest.raises(gr.Error, match=texts.running(name)):
        tab.use_corrections(known)


@pytest.mark.parametrize(("public", "visitor"), [(False, None), (True, "hf_of_the_visitor"), (True, None)])
def test_only_its_own_visitor_publishes_with_a_machines_login(
    public, visitor, tmp_path, tiny_folder, tiny_fingerprint,
    stopped, monkeypatch, toasts,
):  # fmt: skip
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_machine")
    tab = events(tmp_path / "runs", tiny_folder, public)
    plan, token = tab.choose_sample(next(iter(tab.samples)))[3], visitor and gr.OAuthToken(visitor, "", 0)
    tab.start(owner := "mine alone", plan, event_request(), "mine", "", "Who am I?", 40, 0.004)
    wait_until(lambda: tab.runs.watched("mine"))
    save_adapter(random_adapter(tiny_fingerprint), tmp_path / "runs" / "mine", "# mine\n")
    for answer in (WatchedAnswer(0, "A  language model."), WatchedAnswer(10, "A pirate.")):
        tab.runs.add_watched("mine", "Who am I?", answer)
    with fake_hub() as hub:
        said = tab.publish("mine", owner, "somebody/mine", token)
        if public and visitor is None:
            assert toasts == [texts.PUBLISH_NOT_HERE] and not (said or hub.tokens or hub.files)
            return
        assert f"{hub.url}/somebody/mine" in said
    assert set(filter(None, hub.tokens)) == {f"Bearer {visitor or 'hf_of_this_machine'}"}
    files = hub.files["somebody/mine"]
    assert sorted(files) == ["README.md", "adapter.safetensors", "config.json"]
    card = files["README.md"].decode()
    assert card.startswith("# mine") and "A language model." in card and card.rstrip().endswith("A pirate.")
