"""Plans and runs of the Train tab: names, commands, metrics, and real processes on the tiny base."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

import train.precision
import train.ui.plan
from adapter.base.embedded import BASE
from adapter.errors import BadInput, Busy
from adapter.method.checkpoint import load_adapter
from adapter.method.config import check_name
from tests.app_process import app_process, wait_until
from tests.fake_engine import FakeCatalog
from tests.tiny_models import endless_base
from tests.train.ui.test_data_upload import ROWS, write_jsonl
from train.config import RecipeFile, read_recipe, recipe_text
from train.input.feature_store import SIZE_VARIABLE
from train.ui import metrics, texts
from train.ui import runs as train_runs
from train.ui.charts import run_html
from train.ui.data_upload import open_sample
from train.ui.events import SERVED, TrainEvents, zip_adapter
from train.ui.metrics import MetricsTail, RunProgress
from train.ui.plan import RunPlan, estimate_minutes, free_name, samples
from train.ui.runs import RECIPE, RECORD, RunRecord, TrainingRun, TrainingRuns

_watchers: list[list[str]] = []
sys.addaudithook(lambda event, arguments: event == "open" and [w.append(str(arguments[0])) for w in _watchers])


@contextlib.contextmanager
def watched_files() -> Iterator[list[str]]:
    """The paths of the files that are opened meanwhile, by whatever function."""
    opened: list[str] = []
    _watchers.append(opened)
    yield opened
    _watchers.remove(opened)


# Names, recipes and commands.


@pytest.mark.parametrize(
    "name",
    ["", " ", "../x", "a/b", "a\\b", "CON", "con", "lpt1", "base", "x" * 300, ".hidden", "-x", "a b", "a.", "é",
     "poet", "POET", "x\0", "~", "$(id)"],
)  # fmt: skip
def test_names_that_are_no_folder_or_taken_are_refused(name: str) -> None:
    assert check_name("a\n") == "a"
    with pytest.raises(BadInput):
        check_name(name, ["poet"])


@pytest.mark.parametrize("wanted", ["poet", "my data (1)", "", "…", "CON", "x" * 300, "../../x", "A"])
def test_a_proposed_name_is_accepted(wanted: str) -> None:
    taken = ["poet", "poet-2", "a"]
    assert check_name(free_name(wanted, taken), taken)


def plan_of(**changes: Any) -> RunPlan:
    return RunPlan(**{"name": "n", "data": Path("a.jsonl"), "shown": "a.jsonl", "pictures": False, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"shown": "my data.jsonl", "data": Path("my data.jsonl")},
        {"name": "yes", "description": "Says: 'ahoy' \"#1\" $HOME; & more"},
        {"name": "1e5", "description": "null", "steps": 100, "lr": 0.01},
        {"pictures": True, "extra": {"preset": "small", "vision": {"hidden": 32}, "data": {"validation": 0.2}}},
        {"template": "alpaca", "extra": {"preset": "quick", "steps": 60}, "steps": 60},
    ],
)
def test_the_command_makes_the_same_recipe_as_the_tab(changes: dict[str, Any], tmp_path: Path) -> None:
    plan = plan_of(**changes)
    words = shlex.split(plan.command())
    assert words[:3] == ["python", "-m", "train"]
    recipe = read_recipe(None, words[3:])
    assert recipe == plan.recipe()
    (tmp_path / RECIPE).write_text(recipe_text(plan.recipe()))
    assert read_recipe(tmp_path / RECIPE, []) == recipe
    assert recipe.train.name == plan.name and recipe.train.description == plan.description
    assert plan.steps is None or recipe.train.steps == plan.steps


def test_the_loss_that_is_kept_is_that_of_the_adapter_that_is_kept():
    progress = RunProgress(held_out=((10, 2.0), (20, 1.5), (30, 1.75)))
    assert (progress.kept_loss("best"), progress.kept_loss("last")) == (1.5, 1.75)
    assert RunProgress().kept_loss("last") is None


def test_a_typed_description_overrides_the_samples() -> None:
    extra = {"description": "The sample's own."}
    assert plan_of(extra=extra).recipe().train.description == "The sample's own."
    assert plan_of(extra=extra, description="Mine.").recipe().train.description == "Mine."


def test_the_command_names_a_base_without_its_folder() -> None:
    plan = plan_of(base="/somewhere/secret/tiny")
    assert plan.command("r/n").endswith("--base tiny --out r/n") and plan.recipe().base == "/somewhere/secret/tiny"


@pytest.mark.parametrize("wrong", [{"steps": 9}, {"steps": 10**9}, {"lr": 0.0}, {"lr": 1e9}, {"lr": float("nan")}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        plan_of(**wrong)


@pytest.fixture
def trains_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.precision, "default_device", lambda: torch.device("cpu"))


@pytest.mark.usefixtures("trains_on_cpu")
def test_the_estimate_grows_with_the_history_before_rows(tmp_path: Path) -> None:
    def minutes(history: float) -> float:
        config = plan_of(extra={"history": history}).recipe().train
        estimate, measured = estimate_minutes(config, 60.0, BASE, TrainingRuns(tmp_path))
        assert estimate is not None and not measured
        return estimate

    assert minutes(1.0) > minutes(0.5) > minutes(0.0) > 0
    assert estimate_minutes(plan_of().recipe().train, 60.0, "another/base", TrainingRuns(tmp_path)) == (
        None,
        False,
    )


@pytest.mark.usefixtures("trains_on_cpu")
def test_the_estimate_follows_the_precision_and_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def minutes(precision: str, cores: int) -> float:
        monkeypatch.setattr(train.precision, "choose_precision", lambda *_: (precision, ""))
        monkeypatch.setattr(train.ui.plan, "available_cores", lambda: cores)
        estimate, _ = estimate_minutes(plan_of().recipe().train, 60.0, BASE, TrainingRuns(tmp_path))
        assert estimate is not None
        return estimate

    assert minutes("fp32", 2) > minutes("bf16", 2) > minutes("bf16", 4)


def test_there_is_no_estimate_for_a_gpu_that_was_never_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.precision, "default_device", lambda: torch.device("cuda"))
    assert estimate_minutes(plan_of().recipe().train, 60.0, BASE, TrainingRuns(tmp_path)) == (None, False)


def test_every_sample_can_be_trained_on() -> None:
    found = samples()
    assert found and len({sample.name for sample in found}) == len(found)
    for sample in found:
        data = open_sample(sample.path)
        plan = plan_of(data=data.path, pictures=data.pictures, extra=sample.settings)
        assert plan.recipe().train.steps and len(data.records) >= 20 and sample.question


def test_progress_is_read_while_metrics_are_written(tmp_path: Path) -> None:
    assert MetricsTail(tmp_path).read() == RunProgress()
    lines = [
        {"step": 0, "untrained_loss": 3.0, "evaluation_seconds": 2.0}, {"step": 0, "gates": [0.0, 0.0]},
        *({"step": i, "loss": 3 - i, "largest_gate": 0.1, "seconds": i / 2 + 9} for i in (1, 2, 3)),
        {"step": 3, "held_out_loss": 1.5, "evaluation_seconds": 2.0}, {"step": 3, "gates": [0.1, 0.2]},
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 4, "lo')
    progress = MetricsTail(tmp_path).read()
    assert (progress.step, progress.untrained, progress.kept_loss("best")) == (3, 3.0, 1.5)
    assert progress.gates == (0.1, 0.2) and progress.losses == ((1, 2.0), (2, 1.0), (3, 0.0))
    assert progress.seconds_left(10, 4) == pytest.approx(7 * 0.5 + 2 * 2.0)  # the slow first step does not count
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines[:4])) + "\n")
    assert MetricsTail(tmp_path).read().seconds_left(10, 4) is None  # known from the third step on
    shown = run_html(TrainingRun("n", "training", RunRecord(), recipe_of("n"), progress, "", True, True))
    assert "Step 3 of 1,000" in shown and "<svg" in shown and "layer 2: 0.200" in shown


def test_held_out_loss_that_has_turned_upward_is_told() -> None:
    def shown(*losses: float, **settings: Any) -> str:
        held_out = tuple((20 * (i + 1), loss) for i, loss in enumerate(losses))
        recipe = recipe_of("n")
        recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, **settings))
        return run_html(
            TrainingRun("n", "training", RunRecord(), recipe, RunProgress(held_out=held_out), "", True, True)
        )

    assert "by heart at step 40; the best is kept" in shown(2.0, 1.5, 1.6)
    assert "by heart at step 40; the last is kept" in shown(2.0, 1.5, 1.6, save="last")
    for losses in ((), (2.0,), (2.0, 1.5), (2.0, 1.5, 1.51), (2.0, 1.5, 1.6, 1.4)):
        assert "by heart" not in shown(*losses)


GOOD = '{"step": 1, "loss": 2.5, "seconds": 1.0}'


@pytest.mark.parametrize(
    "line",
    ["", "{", "nonsense", "[1]", "3", "null", "[" * 5000, GOOD, '{"step": 1, "loss": NaN}', '{"step": true}',
     '{"step": 1, "loss": 1e999}', '{"step": -1, "loss": 1}', '{"step": 1e300, "loss": 1}', '{"loss": 1}',
     '{"step": 1, "loss": null, "seconds": {}}', '{"step": 1, "gates": [0.1, "a"]}', '{"step": 1, "loss": "2"}',
     '{"step": 1, "gates": 7}', '{"step": 1%s, "loss": 1}' % ("0" * 400), '{"step": 1, "gates": [NaN]}',
     '{"step": 1, "seconds": 1%s}' % ("0" * 400), '{"step": 1, "loss": 5e-324}', '{"step": 1, "loss": 1.7e308}',
     '{"step": 1, "untrained_loss": []}',
     '{"step": 1, "loss": -4}', "\x00\x00", "\ufeff{}"],
)  # fmt: skip
def test_a_broken_line_of_metrics_is_passed_over(line: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe\n" + f"{line}\n{GOOD}\n".encode())
    progress = MetricsTail(tmp_path).read()
    assert progress.losses[-1] == (1, 2.5) and progress.step == 1
    first = dataclasses.replace(progress, losses=progress.losses[:1])
    for state, shown in (("training", progress), ("ended", first)):
        assert run_html(TrainingRun("n", state, RunRecord(), recipe_of("n"), shown, "", True, True))  # type: ignore[arg-type]


def test_metrics_are_read_once_and_anew_if_they_were_replaced(tmp_path: Path) -> None:
    file, tail = tmp_path / "metrics.jsonl", MetricsTail(tmp_path)
    assert tail.read() == RunProgress()
    file.write_text(GOOD + '\n{"step": 2, "lo')
    assert tail.read().losses == ((1, 2.5),)
    with open(file, "r+b") as opened:
        opened.write(b" " * len(GOOD))  # what was read may change
        opened.seek(0, 2)
        opened.write(b'ss": 1.5}\n')
    assert tail.read().losses == ((1, 2.5), (2, 1.5))
    assert tail.read() is tail.read()
    # The trainer replaces the file when it resumes.
    (tmp_path / "new").write_text(GOOD.replace("2.5", "9.0") + "\n" + '{"step": 2, "loss": 8.0}\n' * 9)
    (tmp_path / "new").replace(file)
    assert tail.read().losses[:2] == ((1, 9.0), (2, 8.0))
    file.unlink()
    assert tail.read() == RunProgress()


@pytest.mark.parametrize("end", [b"", b"\n" + GOOD.encode() + b"\n"])
def test_of_long_metrics_the_end_is_read(end: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 MB, which nobody waits for: with a line that has no end too."""
    read = 0

    def counting_open(path: Path, mode: str) -> Any:
        opened = io.open(path, mode)  # noqa: SIM115, UP020
        whole = opened.read

        def counting_read(count: int = -1) -> bytes:
            nonlocal read
            data = whole(count)
            read += len(data)
            return data

        return SimpleNamespace(
            __enter__=None, read=counting_read, seek=opened.seek, close=opened.close, fileno=opened.fileno
        )

    monkeypatch.setattr(metrics, "open", lambda *a: contextlib.closing(counting_open(*a)), raising=False)
    tail, file = MetricsTail(tmp_path), tmp_path / "metrics.jsonl"
    with open(file, "wb") as opened:
        opened.truncate(100 * 2**20)
        opened.seek(0, 2)
        opened.write(end)
    assert tail.read().losses == (((1, 2.5),) if end else ())
    assert read <= metrics.MAX_BYTES
    with open(file, "ab") as opened:
        opened.write(b"\n" + GOOD.replace("2.5", "1.5").encode() + b"\n")
    assert tail.read().losses[-1] == (1, 1.5)
    assert read <= 2 * metrics.MAX_BYTES + 1000


