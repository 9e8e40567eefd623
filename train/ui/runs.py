"""The training runs of one server: processes of `python -m train`, one at a time, each in its own folder.

All state of a run is in its folder, so that a reloaded page and a restarted server find it: recipe, log, metrics,
data, and run.json, which identifies the process by its number, start time and command.
Knows files and processes; knows nothing of Gradio or of tensors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil
from filelock import FileLock

from adapter.errors import AdapterError, BadInput, Busy
from adapter.files import atomic_write
from adapter.method.config import check_name
from adapter.server.loader import import_libraries
from train.config import RecipeFile, read_recipe, recipe_text

if TYPE_CHECKING:
    from train.ui.plan import RunPlan

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_FOLDER = ROOT / "runs"  # where `python -m train` puts a run without --out
RECORD, LOG, RECIPE, DATA = "run.json", "log.txt", "recipe.yaml", "data"
NICENESS = 10  # of the trainer, so that the chat's threads run first
CLOSE_SECONDS = 10.0
_START_TOLERANCE = 5.0  # seconds by which a clock adjustment may shift a process's start time
_LOG_BYTES = 8_000
_MIN_FREE_BYTES = 500 * 2**20
_METRICS_BYTES = 4 * 2**20  # of a long run's metrics, from the end
_RECENT_STEPS = 20  # that the duration of a step is averaged over
State = Literal["starting", "training", "stopping", "ended", "stopped", "failed", "killed"]
Points = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class RunRecord:
    """The content of run.json. launched: when this server started the latest process; pid, started: that process's
    number and start time; stop: whether it was asked to stop; question, picture: what to ask the trained adapter.
    """

    launched: float = 0.0
    pid: int | None = None
    started: float | None = None
    stop: bool = False
    question: str = ""
    picture: str = ""


@dataclass(frozen=True)
class RunProgress:
    """The metrics of a run. losses, held_out, largest_gate: (step, value); gates: mean size, lowest layer first.

    untrained: the held-out loss before the first step; tokens, seconds: of all steps; step_seconds,
    evaluation_seconds: the duration of a recent one; updated: when the metrics were last written.
    """

    step: int = 0
    updated: float = 0.0
    losses: Points = ()
    held_out: Points = ()
    largest_gate: Points = ()
    gates: tuple[float, ...] = ()
    untrained: float | None = None
    tokens: int = 0
    seconds: float = 0.0
    step_seconds: float = 0.0
    evaluation_seconds: float = 0.0

    @property
    def best(self) -> float | None:
        """The held-out loss of the saved adapter."""
        return min((value for _, value in self.held_out), default=None)

    def seconds_left(self, steps: int, eval_every: int) -> float | None:
        """None before the first step."""
        if not self.step_seconds:
            return None
        left = max(steps - self.step, 0)
        return left * self.step_seconds + math.ceil(left / eval_every) * self.evaluation_seconds


@dataclass(frozen=True)
class TrainingRun:
    """One run at the moment of reading. message: the log's last line, or the error that ended the run.

    saved: whether it can be resumed (otherwise it starts anew); adapter: whether there is an adapter to chat with.
    """

    name: str
    state: State
    record: RunRecord
    recipe: RecipeFile
    progress: RunProgress
    message: str
    saved: bool
    adapter: bool

    @property
    def alive(self) -> bool:
        return self.state in ("starting", "training", "stopping")

    @property
    def seconds_left(self) -> float | None:
        return self.progress.seconds_left(self.recipe.train.steps, self.recipe.train.eval_every)


class TrainingRuns:
    """The runs in one folder. Safe for any number of threads, and for several servers over the same folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._child_name = ""

    def names(self) -> list[str]:
        """The runs that this page started, latest first."""
        runs = []
        for path in self.folder.glob(f"*/{RECORD}"):
            with contextlib.suppress(OSError):
                runs.append((path.stat().st_mtime, path.parent.name))
        return [name for _, name in sorted(runs, reverse=True)]

    def taken(self) -> list[str]:
        """The names of folders, except those of runs that ended before anything was saved."""
        names = [path.name for path in self.folder.glob("*")] if self.folder.is_dir() else []
        return [name for name in names if not self._is_empty(name)]

    def running(self) -> str | None:
        """The name of the running run."""
        return next((name for name in self.names() if self._process(name) is not None), None)

    def get(self, name: str) -> TrainingRun | None:
        """The run called `name`; None if there is none or its files cannot be read."""
        folder = self._folder(name)
        record = None if folder is None else _read_record(folder)
        if folder is None or record is None:
            return None
        # Checked before the files are read: a process that has ended has written all of them.
        alive = self._process(name) is not None
        try:
            recipe = read_recipe(folder / RECIPE, [])
        except AdapterError:
            return None
        progress, last_line = read_progress(folder), (self.log(name).splitlines() or [""])[-1]
        state = _state(folder, record, alive, progress, last_line)
        message = last_line.removeprefix("error: ") if state == "failed" else last_line
        return TrainingRun(name, state, record, recipe, progress, message, *_saved_files(folder))

    def log(self, name: str) -> str:
        """The end of the trainer's log."""
        folder = self._folder(name)
        if folder is None:
            return ""
        text = _read_end(folder / LOG, _LOG_BYTES)[0].decode("utf-8", errors="replace")
        lines = (line.rpartition("\r")[2].rstrip() for line in text.split("\n"))
        return "\n".join(line for line in lines if line)

    # A visitor's actions.

    def start(self, name: str, taken: list[str], plan: Callable[[Path], tuple[RunPlan, str, str]]) -> str:
        """Starts a new run and returns its name. Raises AdapterError and leaves nothing if that fails.

        plan: writes the data into the folder it is given; returns the plan and a question and a picture for the
        trained adapter.
        """
        with self._exclusive():
            name = check_name(name, [*taken, *self.taken()])
            folder = self.folder / name
            if shutil.disk_usage(self.folder).free < _MIN_FREE_BYTES:
                raise BadInput(f"Less than {_MIN_FREE_BYTES // 2**20} MB are free on the disk of the server.")
            if folder.exists():
                shutil.rmtree(folder)
            try:
                (folder / DATA).mkdir(parents=True)
                made, question, picture = plan(folder / DATA)
                recipe = dataclasses.replace(made, name=name).recipe()
                (folder / RECIPE).write_text(recipe_text(recipe), encoding="utf-8")
                self._launch(name, RunRecord(question=question, picture=picture), resume=False)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            return name

    def resume(self, name: str) -> None:
        """Continues a run that was stopped, killed or failed from its last save, or anew if there is none."""
        with self._exclusive():
            run = self.get(name)
            if run is None or run.state == "ended":
                raise BadInput("There is nothing to go on with. Start a new run.")
            self._launch(name, dataclasses.replace(run.record, stop=False), resume=run.saved)

    def stop(self, name: str) -> None:
        """Asks a run to stop and save after its current step. Asking again has no effect."""
        folder = self._folder(name)
        with self._lock:
            record = None if folder is None else _read_record(folder)
            process = self._process(name)
            if folder is None or record is None or process is None or record.stop:
                return
            # Written before the signal, so that a process that ends at once counts as stopped.
            _write_record(folder, dataclasses.replace(record, stop=True))
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()

    def close(self) -> str:
        """Stops the run that this server started and waits a while for its save. Returns its name, or ""."""
        child, name = self._child, self._child_name
        if child is None or child.poll() is not None:
            return ""
        self.stop(name)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(CLOSE_SECONDS)
        return name

    # Processes.

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Holds the lock for starting a run, shared by threads and servers. Raises Busy if a run is running."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock, FileLock(self.folder / ".starting"):
            if (name := self.running()) is not None:
                raise Busy(f"“{name}” is being trained. One at a time: wait for its end, or stop it.")
            yield

    def _launch(self, name: str, record: RunRecord, resume: bool) -> None:
        folder, launched = self.folder / name, time.time()
        command = [sys.executable, "-m", "train", "--config", str(folder / RECIPE), "--out", str(folder)]
        # PASSIVE: idle OpenMP threads must not spin on the cores that answer the chat.
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        with open(folder / LOG, "ab") as log:
            self._child = subprocess.Popen(
                [*command, *(["--resume"] if resume else [])],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C goes to the server only, which then asks the trainer to stop
            )
        self._child_name, started = name, None
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self._child.pid)
            started = process.create_time()
            process.nice(psutil.BELOW_NORMAL_PRIORITY_CLASS if os.name == "nt" else NICENESS)
        _write_record(folder, dataclasses.replace(record, launched=launched, pid=self._child.pid, started=started))

    def _process(self, name: str) -> psutil.Process | None:
        """The run's process; None if it has ended, or if another process has its number now."""
        if self._child is not None:
            self._child.poll()  # otherwise it would stay a zombie
        folder = self._folder(name)
        record = None if folder is None else _read_record(folder)
        if folder is None or record is None or record.pid is None or record.started is None:
            return None
        try:
            process = psutil.Process(record.pid)
            command = process.cmdline()  # empty for a moment while a process starts
            same = not command or str(folder) in command
            same &= abs(process.create_time() - record.started) < _START_TOLERANCE
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None

    def _folder(self, name: str) -> Path | None:
        """The folder of a run; None for any other name, because the browser may send any."""
        return self.folder / name if isinstance(name, str) and name in self.names() else None

    def _is_empty(self, name: str) -> bool:
        """Whether a run has ended and left neither a save nor an adapter."""
        folder = self._folder(name)
        return folder is not None and self._process(name) is None and not any(_saved_files(folder))


