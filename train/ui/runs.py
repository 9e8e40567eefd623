"""The training runs of one server: processes of `python -m train`, one at a time, each in its own folder.

All state of a run is in its folder, so that a reloaded page and a restarted server find it: recipe, log, metrics,
data, and run.json, which identifies the process by its number, start time and command.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import psutil
from pydantic import TypeAdapter

from adapter.errors import AdapterError, BadInput, Busy
from adapter.files import atomic_write, names_lock
from adapter.lru import LRU
from adapter.method.config import check_name
from adapter.server.loader import import_libraries
from train.config import RecipeFile, read_recipe, recipe_text
from train.ui.metrics import RunProgress, read_metrics

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_FOLDER = ROOT / "runs"  # where `python -m train` puts a run without --out
RECORD, RECIPE, DATA = "run.json", "recipe.yaml", "data"
MESSAGES, LOG = "messages.txt", "log.txt"  # what the trainer says to visitors, and all else that it prints
NICENESS = 10  # of the trainer, so that the chat's threads run first
CLOSE_SECONDS = 10.0
_START_TOLERANCE = 5.0  # seconds by which a clock adjustment may shift a process's start time
_LOG_BYTES = 8_000
_MIN_FREE_BYTES = 500 * 2**20
State = Literal["starting", "training", "stopping", "ended", "stopped", "failed", "killed"]
Content = TypeVar("Content")
_FILES = 1_000  # of runs, whose content is remembered


@dataclass(frozen=True)
class RunRecord:
    """The content of run.json. launched: when this server started the latest process; pid, started: that process's
    number and start time; stop: whether it was asked to stop; question, picture: what to ask the trained adapter.
    owner: a digest of the secret of the browser that started it.
    """

    launched: float = 0.0
    pid: int | None = None
    started: float | None = None
    stop: bool = False
    question: str = ""
    picture: str = ""
    owner: str = ""


_RECORD = TypeAdapter(RunRecord)


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

    @property
    def seconds_left(self) -> float | None:
        return self.progress.seconds_left(self.recipe.train.steps, self.recipe.train.eval_every)


class TrainingRuns:
    """The runs in one folder. Safe for any number of threads, and for several servers over the same folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()  # for one of a visitor's actions at a time
        self._child_lock = threading.Lock()  # for the process that this server has started
        self._child: subprocess.Popen[bytes] | None = None
        self._child_name = ""
        self._closed = False
        self._files: LRU[Path, tuple[tuple[int, int, int], Any]] = LRU(_FILES)
        self._ended: dict[str, RunRecord] = {}  # records of processes that have ended, and so for ever

    def names(self) -> list[str]:
        """The runs that this page started, latest first."""
        found = []
        for path in self.folder.glob(f"*/{RECORD}"):
            with contextlib.suppress(OSError):
                found.append((path.stat().st_mtime, path.parent.name))
        return [name for _, name in sorted(found, reverse=True)]

    def taken(self) -> list[str]:
        """The names of folders, except those of runs that ended before anything was saved."""
        return [folder.name for folder in self.folder.glob("*") if not self._is_empty(folder.name)]

    def running(self) -> str | None:
        """The name of the running run."""
        return next((name for name in self.names() if self._process(name) is not None), None)

    def get(self, name: str) -> TrainingRun | None:
        """The run called `name`; None if there is none or its files cannot be read."""
        import_libraries()
        from train.run_folder import METRICS

        if (record := self._record(name)) is None:
            return None
        folder = self.folder / name
        # Before the files are read: a process that has ended has written all of them, and what is saved has been
        # evaluated, so that its step is known.
        alive, (saved, adapter, finished) = self._process(name) is not None, saved_files(folder)
        recipe = self._read(folder / RECIPE, lambda path: read_recipe(path, []))
        if recipe is None:
            return None
        progress = self._read(folder / METRICS, read_metrics) or RunProgress()
        last_line = (self.log(name).splitlines() or [""])[-1]
        state = _state(record, alive, finished, progress, last_line)
        message = last_line.removeprefix("error: ") if state == "failed" else last_line
        return TrainingRun(name, state, record, recipe, progress, message, saved, adapter)

    def log(self, name: str) -> str:
        """The end of what the trainer says to visitors."""
        folder = self._folder(name)
        return "" if folder is None else self._read(folder / MESSAGES, _read_log) or ""

    def _read(self, path: Path, read: Callable[[Path], Content]) -> Content | None:
        """What `read` makes of a file, once for all visitors until the file changes; None if it cannot be read."""
        try:
            stat = path.stat()
            stamp = stat.st_ino, stat.st_size, stat.st_mtime_ns
            known = self._files.get(path)
            if known is None or known[0] != stamp:
                known = stamp, read(path)
                self._files.put(path, known)
            return known[1]
        except (OSError, ValueError, AdapterError):
            return None

    # A visitor's actions.

    def start(
        self, name: str, taken: list[str], prepare: Callable[[Path], tuple[RecipeFile, str, str]], owner: str = ""
    ) -> str:
        """Starts a new run and returns its name. Raises AdapterError and leaves nothing if that fails.

        prepare: writes the data into the folder it is given; returns the recipe, and a question and a picture for
        the trained adapter.
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
                recipe, question, picture = prepare(folder / DATA)
                recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, name=name))
                (folder / RECIPE).write_text(recipe_text(recipe), encoding="utf-8")
                self._launch(name, RunRecord(question=question, picture=picture, owner=owner), resume=False)
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

    def stop(self, name: str, launched: float | None = None) -> None:
        """Asks a run to stop and save after its current step. Asking again has no effect.

        launched: of the process that the visitor saw; a later one goes on. None: of any.
        """
        with self._lock:
            record, process = self._record(name), self._process(name)
            if record is None or process is None or record.stop:
                return
            if launched is not None and launched != record.launched:
                return
            # Written before the signal, so that a process that ends at once counts as stopped.
            _write_record(self.folder / name, dataclasses.replace(record, stop=True))
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()

    def close(self) -> tuple[str, bool] | None:
        """Stops the run that this server started and waits CLOSE_SECONDS for its save. Starts none afterwards.

        Returns its name and whether it has ended; otherwise it goes on saving by itself. None without a run.
        """
        with self._child_lock:
            self._closed = True
            child, self._child = self._child, None
        if child is None or child.poll() is not None:
            return None
        self.stop(self._child_name)
        if self._folder(self._child_name) is None:  # somebody has removed it
            child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(CLOSE_SECONDS)
        return self._child_name, child.poll() is not None

    # Processes.

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Holds the lock for starting a run, shared by threads and servers. Raises Busy if a run is running."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock, names_lock(self.folder):
            if (name := self.running()) is not None:
                raise Busy(f"“{name}” is being trained. One at a time: wait for its end, or stop it.")
            yield

    def _launch(self, name: str, record: RunRecord, resume: bool) -> None:
        import_libraries()
        from train.input.feature_store import SIZE_VARIABLE

        folder, launched = self.folder / name, time.time()
        command = [sys.executable, "-m", "train", "--for-page", "--config", str(folder / RECIPE)]
        command += ["--out", str(folder), *(["--resume"] if resume else [])]
        # Idle OpenMP threads must not spin on the cores that answer the chat; a count of the server's would count.
        idle = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
        # Of visitors' pictures nothing is kept outside of their runs, unless the server's owner wants it.
        environment = {SIZE_VARIABLE: "0", **os.environ, "PYTHONUNBUFFERED": "1", **idle}
        started = None
        # Held until the record names the process, because `close` stops it by its record.
        with self._child_lock, open(folder / MESSAGES, "ab") as messages, open(folder / LOG, "ab") as log:
            if self._closed:
                raise Busy("The server is going down. Start the run when it is up again.")
            child = self._child = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=log,
                start_new_session=True,  # Ctrl-C goes to the server only, which then asks the trainer to stop
            )
            self._child_name = name
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(child.pid)
                started = process.create_time()
                process.nice(psutil.BELOW_NORMAL_PRIORITY_CLASS if os.name == "nt" else NICENESS)
            record = dataclasses.replace(record, launched=launched, pid=child.pid, started=started)
            try:
                _write_record(folder, record)
            except BaseException:
                child.kill()
                raise

    def _process(self, name: str) -> psutil.Process | None:
        """The run's process; None if it has ended, or if another process has its number now."""
        if (child := self._child) is not None:
            child.poll()  # otherwise it would stay a zombie
        record = self._record(name)
        if record is None or record.pid is None or record.started is None:
            return None
        if self._ended.get(name) == record:
            return None
        try:
            process = psutil.Process(record.pid)
            command = process.cmdline()  # empty for a moment while a process starts
            same = not command or str(self.folder / name) in command
            same &= abs(process.create_time() - record.started) < _START_TOLERANCE
            if same and process.status() != psutil.STATUS_ZOMBIE:
                return process
        except psutil.AccessDenied:
            return None
        except psutil.Error:
            pass
        self._ended[name] = record
        return None

    def _record(self, name: str) -> RunRecord | None:
        folder = self._folder(name)
        if folder is None:
            return None
        return self._read(folder / RECORD, lambda path: _RECORD.validate_json(path.read_bytes(), strict=True))

    def _folder(self, name: str) -> Path | None:
        """The folder of a run; None for any other name, because the browser may send any."""
        if not isinstance(name, str) or name in ("", os.curdir, os.pardir) or name != Path(name).name:
            return None
        return self.folder / name if os.path.isfile(self.folder / name / RECORD) else None

    def _is_empty(self, name: str) -> bool:
        """Whether a run has ended and left neither a save nor an adapter."""
        folder = self._folder(name)
        return folder is not None and self._process(name) is None and not any(saved_files(folder)[:2])


