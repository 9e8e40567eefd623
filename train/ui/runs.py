"""The training runs of one server: processes of `python -m train`, one at a time, each in its own folder.

All state of a run is in its folder, so that a reloaded page and a restarted server find it: recipe, messages,
metrics, data, watched answers, and run.json, which identifies the process by its number, start time and command.
"""

import contextlib
import dataclasses
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from adapter.errors import AdapterError, BadInput, Busy, LoadError, first_line
from adapter.files import atomic_write, names_lock
from adapter.method.config import CARD, CONFIG, WEIGHTS, check_name
from train.config import DATA, METRICS, SIZE_VARIABLE, STATE, RecipeFile, read_recipe, recipe_text
from train.ui.plan import ROOT

DEFAULT_FOLDER = ROOT / "runs"  # where `python -m train` puts a run without --out
RECORD, RECIPE, WATCHED = "run.json", "recipe.yaml", "watched.json"
MESSAGES, LOG = "messages.txt", "log.txt"  # what the latest trainer says to visitors; what else all have printed
NICENESS = 10  # of the trainer, so that the chat's threads run first
CLOSE_SECONDS = 8.0  # Docker kills after ten
_START_TOLERANCE = 5.0  # seconds by which a clock adjustment between two looks may shift a process's start time
_MIN_FREE_BYTES = 500 * 2**20
State = Literal["starting", "training", "stopping", "ended", "stopped", "failed", "killed"]
_FILES = 700  # of runs, whose content is remembered
_RECENT_STEPS = 20  # that the duration of a step is averaged over
_RISEN = 1.02  # times the lowest held-out loss: less is chance
Points = tuple[tuple[int, float], ...]  # (step, value)


@dataclass(frozen=True)
class RunRecord:
    """The content of run.json. launched: when this server started the latest process; pid, started: that process's
    number and start after the machine's; stop: whether it was asked to; question, picture: what is asked before
    and while it learns; owner: a digest of the secret of the browser that started it.
    """

    launched: float = 0.0
    pid: int | None = None
    started: float = 0.0
    stop: bool = False
    question: str = ""
    picture: str = ""
    owner: str = ""


class _Line(BaseModel, strict=True, allow_inf_nan=False):
    """What a line may hold beside its step."""

    step: int = Field(ge=0, le=10**9)
    loss: float = 0.0
    held_out_loss: float = 0.0
    untrained_loss: float = 0.0
    seconds: float = 0.0
    evaluation_seconds: float = 0.0


@dataclass(frozen=True)
class RunProgress:
    """The metrics of a run. untrained: the held-out loss before the first step; evaluated: the step of the latest
    evaluation; step_seconds, evaluation_seconds: the duration of a recent one; updated: when they were written.
    """

    step: int = 0
    updated: float = 0.0
    losses: Points = ()
    held_out: Points = ()
    untrained: float | None = None
    evaluated: int = 0
    step_seconds: float = 0.0
    evaluation_seconds: float = 0.0

    def kept(self, save: str) -> tuple[int, float | None]:
        """Step and held-out loss of the adapter that is saved so far; save: as in TrainConfig."""
        if save == "last" or not self.held_out:
            return self.evaluated, self.held_out[-1][1] if self.held_out else None
        return min(self.held_out, key=lambda point: point[1])

    @property
    def by_heart_since(self) -> int | None:
        """The step of the lowest held-out loss, if that has risen since then; None if it has not."""
        step, lowest = self.kept("best")
        return step if lowest is not None and self.held_out[-1][1] > _RISEN * lowest else None

    def seconds_left(self, steps: int, eval_every: int) -> float | None:
        """Returns the seconds that are left; None before the third step."""
        left = max(steps - self.step, 0)
        seconds = left * self.step_seconds + math.ceil(left / eval_every) * self.evaluation_seconds
        return seconds if self.step_seconds else None


class WatchedAnswer(NamedTuple):
    """What a run's question was answered by its adapter of this step, by the frozen base at step 0."""

    step: int
    text: str