def read_progress(folder: Path) -> RunProgress:
    """The progress of the run in `folder`; empty if it has not written metrics yet."""
    import_libraries()
    from train.run_folder import METRICS  # imports torch

    text, updated = _read_end(folder / METRICS, _METRICS_BYTES)
    lines = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):  # the line that is being written
            value = json.loads(line)
            if isinstance(value, dict) and type(value.get("step")) is int:
                lines.append(value)
    return dataclasses.replace(_progress(lines), updated=updated)


def _progress(lines: list[dict[str, Any]]) -> RunProgress:
    def points(name: str) -> Points:
        return tuple((line["step"], float(line[name])) for line in lines if name in line)

    seconds = points("seconds")
    recent = seconds[-_RECENT_STEPS - 1 :]
    step_seconds = 0.0
    if len(recent) > 1:
        step_seconds = (recent[-1][1] - recent[0][1]) / (recent[-1][0] - recent[0][0])
    elif recent:
        step_seconds = recent[0][1] / max(recent[0][0], 1)
    return RunProgress(
        step=seconds[-1][0] if seconds else 0,
        losses=points("loss"),
        held_out=points("held_out_loss"),
        largest_gate=points("largest_gate"),
        gates=next((tuple(line["gates"]) for line in reversed(lines) if "gates" in line), ()),
        untrained=next((line["untrained_loss"] for line in lines if "untrained_loss" in line), None),
        tokens=int(points("tokens")[-1][1]) if seconds else 0,
        seconds=seconds[-1][1] if seconds else 0.0,
        step_seconds=max(step_seconds, 0.0),
        evaluation_seconds=(points("evaluation_seconds") or ((0, 0.0),))[-1][1],
    )


