"""Plans and runs of the Train tab: names, commands, metrics; a stub for the trainer, and the real one once."""

from __future__ import annotations

import contextlib
import dataclasses
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
from typing import Any

import psutil
import pytest
import torch

import train.precision
import train.ui.plan
from adapter.base.embedded import BASE
from adapter.base.template import Message
from adapter.errors import BadInput, Busy
from adapter.method.config import check_name
from adapter.serve.engine import Engine
from adapter.serve.request import GenerationRequest
from adapter.serve.sampling import SamplingParams
from adapter.serve.store import AdapterStore
from tests.app_process import wait_until
from tests.fake_engine import FakeCatalog
from tests.train.ui.test_data_upload import ROWS, write_jsonl
from train.config import RecipeFile, read_recipe, recipe_text
from train.input.feature_store import SIZE_VARIABLE
from train.ui import metrics, texts
from train.ui import runs as train_runs
from train.ui.charts import run_html
from train.ui.data_upload import open_sample
from train.ui.events import SERVED, TrainEvents, zip_adapter
from train.ui.metrics import RunProgress, read_metrics
from train.ui.plan import RunPlan, Sample, free_name, samples
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


def plan_of(settings: dict[str, Any] | None = None, **changes: Any) -> RunPlan:
    """settings: those of a sample."""
    sample = Sample("s", "S", "", Path("a.jsonl"), settings=settings or {})
    return RunPlan(**{"shown": "a.jsonl", "name": "n", "sample": sample, "tokens": 60, **changes})


def recipe_of(name: str, **changes: Any) -> RecipeFile:
    recipe = plan_of(name=name, steps=1000).recipe(Path("a.jsonl"))
    return dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, **changes))


PICTURES = {"preset": "small", "vision": {"hidden": 32}, "data": {"validation": 0.2}}


@pytest.mark.parametrize(
    "plan",
    [
        plan_of(shown="my data.jsonl"),
        plan_of(name="yes", description="Says: 'ahoy' \"#1\" $HOME; & more"),
        plan_of(name="1e5", description="null", steps=100, lr=0.01),
        plan_of(PICTURES, pictures=True),
        plan_of({"preset": "quick", "steps": 60}, template="alpaca", steps=60),
    ],
)
def test_the_command_makes_the_same_recipe_as_the_tab(plan: RunPlan, tmp_path: Path) -> None:
    words = shlex.split(plan.command())
    assert words[:3] == ["python", "-m", "train"]
    recipe = read_recipe(None, words[3:])
    assert recipe == plan.recipe(Path(plan.shown))
    (tmp_path / RECIPE).write_text(recipe_text(recipe))
    assert read_recipe(tmp_path / RECIPE, []) == recipe
    assert recipe.train.name == plan.name and recipe.train.description == plan.description
    assert plan.steps is None or recipe.train.steps == plan.steps


def test_a_typed_description_overrides_the_samples() -> None:
    own = {"description": "The sample's own."}
    for typed, used in (("", "The sample's own."), (" Mine.\n", "Mine.")):
        plan = plan_of(own).with_settings("n", typed)
        assert plan.recipe(Path("a")).train.description == used


def test_the_command_names_a_base_without_its_folder() -> None:
    plan = plan_of(base="/somewhere/secret/tiny")
    assert plan.command("r/n").endswith("--base tiny --out r/n")
    assert plan.recipe(Path("a")).base == "/somewhere/secret/tiny"


@pytest.mark.parametrize("wrong", [{"steps": 9}, {"steps": 10**9}, {"lr": 0.0}, {"lr": 1e9}, {"lr": float("nan")}])
def test_settings_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        plan_of(**wrong)