_RECORD = TypeAdapter(RunRecord)
_WATCHED = TypeAdapter(list[WatchedAnswer])
_READ_RECIPE = partial(read_recipe, assignments=())
Prepare = Callable[[Path], tuple[RecipeFile, RunRecord]]


@dataclass(frozen=True)
class TrainingRun:
    """One run at the moment of reading. message: the trainer's last, or the error that ended the run.

    saved: whether it can be resumed (otherwise it starts anew); adapter: tells one save of its adapter from the
    others, "" before the first.
    """

    name: str
    state: State
    record: RunRecord
    recipe: RecipeFile
    progress: RunProgress
    message: str
    saved: bool
    adapter: str

    @property
    def alive(self) -> bool:
        return self.state in ("starting", "training", "stopping")


class TrainingRuns:
    """The runs in one folder. Safe for any number of threads, and for several servers of one machine over it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()  # for one of a visitor's actions at a time
        self._child_lock = threading.Lock()  # for the process that this server has started
        self._child: psutil.Popen | None = None
        self._closed = False

    def names(self) -> list[str]:
        """The runs that this page started, latest first."""
        found = []
        for path in self.folder.glob(f"*/{RECORD}"):
            with contextlib.suppress(OSError):
                found.append((path.stat().st_mtime, path.parent.name))
        return [name for _, name in sorted(found, reverse=True)]

    def taken(self) -> list[str]:
        """The names of folders, except those of runs that ended before anything was saved."""

        def is_empty(name: str) -> bool:
            folder = self._folder(name)
            return folder is not None and self._process(name) is None and not any(saved_files(folder)[:2])

        return [folder.name for folder in self.folder.glob("*") if not is_empty(folder.name)]

    def running(self) -> str | None:
        return next((name for name in self.names() if self._process(name) is not None), None)

    def get(self, name: str) -> TrainingRun | None:
        """The run called `name`; None if there is none that can be read. Deletes a finished run's data."""
        if (record := self.record(name)) is None:
            return None
        folder = self.folder / name
        # Before the files are read: a process that has ended has written all of them, and what is saved has been
        # evaluated, so that its step is known.
        alive, (saved, adapter, finished) = self._process(name) is not None, saved_files(folder)
        if finished and not alive:  # it cannot be resumed: nothing else reads a visitor's data
            shutil.rmtree(folder / DATA, ignore_errors=True)
        recipe = _content(_READ_RECIPE, folder / RECIPE)
        if recipe is None:
            return None
        progress = _content(read_metrics, folder / METRICS) or RunProgress()
        last_line = _content(_last_line, folder / MESSAGES) or ""
        state: State
        if alive:
            begun = progress.updated > record.launched
            state = "stopping" if record.stop else "training" if begun else "starting"
        elif finished or last_line.startswith("error: "):
            state = "ended" if finished else "failed"
        else:
            state = "stopped" if record.stop or last_line.startswith("stopped after step") else "killed"
        message = last_line.removeprefix("error: ") if state == "failed" else last_line
        return TrainingRun(name, state, record, recipe, progress, message, saved, adapter)

    def record(self, name: str) -> RunRecord | None:
        """What is known of the process of a run."""
        folder = self._folder(name)
        return None if folder is None else _content(_read_record, folder / RECORD)

    def watched(self, name: str) -> list[WatchedAnswer]:
        """The answers to a run's question so far, the base's first."""
        folder = self._folder(name)
        return [] if folder is None else _content(_read_watched, folder / WATCHED) or []

    def add_watched(self, name: str, question: str, answer: WatchedAnswer) -> None:
        if (record := self.record(name)) is not None and record.question == question:  # not a former run's
            known = [earlier for earlier in self.watched(name) if earlier.step < answer.step]
            with atomic_write(self.folder / name / WATCHED) as temporary:
                temporary.write_bytes(_WATCHED.dump_json([*known, answer]))

    # A visitor's actions.

    def start(self, name: str, taken: list[str], prepare: Prepare) -> None:
        """Starts a new run. Raises AdapterError and leaves nothing if that fails.

        prepare: writes the data into the folder it is given; returns the recipe, and a record without a process.
        """
        from adapter.server.adapter_upload import check_room  # whose imports take seconds

        with self._exclusive():
            name = check_name(name, [*taken, *self.taken()])
            folder = self.folder / name
            check_room(self.folder, more=0)
            if folder.exists():
                shutil.rmtree(folder)
            try:
                (folder / DATA).mkdir(0o700, parents=True)
                recipe, record = prepare(folder / DATA)
                recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, name=name))
                (folder / RECIPE).write_text(recipe_text(recipe), encoding="utf-8")
                self._launch(name, record, resume=False)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise

    def resume(self, name: str) -> None:
        """Continues a run that was stopped, killed or failed from its last save, or anew if there is none."""
        with self._exclusive():
            run = self.get(name)
            if run is None or run.state == "ended":
                raise BadInput("There is nothing to go on with. Start a new run.")
            check_name(name, [other for other in self.taken() if other != name])
            self._launch(name, dataclasses.replace(run.record, stop=False), resume=run.saved)

    def stop(self, name: str) -> None:
        """Asks a run to stop and save after its current step. Asking again has no effect."""
        with self._lock:
            record, process = self.record(name), self._process(name)
            if record is None or process is None or record.stop:
                return
            self._mark_stopped(name, record)
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()

    def close(self) -> bool | None:
        """Stops the run that this server started and waits CLOSE_SECONDS for its save. Starts none afterwards.

        Returns whether it has ended; otherwise it goes on saving by itself. None without a run.
        """
        with self._child_lock:
            self._closed = True
            child, self._child = self._child, None
        if child is None or child.poll() is not None:
            return None
        for name in self.names():  # a trainer that is still starting ends without a word
            if (record := self.record(name)) is not None and record.pid == child.pid:
                self._mark_stopped(name, record)
        child.terminate()
        with contextlib.suppress(psutil.TimeoutExpired, subprocess.TimeoutExpired):
            child.wait(CLOSE_SECONDS)
        return child.poll() is not None

    # Processes.

    def _mark_stopped(self, name: str, record: RunRecord) -> None:
        """Marks the run before it is signalled, so that a process that ends at once counts as stopped."""
        with contextlib.suppress(OSError):  # the disk is full
            _write_record(self.folder / name, dataclasses.replace(record, stop=True))

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Holds the lock for starting a run, shared by threads and servers. Raises Busy if a run is running, and
        BadInput if the disk is nearly full: a trainer's start empties MESSAGES, which says why the last one ended.
        """
        with self._lock, contextlib.ExitStack() as held:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(names_lock(self.folder))
            except OSError as error:
                sentence = "Training runs cannot be kept here. LLAMA_ADAPTER_RUNS names another folder for them."
                raise LoadError(sentence, f"{self.folder}: {first_line(error)}") from error
            if (name := self.running()) is not None:
                raise Busy(f"“{name}” is being trained. One at a time: wait for its end, or stop it.")
            if shutil.disk_usage(self.folder).free < _MIN_FREE_BYTES:
                raise BadInput(f"Less than {_MIN_FREE_BYTES // 2**20} MB are free on the disk of the server.")
            yield

    def _launch(self, name: str, record: RunRecord, resume: bool) -> None:
        folder, launched = self.folder / name, time.time()
        command = [sys.executable, "-m", "train", "--for-page", "--config", str(folder / RECIPE)]
        command += ["--out", str(folder), *(["--resume"] if resume else [])]
        # Idle OpenMP threads must not spin on the chat's cores. Both are set: else the server's own are inherited.
        idle = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
        # Of visitors' pictures nothing is kept outside of their runs, unless the server's owner wants it.
        environment = {SIZE_VARIABLE: "0", **os.environ, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", **idle}
        with self._child_lock, open(folder / MESSAGES, "ab") as messages, open(folder / LOG, "ab") as log:
            if self._closed:
                raise Busy("The server is going down. Start the run when it is up again.")
            messages.truncate(0)
            # In a session of its own: Ctrl-C goes to the server only, which then asks the trainer to stop.
            own = {"stdin": subprocess.DEVNULL, "stdout": messages, "stderr": log, "start_new_session": True}
            child = self._child = psutil.Popen(command, cwd=ROOT, env=environment, **own)
            try:
                with contextlib.suppress(psutil.Error):
                    child.nice(NICENESS)
                started = child.create_time() - psutil.boot_time()  # not that of the wall clock, which may step
                record = dataclasses.replace(record, launched=launched, pid=child.pid, started=started)
                _write_record(folder, record)
            except BaseException:
                child.kill()
                raise

    def _process(self, name: str) -> psutil.Process | None:
        """The run's process; None if it has ended, or if another process has its number now."""
        if (child := self._child) is not None:
            child.poll()  # otherwise it would stay a zombie
        record = self.record(name)
        if record is None or record.pid is None:
            return None
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(record.pid)
            command = process.cmdline()  # empty for a moment while a process starts
            same = not command or str(self.folder / name) in command
            same &= abs(process.create_time() - psutil.boot_time() - record.started) < _START_TOLERANCE
            if same and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def _folder(self, name: str) -> Path | None:
        """The folder of a run; None for any other name, because the browser may send any."""
        if not isinstance(name, str) or name in ("", os.curdir, os.pardir) or name != Path(name).name:
            return None
        return self.folder / name if os.path.isfile(self.folder / name / RECORD) else None


