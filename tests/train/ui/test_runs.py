"""The runs of the Train tab: a stub in place of the trainer, and the real one once."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import psutil
import pytest

from adapter.base.embedded import BASE
from adapter.errors import BadInput, Busy
from tests.app_process import wait_until
from tests.fake_engine import event_request
from tests.train.ui.test_plan import GOOD, plan_of, recipe_of
from tests.train.ui.test_tab import events
from train.config import DATA, RecipeFile, recipe_text
from train.input.features import SIZE_VARIABLE
from train.ui import runs as train_runs
from train.ui import texts
from train.ui.charts import run_html
from train.ui.runs import RECIPE, RECORD, RunRecord, TrainingRun, TrainingRuns

opened: list[str] = []  # the files of runs called "run-…"
sys.addaudithook(lambda event, args: event == "open" and "/run-" in str(args[0]) and opened.append(str(args[0])))


def write_record(run: Path, record: RunRecord) -> None:
    (run / RECORD).write_text(json.dumps(dataclasses.asdict(record)))


def write_run(folder: Path, name: str) -> Path:
    """A run that has ended, as its trainer leaves it."""
    run = folder / name
    run.mkdir(parents=True)
    (run / RECIPE).write_text(recipe_text(recipe_of(name)))
    (run / "messages.txt").write_text("step 1\n")
    (run / "metrics.jsonl").write_text(GOOD + "\n")
    write_record(run, RunRecord(1.0, pid=2**22 - 1, started=1.0))
    return run


def test_open_tabs_read_each_file_once(tmp_path):
    """5 tabs watch 8 runs: nothing is read again until it has changed, however often they look."""
    folders = [write_run(tmp_path, f"run-{i}") for i in range(8)]
    tab = events(tmp_path, BASE)

    def look() -> int:
        opened.clear()
        for _ in range(5):
            for i in range(8):
                assert f"run-{i}" in tab.panel(f"run-{i}", "", None, event_request())[1]
        return len(opened)

    assert look() == 4 * 8  # record, recipe, messages and metrics
    assert look() == 0
    with open(folders[3] / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "loss": 1.0, "seconds": 2.0}\n')
    assert look() == 1 and tab.runs.get("run-3").progress.step == 2
    (folders[tab.runs.names()[0] == "run-7" and 7] / RECIPE).write_text("of: another version")
    assert "run-" in tab.panel(None, "", None, event_request())[1] != texts.NOTHING_YET


@pytest.mark.parametrize("reads", range(1, 8, 2))
def test_a_run_that_is_removed_meanwhile(reads, tmp_path, monkeypatch):
    """After so many looks at its files."""
    folder = write_run(tmp_path, "echo")
    tab = events(tmp_path, BASE)
    left, stat = reads, os.stat

    def removing_stat(path: Any, *arguments: Any, **more: Any) -> Any:
        nonlocal left
        if str(path).startswith(str(folder)):
            left -= 1
            if not left:
                shutil.rmtree(folder)
        return stat(path, *arguments, **more)

    monkeypatch.setattr(os, "stat", removing_stat)
    assert len(tab.panel("echo", "", None, event_request())) == 9
    assert left <= 0 and texts.NOTHING_YET in tab.panel("echo", "", None, event_request())[1]
    assert tab.runs.get("echo") is None and tab.runs.taken() == []


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

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, TrainingRuns(folder)

    def start(self, name: str = "echo", runs: TrainingRuns | None = None, go: bool = False) -> None:
        def prepare(folder: Path) -> tuple[RecipeFile, RunRecord]:
            data = folder / "rows.jsonl"
            data.write_text("".join(f'{{"instruction": "say {i}", "output": "{i}!"}}\n' for i in range(30)))
            plan = plan_of({"eval_every": 5, "prompt_length": 4}, name="x", steps=600, base=BASE)
            return plan.recipe(data), RunRecord(question="say 3")

        (runs or self.runs).start(name, ["poet"], prepare)
        if go:
            (self.folder / "echo" / "go").touch()

    def get(self) -> TrainingRun:
        run = self.runs.get("echo")
        assert run is not None
        return run

    def kill(self) -> None:
        os.kill(self.get().record.pid or 0, signal.SIGKILL)

    def wait(self, condition: Callable[[TrainingRun], bool]) -> TrainingRun:
        wait_until(lambda: condition(self.get()), lambda: self.get().message)
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
        trainer.kill()


def test_a_run_is_stopped_resumed_and_found_by_other_servers(stub, monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.delenv(SIZE_VARIABLE, raising=False)
    stub.start()
    assert stub.get().state == "starting" and stub.runs.names() == ["echo"]
    restarted = TrainingRuns(stub.folder)  # a server that was restarted
    assert restarted.running() == "echo"
    with pytest.raises(Busy, match="“echo” is being trained"):
        stub.start("second", runs=restarted)
    assert not (stub.folder / "second").exists()
    (stub.folder / "echo" / "go").touch()
    run = stub.wait_for_save()
    assert run.state == "training" and run.adapter and run.record.question == "say 3"
    assert run.progress.seconds_left(600, 5)
    assert run.record.pid is not None and psutil.Process(run.record.pid).nice() >= train_runs.NICENESS
    # Its idle threads do not spin, and of visitors' pictures it keeps nothing that another's run would find.
    given = json.loads((stub.folder / "echo" / "environment").read_text())
    assert given["OMP_WAIT_POLICY"] == "PASSIVE" and given[SIZE_VARIABLE] == "0"
    # Another server stops it; a second request does not interrupt the save.
    restarted.stop("echo")
    restarted.stop("echo")
    run = stub.wait_for_end()
    assert run.state == "stopped" and run.saved and run.adapter and run.progress.step == 10
    two = patch.object(restarted, "taken", return_value=["echo", "Echo"])  # names that differ by case alone
    with two, pytest.raises(BadInput, match="already"):
        restarted.resume("echo")
    # That server resumes it, to the end. Old metrics do not make it "training", nor old messages "stopped".
    restarted.resume("echo")
    run = stub.get()
    assert run.state == "starting" and run.progress.step == 10 and "stopped" not in run.message
    (stub.folder / "echo" / "go").touch()
    run = stub.wait_for_end()
    assert not (stub.folder / "echo" / DATA).exists() and texts.ENDED_EARLY in run_html(run)
    assert run.state == "ended" and not run.saved and [step for step, _ in run.progress.losses] == [*range(1, 41)]
    with pytest.raises(BadInput, match="nothing to go on with"):
        stub.runs.resume("echo")


def test_a_run_that_was_killed_or_fails_says_so_and_frees_its_name(stub):
    stub.start(go=True)
    stub.wait_for_save()
    stub.kill()
    run = stub.wait_for_end()
    assert run.state == "killed" and run.saved and run.adapter and stub.runs.running() is None
    assert "ended unexpectedly" in run_html(run) and "from the last save" in run_html(run)
    (stub.folder / "fails").write_text("")
    shutil.rmtree(stub.folder / "echo")
    stub.start(go=True)
    run = stub.wait_for_end()
    assert run.state == "failed" and not run.saved and run.message == "There is no such base."
    assert run.message in run_html(run) and "echo" not in stub.runs.taken()
    with patch.object(train_runs, "_MIN_FREE_BYTES", 2**62), pytest.raises(BadInput, match="are free on the disk"):
        stub.runs.resume("echo")
    assert stub.get().message == run.message  # which a trainer's start empties
    warned = dataclasses.replace(run, state="training", message="warning: It cannot be saved. Training goes on.")
    assert ">It cannot be saved. Training goes on.<" in run_html(warned)


def test_a_server_that_closes_says_whether_the_run_is_saved(stub, monkeypatch):
    monkeypatch.setattr(train_runs, "CLOSE_SECONDS", 0.05)
    stub.start(go=True)
    (stub.folder / "is slow").write_text("")
    stub.wait_for_save()
    assert stub.runs.close() is False and "still being saved" in texts.stopped_with_server(False)
    assert stub.get().state == "stopping"  # also one that had only begun to start
    (stub.folder / "is slow").unlink()
    assert stub.wait_for_end().state == "stopped"
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    (stub.runs.folder / "echo" / train_runs.MESSAGES).write_text("why it ended")
    with pytest.raises(Busy, match="going down"):
        stub.runs.resume("echo")
    assert stub.get().message == "why it ended"


def test_a_run_that_cannot_be_recorded_does_not_run(stub, monkeypatch):
    children: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen
    monkeypatch.setattr(train_runs, "_write_record", Mock(side_effect=OSError(28, "No space left on device")))
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **more: children.append(start(*a, **more)) or children[-1])
    with pytest.raises(OSError, match="No space"):
        stub.start()
    (child,) = children
    assert child.wait(20) != 0 and stub.runs.names() == [] and "echo" not in stub.runs.taken()


def test_a_process_with_the_number_of_a_run_is_not_taken_for_it(tmp_path):
    folder, runs = write_run(tmp_path, "echo"), TrainingRuns(tmp_path)
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", str(folder)])
    try:
        started = psutil.Process(sleeper.pid).create_time() - psutil.boot_time()
        for pid, start_time, alive in (
            (sleeper.pid, started, True),  # its number, its start time, its command
            (sleeper.pid, started - 3600, False),
            (os.getpid(), psutil.Process().create_time() - psutil.boot_time(), False),
            (2**22 - 1, started, False),
        ):
            write_record(folder, RunRecord(time.time(), pid=pid, started=start_time))
            assert (runs.running() == "echo") is alive
            if not alive:
                runs.stop("echo")
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()
    for name in (f"../{tmp_path.name}/echo", "echo/../echo", "x" * 5000, "\0", None, ["echo"]):
        assert runs.get(name) is None and runs.watched(name) == []
        with pytest.raises(BadInput):
            runs.resume(name)