def test_the_estimate_follows_history_precision_cores_and_what_was_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def minutes(history: float = 0.5, precision: str = "bf16", cores: int = 2) -> float:
        monkeypatch.setattr(train.precision, "choose_precision", lambda *_: (precision, ""))
        monkeypatch.setattr(train.ui.plan, "available_cores", lambda: cores)
        estimate = plan_of({"history": history}).estimate_minutes(None)
        assert estimate is not None
        return estimate

    monkeypatch.setattr(train.precision, "default_device", lambda: torch.device("cpu"))
    assert minutes(history=1.0) > minutes() > minutes(history=0.0) > 0
    assert minutes(precision="fp32") > minutes() > minutes(cores=4)
    assert plan_of(base="another/base").estimate_minutes(None) is None
    monkeypatch.setattr(train.precision, "default_device", lambda: torch.device("cuda"))
    assert plan_of().estimate_minutes(None) is None  # a GPU that was never measured
    assert 0 < (plan_of().estimate_minutes(100.0) or 0) < (plan_of().estimate_minutes(10.0) or 0)


def test_every_sample_can_be_trained_on() -> None:
    found = samples()
    assert found and len({sample.name for sample in found}) == len(found)
    for sample in found:
        data = open_sample(sample.path)
        plan = plan_of(sample=sample, pictures=data.pictures)
        assert plan.recipe(data.path).train.steps and len(data.records) >= 20 and sample.question


# Metrics.


def test_the_kept_loss_is_that_of_the_adapter_that_is_kept() -> None:
    progress = RunProgress(held_out=((10, 2.0), (20, 1.5), (30, 1.75)), evaluated=30)
    assert (progress.kept("best"), progress.kept("last")) == ((20, 1.5), (30, 1.75))
    assert RunProgress().kept("last") == RunProgress().kept("best") == (0, None)


def shown(progress: RunProgress, state: Any = "training", **settings: Any) -> str:
    return run_html(TrainingRun("n", state, RunRecord(), recipe_of("n", **settings), progress, "", True, "1"))


def test_progress_is_read_while_metrics_are_written(tmp_path: Path) -> None:
    lines = [
        {"step": 0, "untrained_loss": 3.0, "evaluation_seconds": 2.0}, {"step": 0, "gates": [0.0, 0.0]},
        *({"step": i, "loss": 3 - i, "largest_gate": 0.1, "seconds": i / 2 + 9} for i in (1, 2, 3)),
        {"step": 3, "held_out_loss": 1.5, "evaluation_seconds": 2.0}, {"step": 3, "gates": [0.1, 0.2]},
    ]  # fmt: skip
    file = tmp_path / "metrics.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 4, "lo')
    progress = read_metrics(file)
    assert (progress.step, progress.untrained, progress.kept("best")) == (3, 3.0, (3, 1.5))
    assert progress.gates == (0.1, 0.2) and progress.losses == ((1, 2.0), (2, 1.0), (3, 0.0))
    assert progress.seconds_left(10, 4) == pytest.approx(7 * 0.5 + 2 * 2.0)  # the slow first step does not count
    html = shown(progress)
    assert "Step 3 of 1,000" in html and "<svg" in html and "layer 2: 0.200" in html
    file.write_text("\n".join(map(json.dumps, lines[:4])) + "\n")
    assert read_metrics(file).seconds_left(10, 4) is None  # known from the third step on


def test_held_out_loss_that_has_turned_upward_is_told() -> None:
    def told(*losses: float, **settings: Any) -> str:
        return shown(RunProgress(held_out=tuple((20 * i, loss) for i, loss in enumerate(losses, 1))), **settings)

    assert "by heart at step 40; the best is kept" in told(2.0, 1.5, 1.6)
    assert "by heart at step 40; the last is kept" in told(2.0, 1.5, 1.6, save="last")
    for losses in ((), (2.0,), (2.0, 1.5), (2.0, 1.5, 1.51), (2.0, 1.5, 1.6, 1.4)):
        assert "by heart" not in told(*losses)


GOOD = '{"step": 1, "loss": 2.5, "seconds": 1.0}'