# Runs.


def write_run(folder: Path, name: str, record: RunRecord | None = None) -> Path:
    """A run that has ended, as its trainer leaves it."""
    run = folder / name
    run.mkdir(parents=True)
    (run / RECIPE).write_text(recipe_text(recipe_of(name)))
    (run / "messages.txt").write_text("step 1\n")
    (run / "metrics.jsonl").write_text(GOOD + "\n")
    (run / RECORD).write_text(json.dumps(dataclasses.asdict(record or RunRecord(1.0, pid=2**22 - 1, started=1.0))))
    return run


def test_open_tabs_read_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """5 tabs watch 8 runs: nothing is read again until it has changed, however often they look."""
    folders = [write_run(tmp_path, f"run-{i}") for i in range(8)]
    tabs = [TrainEvents(TrainingRuns(tmp_path), FakeCatalog(), BASE)]  # type: ignore[arg-type]
    checked: list[int] = []
    process = psutil.Process
    monkeypatch.setattr(psutil, "Process", lambda pid: checked.append(pid) or process(pid))

    def look() -> int:
        before = len(opened_files)
        for tab in tabs * 5:
            for _ in range(3):
                for i in range(8):
                    assert f"run-{i}" in tab.panel(f"run-{i}", None, "", "", None)[3]
                tab.runs.speed(BASE)
        return sum(str(tmp_path) in path for path in opened_files[before:])

    with watched_files() as opened_files:
        assert look() == 4 * 8  # record, recipe, messages and metrics
        assert look() == 0
        with open(folders[3] / "metrics.jsonl", "a") as file:
            file.write('{"step": 2, "loss": 1.0, "seconds": 2.0}\n')
        assert look() == 1
    assert tabs[0].runs.progress("run-3").step == 2
    assert len(checked) <= 8, "a process that has ended is looked for once"