def _state(folder: Path, record: RunRecord, alive: bool, progress: RunProgress, last_line: str) -> State:
    from adapter.method.checkpoint import CARD

    saved, _ = _saved_files(folder)
    if alive:
        return "stopping" if record.stop else "training" if progress.updated > record.launched else "starting"
    if not saved and (folder / CARD).exists():
        return "ended"
    if last_line.startswith("error: "):
        return "failed"
    return "stopped" if record.stop or last_line.startswith("stopped after step") else "killed"


def _saved_files(folder: Path) -> tuple[bool, bool]:
    """Whether there is a state to resume from, and whether there is an adapter."""
    import_libraries()
    from adapter.method.checkpoint import CONFIG, WEIGHTS
    from train.run_folder import STATE

    return (folder / STATE).exists(), (folder / CONFIG).exists() and (folder / WEIGHTS).exists()


def _read_end(path: Path, most_bytes: int) -> tuple[bytes, float]:
    """The last bytes of a file and its time of modification; empty if it cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(max(file.seek(0, 2) - most_bytes, 0))
            return file.read(), os.fstat(file.fileno()).st_mtime
    except OSError:
        return b"", 0.0


def _read_record(folder: Path) -> RunRecord | None:
    try:
        return RunRecord(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _write_record(folder: Path, record: RunRecord) -> None:
    with atomic_write(folder / RECORD) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(record)), encoding="utf-8")