def saved_files(folder: Path) -> tuple[bool, str, bool]:
    """Whether there is a state to resume from; what tells one save of the adapter from the others, "" before the
    first; whether the run is finished, which leaves no state and a card.
    """
    saved, adapter = (folder / STATE).exists(), ""
    with contextlib.suppress(OSError):
        if (folder / CONFIG).exists():
            adapter = str((folder / WEIGHTS).stat().st_mtime_ns)
    return saved, adapter, not saved and (folder / CARD).exists()


@lru_cache(_FILES)
def _read(read: Callable[[Path], Any], path: Path, *_: int) -> Any:
    return read(path)


def _content(read: Callable[[Path], Any], path: Path) -> Any:
    """What `read` makes of a file, once for all visitors until the file changes; None if it cannot be read."""
    try:
        stat = path.stat()
        return _read(read, path, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    except (OSError, ValueError, AdapterError):
        return None


def _read_record(path: Path) -> RunRecord:
    return _RECORD.validate_json(path.read_bytes())


def _read_watched(path: Path) -> list[WatchedAnswer]:
    return _WATCHED.validate_json(path.read_bytes())


def _last_line(path: Path) -> str:
    with open(path, "rb") as file:
        file.seek(max(file.seek(0, 2) - 8_000, 0))  # what libraries print may be long
        lines = file.read().decode("utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def read_metrics(path: Path) -> RunProgress:
    """The metrics in a file. A line that is cut or makes no sense is passed over."""
    values: dict[str, list[tuple[int, float]]] = {name: [] for name in _Line.model_fields}
    lines = path.read_bytes().split(b"\n")[:-1]  # after the last line break one is being written
    for text in lines:
        with contextlib.suppress(ValidationError):
            line = _Line.model_validate_json(text)
            for name in line.model_fields_set:
                values[name].append((line.step, getattr(line, name)))
    recent, step_seconds = values["seconds"][-_RECENT_STEPS - 1 :], 0.0
    if len(recent) > 2:  # the first step takes longer than the others, and the second alone says little
        step_seconds = (recent[-1][1] - recent[0][1]) / max(recent[-1][0] - recent[0][0], 1)
    evaluated, evaluation_seconds = (values["evaluation_seconds"] or [(0, 0.0)])[-1]
    return RunProgress(
        step=recent[-1][0] if recent else 0,
        updated=path.stat().st_mtime,
        losses=tuple(values["loss"]),
        held_out=tuple(values["held_out_loss"]),
        untrained=values["untrained_loss"][0][1] if values["untrained_loss"] else None,
        evaluated=evaluated,
        step_seconds=max(step_seconds, 0.0),
        evaluation_seconds=evaluation_seconds,
    )


def _write_record(folder: Path, record: RunRecord) -> None:
    with atomic_write(folder / RECORD) as temporary:
        temporary.write_bytes(_RECORD.dump_json(record))