@pytest.mark.parametrize("reads", range(1, 8))
def test_a_run_that_is_removed_meanwhile(reads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many looks at its files."""
    folder = write_run(tmp_path, "echo")
    tab = TrainEvents(TrainingRuns(tmp_path), FakeCatalog(), BASE)  # type: ignore[arg-type]
    left, stat = reads, os.stat

    def removing_stat(path: Any, *arguments: Any, **more: Any) -> Any:
        nonlocal left
        if str(path).startswith(str(folder)):
            left -= 1
            if not left:
                shutil.rmtree(folder)
        return stat(path, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", removing_stat)
        assert len(tab.panel("echo", None, "", "", None)) == 12
    assert left <= 0 and texts.NOTHING_YET in tab.panel("echo", None, "", "", None)[3]
    assert tab.runs.get("echo") is None and tab.runs.taken() == [] and tab.runs._files._contents == {}


@contextlib.contextmanager
def fake_trainer(folder: Path, runs: TrainingRuns, launched: float = 1.0) -> Iterator[subprocess.Popen[bytes]]:
    """A run whose process is slow to save: it only ends when its input does."""
    script = "import signal, sys; signal.signal(15, signal.SIG_IGN); print(flush=True); sys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(folder / "echo")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout is not None and child.stdout.readline()
        record = RunRecord(launched, pid=child.pid, started=psutil.Process(child.pid).create_time())
        write_run(folder, "echo", record)
        runs._child, runs._child_name = child, "echo"
        yield child
    finally:
        child.kill()
        child.wait()


def test_a_server_that_closes_says_whether_the_run_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_runs, "CLOSE_SECONDS", 0.05)
    runs = TrainingRuns(tmp_path)
    with fake_trainer(tmp_path, runs) as child:
        assert runs.close() == ("echo", False) and "still being saved" in texts.stopped_with_server("echo", False)
        assert runs.close() is None, "the run is named once"
        run = runs.get("echo")
        assert run is not None and run.state == "stopping"
        child.kill()
        child.wait()
        run = runs.get("echo")
        assert run is not None and run.state == "stopped"
        monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
        with pytest.raises(Busy, match="going down"):
            runs.resume("echo")


def test_a_stop_ends_the_process_that_was_seen_and_no_later_one(tmp_path: Path) -> None:
    runs = TrainingRuns(tmp_path)
    with fake_trainer(tmp_path, runs, launched=7.0):
        runs.stop("echo", 6.0)
        run = runs.get("echo")
        assert run is not None and not run.record.stop
        runs.stop("echo", 7.0)
        run = runs.get("echo")
        assert run is not None and run.record.stop


@pytest.mark.parametrize("wanted", [None, "2"])
def test_the_trainers_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str | None) -> None:
    """Its idle threads do not spin, whatever the server's own threads do (adapter/base/threads.py), whose
    environment it inherits. Of visitors' pictures it keeps nothing that another visitor's run would find.
    """
    given: dict[str, str] = {}

    def start_process(_: Any, env: dict[str, str], **more: Any) -> None:
        given.update(env)
        raise OSError("enough")

    for name, value in (("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "2000")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(SIZE_VARIABLE, raising=False)
    if wanted is not None:
        monkeypatch.setenv(SIZE_VARIABLE, wanted)
    monkeypatch.setattr(subprocess, "Popen", start_process)
    with pytest.raises(OSError, match="enough"):
        TrainingRuns(tmp_path).start(
            "echo", [], lambda folder: (plan_of(data=write_jsonl(folder / "rows.jsonl", ROWS)), "", "")
        )
    assert (given["OMP_WAIT_POLICY"], given["GOMP_SPINCOUNT"]) == ("PASSIVE", "0")
    assert given[SIZE_VARIABLE] == (wanted or "0")


def test_a_run_that_cannot_be_recorded_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = TrainingRuns(tmp_path)

    def plan(folder: Path) -> tuple[RunPlan, str, str]:
        return plan_of(data=write_jsonl(folder / "rows.jsonl", ROWS)), "", ""

    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    children: list[subprocess.Popen[bytes]] = []
    start_process = subprocess.Popen

    def endless(_: Any, **more: Any) -> subprocess.Popen[bytes]:
        children.append(start_process([sys.executable, "-c", "import time; time.sleep(600)"], **more))
        return children[-1]

    monkeypatch.setattr(train_runs, "_write_record", full_disk)
    monkeypatch.setattr(subprocess, "Popen", endless)
    try:
        with pytest.raises(OSError, match="No space"):
            runs.start("echo", [], plan)
        (child,) = children
        assert child.wait(20) != 0 and runs.names() == []
    finally:
        children[0].kill()


def recipe_of(name: str) -> RecipeFile:
    return plan_of(name=name, steps=1000).recipe()


class Trainer:
    """Starts and watches runs on a tiny base in a folder of their own."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder, self.base = folder, base
        self.runs = TrainingRuns(folder)

    def start(self, name: str = "echo", steps: int = 600, runs: TrainingRuns | None = None) -> str:
        def plan(folder: Path) -> tuple[RunPlan, str, str]:
            data = write_jsonl(folder / "rows.jsonl", ROWS)
            extra = {"eval_every": 20, "prompt_length": 4}
            return RunPlan("x", data, "x", False, steps=steps, base=str(self.base), extra=extra), "say 3", ""

        return (runs or self.runs).start(name, ["poet"], plan)

    def wait(self, condition: Callable[[TrainingRun], bool], runs: TrainingRuns | None = None) -> TrainingRun:
        def matching_run() -> TrainingRun | None:
            run = (runs or self.runs).get("echo")
            assert run is not None
            return run if condition(run) else None

        return wait_until(matching_run, lambda: self.runs.log("echo"))

    def wait_for_end(self) -> TrainingRun:
        return self.wait(lambda run: not run.alive)

    def wait_for_save(self, step: int, runs: TrainingRuns | None = None) -> TrainingRun:
        return self.wait(lambda run: run.saved and run.progress.step >= step, runs)


@pytest.fixture
def trainer(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trainer]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    trainer = Trainer(tmp_path / "runs", tiny_folder)
    yield trainer
    trainer.runs.close()


@pytest.mark.slow
def test_a_run_is_stopped_resumed_and_found_by_other_servers(trainer: Trainer) -> None:
    trainer.start()
    run = trainer.runs.get("echo")
    assert run is not None and run.state == "starting" and trainer.runs.names() == ["echo"]
    restarted = TrainingRuns(trainer.folder)  # a server that was restarted
    assert restarted.running() == "echo"
    with pytest.raises(Busy, match="“echo” is being trained"):
        trainer.start("second", runs=restarted)
    assert not (trainer.folder / "second").exists()
    run = trainer.wait_for_save(25)
    assert run.state == "training" and run.adapter and run.seconds_left and run.record.question == "say 3"
    assert run.record.pid is not None and psutil.Process(run.record.pid).nice() > psutil.Process().nice()
    load_adapter(trainer.folder / "echo")  # possible at any time
    # Another server stops it; a second request does not interrupt the save.
    restarted.stop("echo")
    restarted.stop("echo")
    run = trainer.wait_for_end()
    assert run.state == "stopped" and run.saved and run.adapter and 0 < run.progress.step < 600
    stopped_at = run.progress.step
    # That server resumes it, to the end: no step was taken twice or left out.
    restarted.resume("echo")
    run = trainer.wait(lambda run: run.alive, restarted)
    assert run.state == "starting" and run.progress.step == stopped_at  # old metrics do not make it "training"
    run = trainer.wait_for_end()
    assert run.state == "ended" and not run.saved and run.progress.step == 600
    assert [step for step, _ in run.progress.losses] == list(range(1, 601))
    assert run.progress.untrained and (run.progress.kept_loss("best") or 9) < run.progress.untrained
    with pytest.raises(BadInput, match="nothing to go on with"):
        trainer.runs.resume("echo")
    names = zipfile.ZipFile(zip_adapter(trainer.folder / "echo")).namelist()
    assert sorted(names) == [f"echo/{name}" for name in sorted(SERVED)]


@pytest.mark.slow
def test_a_killed_trainer_leaves_an_adapter_that_answers(tiny_folder: Path, tmp_path: Path) -> None:
    """Beside a server, which keeps answering; the run can be resumed, and is stopped by its server's end."""
    base = endless_base(tiny_folder, tmp_path / "base")
    trainer = Trainer(tmp_path / "runs", base)
    environment = {"LLAMA_ADAPTER_RUNS": str(trainer.folder)}
    with app_process(tmp_path / "server", "--base", str(base), environment=environment) as server:
        bare = server.answer()
        try:
            trainer.start()
            run = trainer.wait_for_save(25)
            os.kill(run.record.pid or 0, signal.SIGKILL)
            run = trainer.wait_for_end()
            assert run.state == "killed" and run.saved and run.adapter
            assert "killed it" in run_html(run) and "Go on" in run_html(run) and trainer.runs.running() is None
            server.check_alive()
            assert server.answer() == bare
            best = server.answer(model="echo")
            assert best != bare and best == server.answer(model="echo")
            killed_at = run.progress.step
            trainer.runs.resume("echo")
            run = trainer.wait(lambda run: run.progress.step > killed_at + 25)
            steps = [step for step, _ in run.progress.losses]
            assert steps == list(range(1, len(steps) + 1))
            # A server that shuts down stops its run, and waits for the save.
            assert trainer.runs.close() == ("echo", True)
            run = trainer.wait_for_end()
            assert run.state == "stopped" and run.saved
            assert trainer.runs.close() is None
        finally:
            trainer.runs.close()


@pytest.mark.slow
def test_a_failed_run_names_the_error_and_frees_its_name(trainer: Trainer) -> None:
    trainer.base = trainer.folder / "nowhere" / "base"
    trainer.start()
    run = trainer.wait_for_end()
    assert run.state == "failed" and not run.saved and "Traceback" not in run.message
    assert "base" in run.message and str(trainer.folder) not in run_html(run)
    assert "echo" not in trainer.runs.taken()
    with pytest.raises(BadInput, match="already"):
        trainer.start("poet")


def test_a_process_with_the_number_of_a_run_is_not_taken_for_it(tmp_path: Path) -> None:
    folder = tmp_path / "echo"
    folder.mkdir()
    (folder / RECIPE).write_text(recipe_text(recipe_of("echo")))
    runs = TrainingRuns(tmp_path)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", str(folder)])
    try:
        started = psutil.Process(sleeper.pid).create_time()
        pytest_process = psutil.Process()
        for pid, start_time, alive in (
            (sleeper.pid, started, True),  # its number, its start time, its command
            (sleeper.pid, started - 3600, False),
            (pytest_process.pid, pytest_process.create_time(), False),
            (2**22 - 1, started, False),
            (None, None, False),
        ):
            record = RunRecord(time.time(), pid=pid, started=start_time)
            (folder / RECORD).write_text(json.dumps(dataclasses.asdict(record)))
            assert (runs.running() == "echo") is alive
            if not alive:
                runs.stop("echo")
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()
    (folder / RECORD).write_text('{"cut')
    assert runs.get("echo") is None and runs.running() is None and runs.log("echo") == ""


@pytest.mark.parametrize("name", ["../echo", "", "nobody", "echo/../echo", "x" * 5000, "\0", None, 3, ["echo"]])
def test_names_that_are_no_run_have_no_effect(name: Any, tmp_path: Path) -> None:
    runs = TrainingRuns(tmp_path / "runs")
    assert runs.get(name) is None and runs.log(name) == ""
    runs.stop(name)
    with pytest.raises(BadInput):
        runs.resume(name)


def test_a_plan_that_fails_leaves_no_files(tmp_path: Path) -> None:
    runs = TrainingRuns(tmp_path / "runs")

    def plan(folder: Path) -> Any:
        (folder / "half.jsonl").write_text("x")
        raise BadInput("No.")

    with pytest.raises(BadInput):
        runs.start("echo", [], plan)
    assert runs.names() == [] and runs.taken() == [".starting"]