@pytest.mark.parametrize(
    "line",
    ["", "{", "nonsense", "[1]", "3", "null", "[" * 5000, GOOD, '{"step": 1, "loss": NaN}', '{"step": true}',
     '{"step": 1, "loss": 1e999}', '{"step": -1, "loss": 1}', '{"step": 1e300, "loss": 1}', '{"loss": 1}',
     '{"step": 1, "loss": null, "seconds": {}}', '{"step": 1, "gates": [0.1, "a"]}', '{"step": 1, "loss": "2"}',
     '{"step": 1, "gates": 7}', '{"step": 1%s, "loss": 1}' % ("0" * 400), '{"step": 1, "gates": [NaN]}',
     '{"step": 1, "seconds": 1%s}' % ("0" * 400), '{"step": 1, "loss": 5e-324}', '{"step": 1, "loss": 1.7e308}',
     '{"step": 1, "untrained_loss": []}', '{"step": 1, "loss": -4}', "\x00\x00", "\ufeff{}"],
)  # fmt: skip
def test_a_broken_line_of_metrics_is_passed_over(line: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe\n" + f"{line}\n{GOOD}\n".encode())
    progress = read_metrics(tmp_path / "metrics.jsonl")
    assert progress.losses[-1] == (1, 2.5) and progress.step == 1
    assert shown(progress) and shown(dataclasses.replace(progress, losses=progress.losses[:1]), "ended")


@pytest.mark.parametrize("end, losses", [(b"", ()), (b"\n" + GOOD.encode() + b"\n", ((1, 2.5),))])
def test_of_long_metrics_the_end_is_read(
    end: bytes, losses: metrics.Points, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred times as much as is read, also of a line that has no end."""
    monkeypatch.setattr(metrics, "MAX_BYTES", 1_000)
    (tmp_path / "metrics.jsonl").write_bytes(GOOD.encode() + b"\n" + bytes(100_000) + end)
    assert read_metrics(tmp_path / "metrics.jsonl").losses == losses


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


# In place of `python -m train`. It waits for the file "go", takes ten steps, waits to be stopped or killed, and a
# resumed one goes on to the end. Files beside its folder say what goes wrong.
STUB = """
import json, os, pathlib, signal, sys, time

out, stopped = pathlib.Path(sys.argv[sys.argv.index("--out") + 1]), []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
(out / "environment").write_text(json.dumps(dict(os.environ)))
print("reading rows.jsonl", flush=True)
while not (out / "go").exists():
    time.sleep(0.01)
(out / "go").unlink()
if (out.parent / "fails").exists():
    sys.exit("Traceback" + str(print("error: There is no such base.")))
metrics, step = out / "metrics.jsonl", 0
if "--resume" in sys.argv:
    step = json.loads(metrics.read_text().splitlines()[-1])["step"]
last = 40 if step else 10
while step < last:
    step += 1
    with open(metrics, "a") as file:
        file.write(json.dumps({"step": step, "loss": 1 / step, "seconds": step / 10}) + "\\n")
for name in ("config.json", "adapter.safetensors", "state.pt"):
    (out / name).write_text("{}")
while last == 10 and not stopped:
    time.sleep(0.01)
while (out.parent / "is slow").exists():
    time.sleep(0.01)
if last == 10:
    sys.exit(str(print(f"stopped after step {step} of 1,000.")))
(out / "README.md").write_text("# echo")
(out / "state.pt").unlink()
"""


class Trainer:
    """Starts and watches runs in a folder of their own."""

    def __init__(self, folder: Path, base: str = BASE) -> None:
        self.folder, self.base = folder, base
        self.runs = TrainingRuns(folder)

    def start(self, name: str = "echo", runs: TrainingRuns | None = None) -> str:
        def prepare(folder: Path) -> tuple[RecipeFile, str, str]:
            data = write_jsonl(folder / "rows.jsonl", ROWS)
            plan = plan_of({"eval_every": 20, "prompt_length": 4}, name="x", steps=600, base=self.base)
            return plan.recipe(data), "say 3", ""

        return (runs or self.runs).start(name, ["poet"], prepare)

    def go(self) -> None:
        (self.folder / "echo" / "go").write_text("")

    def get(self, name: str = "echo") -> TrainingRun:
        run = self.runs.get(name)
        assert run is not None
        return run

    def wait(self, condition: Callable[[TrainingRun], bool]) -> TrainingRun:
        wait_until(lambda: condition(self.get()), lambda: self.runs.log("echo"))
        return self.get()

    def wait_for_end(self) -> TrainingRun:
        return self.wait(lambda run: not run.alive)

    def wait_for_save(self) -> TrainingRun:
        return self.wait(lambda run: run.saved and run.progress.step >= 10)


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trainer]:
    """Runs whose trainer is the stub."""
    (tmp_path / "house" / "train").mkdir(parents=True)
    (tmp_path / "house" / "train" / "__main__.py").write_text(STUB)
    monkeypatch.setattr(train_runs, "ROOT", tmp_path / "house")
    trainer = Trainer(tmp_path / "runs")
    yield trainer
    trainer.runs.close()
    if trainer.runs.running():  # it is slow
        os.kill(trainer.get().record.pid or 0, signal.SIGKILL)


def test_a_run_is_stopped_resumed_and_found_by_other_servers(stub: Trainer) -> None:
    stub.start()
    assert stub.get().state == "starting" and stub.runs.names() == ["echo"]
    restarted = TrainingRuns(stub.folder)  # a server that was restarted
    assert restarted.running() == "echo"
    with pytest.raises(Busy, match="“echo” is being trained"):
        stub.start("second", runs=restarted)
    assert not (stub.folder / "second").exists()
    stub.go()
    run = stub.wait_for_save()
    assert run.state == "training" and run.adapter and run.seconds_left and run.record.question == "say 3"
    assert run.record.pid is not None and psutil.Process(run.record.pid).nice() > psutil.Process().nice()
    # Another server stops it; a second request does not interrupt the save.
    restarted.stop("echo")
    restarted.stop("echo")
    run = stub.wait_for_end()
    assert run.state == "stopped" and run.saved and run.adapter and run.progress.step == 10
    # That server resumes it, to the end.
    restarted.resume("echo")
    run = stub.get()
    assert run.state == "starting" and run.progress.step == 10  # old metrics do not make it "training"
    stub.go()
    run = stub.wait_for_end()
    assert run.state == "ended" and not run.saved and [step for step, _ in run.progress.losses] == [*range(1, 41)]
    with pytest.raises(BadInput, match="nothing to go on with"):
        stub.runs.resume("echo")
    names = zipfile.ZipFile(zip_adapter(stub.folder / "echo")).namelist()
    assert sorted(names) == [f"echo/{name}" for name in sorted(SERVED)]


def test_a_run_that_was_killed_or_fails_says_so_and_frees_its_name(stub: Trainer) -> None:
    stub.start()
    stub.go()
    run = stub.wait_for_save()
    os.kill(run.record.pid or 0, signal.SIGKILL)
    run = stub.wait_for_end()
    assert run.state == "killed" and run.saved and run.adapter and stub.runs.running() is None
    assert "killed it" in run_html(run) and "after the last save" in run_html(run)
    (stub.folder / "fails").write_text("")
    shutil.rmtree(stub.folder / "echo")
    stub.start()
    stub.go()
    run = stub.wait_for_end()
    assert run.state == "failed" and not run.saved and run.message == "There is no such base."
    assert run.message in run_html(run) and "echo" not in stub.runs.taken()
    with pytest.raises(BadInput, match="already"):
        stub.start("poet")


def test_a_server_that_closes_says_whether_the_run_is_saved(
    stub: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_runs, "CLOSE_SECONDS", 0.05)
    stub.start()
    (stub.folder / "is slow").write_text("")
    stub.go()
    stub.wait_for_save()
    assert stub.runs.close() == ("echo", False) and "still being saved" in texts.stopped_with_server("echo", False)
    assert stub.runs.close() is None, "the run is named once"
    assert stub.get().state == "stopping"
    (stub.folder / "is slow").unlink()
    assert stub.wait_for_end().state == "stopped"
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    with pytest.raises(Busy, match="going down"):
        stub.runs.resume("echo")


def test_a_stop_ends_the_process_that_was_seen_and_no_later_one(stub: Trainer) -> None:
    stub.start()
    stub.go()
    launched = stub.wait_for_save().record.launched
    stub.runs.stop("echo", launched - 1)
    assert not stub.get().record.stop
    stub.runs.stop("echo", launched)
    assert stub.get().record.stop and stub.wait_for_end().state == "stopped"


@pytest.mark.parametrize("wanted", [None, "2"])
def test_the_trainers_environment(stub: Trainer, monkeypatch: pytest.MonkeyPatch, wanted: str | None) -> None:
    """Its idle threads do not spin, whatever the server's own threads do (adapter/base/threads.py), whose
    environment it inherits. Of visitors' pictures it keeps nothing that another visitor's run would find.
    """
    for name, value in (("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "2000")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(SIZE_VARIABLE, raising=False)
    if wanted is not None:
        monkeypatch.setenv(SIZE_VARIABLE, wanted)
    stub.start()
    stub.wait(lambda run: "reading" in run.message)
    given = json.loads((stub.folder / "echo" / "environment").read_text())
    assert (given["OMP_WAIT_POLICY"], given["GOMP_SPINCOUNT"]) == ("PASSIVE", "0")
    assert given[SIZE_VARIABLE] == (wanted or "0")
    stub.go()


def test_a_run_that_cannot_be_recorded_does_not_run(stub: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    children: list[subprocess.Popen[bytes]] = []
    start_process = subprocess.Popen

    def full_disk(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train_runs, "_write_record", full_disk)
    monkeypatch.setattr(
        subprocess, "Popen", lambda *a, **more: children.append(start_process(*a, **more)) or children[-1]
    )
    with pytest.raises(OSError, match="No space"):
        stub.start()
    (child,) = children
    assert child.wait(20) != 0 and stub.runs.names() == []


@pytest.mark.slow
def test_a_killed_trainer_leaves_an_adapter_that_answers(
    tmp_path: Path, tiny_base: Any, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real trainer. Its run is resumed, and is stopped by its server's end."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    trainer = Trainer(tmp_path / "runs", str(tiny_folder))
    engine = Engine(tiny_base, AdapterStore(trainer.folder))

    def logprob(adapter: str | None) -> float:
        """Of an answer's first token."""
        sampling = SamplingParams(temperature=0, max_new_tokens=1)
        request = GenerationRequest((Message("user", "say 3"),), adapter, sampling=sampling)
        return next(event.logprob for event in engine.submit(request) if event.logprob is not None)

    with contextlib.ExitStack() as stack:
        stack.callback(engine.close)
        stack.callback(trainer.runs.close)
        trainer.start()
        run = trainer.wait_for_save()
        os.kill(run.record.pid or 0, signal.SIGKILL)
        run = trainer.wait_for_end()
        assert run.state == "killed" and run.saved and run.adapter
        assert abs(logprob("echo") - logprob(None)) > 0.01
        killed_at = run.progress.step
        trainer.runs.resume("echo")
        run = trainer.wait(lambda run: run.progress.step > killed_at + 25)
        # No step was taken twice or left out.
        assert [step for step, _ in run.progress.losses] == list(range(1, len(run.progress.losses) + 1))
        # A server that shuts down stops its run, and waits for the save.
        assert trainer.runs.close() == ("echo", True)
        run = trainer.wait_for_end()
        assert run.state == "stopped" and run.saved and trainer.runs.close() is None


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


def test_data_that_cannot_be_written_leave_no_files(tmp_path: Path) -> None:
    runs = TrainingRuns(tmp_path / "runs")

    def prepare(folder: Path) -> Any:
        (folder / "half.jsonl").write_text("x")
        raise BadInput("No.")

    with pytest.raises(BadInput):
        runs.start("echo", [], prepare)
    assert runs.names() == [] and runs.taken() == [".starting"]