def _state(record: RunRecord, alive: bool, finished: bool, progress: RunProgress, last_line: str) -> State:
    if alive:
        return "stopping" if record.stop else "training" if progress.updated > record.launched else "starting"
    if finished:
        return "ended"
    if last_line.startswith("error: "):
        return "failed"
    return "stopped" if record.stop or last_line.startswith("stopped after step") else "killed"


def saved_files(folder: Path) -> tuple[bool, str, bool]:
    """Whether there is a state to resume from; what tells one save of the adapter from the others, "" before the
    first; whether the run is finished, which leaves no state and a card.
    """
    import_libraries()
    from adapter.method.checkpoint import CARD, CONFIG, WEIGHTS
    from train.run_folder import STATE

    saved, adapter = (folder / STATE).exists(), ""
    with contextlib.suppress(OSError):
        if (folder / CONFIG).exists():
            adapter = str((folder / WEIGHTS).stat().st_mtime_ns)
    return saved, adapter, not saved and (folder / CARD).exists()


def _read_log(path: Path) -> str:
    with open(path, "rb") as file:
        file.seek(max(file.seek(0, 2) - _LOG_BYTES, 0))
        text = file.read(_LOG_BYTES).decode("utf-8", errors="replace")
    lines = (line.rpartition("\r")[2].rstrip() for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def _write_record(folder: Path, record: RunRecord) -> None:
    with atomic_write(folder / RECORD) as temporary:
        temporary.write_bytes(_RECORD.dump_json(record))
