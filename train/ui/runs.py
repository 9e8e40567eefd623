"""The training runs of one server: processes of `python -m train`, one at a time, each in its own folder.

Everything about a run is in its folder, so that a reloaded page and a restarted server find it: recipe, log,
figures, data, and run.json, which tells the process by its number, the time it began at and its command.
Knows files and processes; knows nothing of Gradio or of tensors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from filelock import FileLock

from adapter.errors import AdapterError, BadInput, Busy
from adapter.server.libraries import import_libraries
from train.config import RecipeFile, check_name, read_recipe, recipe_text
from train.ui.plan import Plan
from train.ui.progress import Progress, read_progress

ROOT = Path(__file__).resolve().parents[2]
USUAL = ROOT / "runs"  # where `python -m train` puts a run that it is given no folder for
RECORD, LOG, RECIPE, DATA = "run.json", "log.txt", "recipe.yaml", "data"
LATER = 10  # how much the trainer stands back behind the chat, as nice(1) counts
CLOSE_SECONDS = 10.0
_SAME_START = 5.0  # seconds that a system's clock may be set by while a process runs
_LOG_BYTES = 8_000
_ROOM_BYTES = 500 * 2**20
State = Literal["starting", "training", "stopping", "ended", "stopped", "failed", "killed"]


@dataclass(frozen=True)
class Record:
    """What run.json holds. launched: when the latest process was, by this server's clock; pid, started: of that
    process, as the system has it; question, picture: what to try the adapter with.
    """

    launched: float = 0.0
    pid: int | None = None
    started: float | None = None
    stop: bool = False  # somebody asked it to
    question: str = ""
    picture: str = ""


@dataclass(frozen=True)
class Run:
    """One run as it is now. said: the log's last line, or what went wrong."""

    name: str
    state: State
    record: Record
    recipe: RecipeFile
    progress: Progress
    said: str
    saved: bool  # whether going on goes on, or begins anew
    adapter: bool  # whether there is one to chat with

    @property
    def alive(self) -> bool:
        return self.state in ("starting", "training", "stopping")

    @property
    def left(self) -> float | None:
        """Seconds to the end."""
        return self.progress.left(self.recipe.train.steps, self.recipe.train.eval_every)


class TrainingRuns:
    """The runs in one folder. Safe for any number of threads, and for several servers over the same folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._child_name = ""

    def names(self) -> list[str]:
        """The runs of this page's making, the latest first."""
        found = []
        for path in self.folder.glob(f"*/{RECORD}"):
            with contextlib.suppress(OSError):
                found.append((path.stat().st_mtime, path.parent.name))
        return [name for _, name in sorted(found, reverse=True)]

    def taken(self) -> list[str]:
        """Names of folders; that of a run which ended before it saved anything is free again."""
        there = [path.name for path in self.folder.glob("*")] if self.folder.is_dir() else []
        return [name for name in there if not self._worthless(name)]

    def running(self) -> str | None:
        """The run that is under way."""
        return next((name for name in self.names() if self._alive(name)), None)

    def get(self, name: str) -> Run | None:
        """The run called so; None if there is none that can be read."""
        folder = self._known(name)
        record = None if folder is None else _record(folder)
        if folder is None or record is None:
            return None
        alive = self._alive(name)  # first: what a process leaves behind is there when it has gone
        try:
            recipe = read_recipe(folder / RECIPE, [])
        except AdapterError:
            return None
        progress, last = read_progress(folder), (self.log(name).splitlines() or [""])[-1]
        state = _state(folder, record, alive, progress, last)
        said = last.removeprefix("error: ") if state == "failed" else last
        return Run(name, state, record, recipe, progress, said, *_what_is_there(folder))

    def log(self, name: str) -> str:
        """The end of what the trainer said."""
        folder = self._known(name)
        try:
            if folder is None:
                return ""
            with open(folder / LOG, "rb") as file:
                file.seek(max(file.seek(0, 2) - _LOG_BYTES, 0))
                text = file.read().decode("utf-8", errors="replace")
        except OSError:
            return ""
        lines = (line.rpartition("\r")[2].rstrip() for line in text.split("\n"))
        return "\n".join(line for line in lines if line)

    # What a visitor may want.

    def start(self, name: str, taken: list[str], plan: Callable[[Path], tuple[Plan, str, str]]) -> str:
        """Train a new adapter. plan: lays the data into the folder given, and makes of it a plan, a question and a
        picture to try the adapter with. Returns the name. Raises AdapterError; then nothing is left.
        """
        with self._alone():
            name = check_name(name, [*taken, *self.taken()])
            folder = self.folder / name
            if shutil.disk_usage(self.folder).free < _ROOM_BYTES:
                raise BadInput(f"Less than {_ROOM_BYTES // 2**20} MB are free on the disk of the server.")
            if folder.exists():
                shutil.rmtree(folder)
            try:
                (folder / DATA).mkdir(parents=True)
                made, question, picture = plan(folder / DATA)
                recipe = dataclasses.replace(made, name=name).recipe()
                (folder / RECIPE).write_text(recipe_text(recipe), encoding="utf-8")
                self._launch(name, Record(question=question, picture=picture), resume=False)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            return name

    def go_on(self, name: str) -> None:
        """Train a run on that was stopped, killed or failed: from its last save, or anew if there is none."""
        with self._alone():
            run = self.get(name)
            if run is None or run.state == "ended":
                raise BadInput("There is nothing to go on with. Start a new run.")
            self._launch(name, dataclasses.replace(run.record, stop=False), resume=run.saved)

    def stop(self, name: str) -> None:
        """Ask a run to stop after its step; what it has learnt is saved. Asking again changes nothing."""
        folder = self._known(name)
        with self._lock:
            record = None if folder is None else _record(folder)
            process = self._process(name)
            if folder is None or record is None or process is None or record.stop:
                return
            # The mark first: should the process end at once, it is known why.
            _write(folder, dataclasses.replace(record, stop=True))
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()

    def close(self) -> str:
        """Stop the run that this server has started, and wait a while for its save. Returns its name, or ""."""
        child, name = self._child, self._child_name
        if child is None or child.poll() is not None:
            return ""
        self.stop(name)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(CLOSE_SECONDS)
        return name

    # Processes.

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else starts anything meanwhile, and nothing runs. Raises Busy otherwise."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock, FileLock(self.folder / ".starting"):
            if (name := self.running()) is not None:
                raise Busy(f"“{name}” is being trained. One at a time: wait for its end, or stop it.")
            yield

    def _launch(self, name: str, record: Record, resume: bool) -> None:
        folder, launched = self.folder / name, time.time()
        command = [sys.executable, "-m", "train", "--config", str(folder / RECIPE), "--out", str(folder)]
        own = {
            "PYTHONUNBUFFERED": "1",
            # Threads that wait for work must not do so on the cores that answer the chat.
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        with open(folder / LOG, "ab") as log:
            self._child = subprocess.Popen(
                [*command, *(["--resume"] if resume else [])],
                cwd=ROOT,
                env={**os.environ, **own},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the server, which then asks the trainer to stop, once
            )
        self._child_name, started = name, None
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(self._child.pid)
            started = process.create_time()
            process.nice(psutil.BELOW_NORMAL_PRIORITY_CLASS if os.name == "nt" else LATER)
        _write(folder, dataclasses.replace(record, launched=launched, pid=self._child.pid, started=started))

    def _alive(self, name: str) -> bool:
        return self._process(name) is not None

    def _process(self, name: str) -> psutil.Process | None:
        """The run's process, if it is still there and nobody else's that has got its number since."""
        if self._child is not None:
            self._child.poll()  # else it would stay as a zombie
        folder = self._known(name)
        record = None if folder is None else _record(folder)
        if folder is None or record is None or record.pid is None or record.started is None:
            return None
        try:
            process = psutil.Process(record.pid)
            command = process.cmdline()  # empty for a moment while a process begins
            same = not command or str(folder) in command
            same &= abs(process.create_time() - record.started) < _SAME_START
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None

    def _known(self, name: str) -> Path | None:
        """The folder of a run; None for any other name, whoever sent it."""
        return self.folder / name if isinstance(name, str) and name in self.names() else None

    def _worthless(self, name: str) -> bool:
        return (
            self._known(name) is not None and not self._alive(name) and not any(_what_is_there(self.folder / name))
        )


def _state(folder: Path, record: Record, alive: bool, progress: Progress, last: str) -> State:
    from adapter.method.checkpoint import CARD

    saved, _ = _what_is_there(folder)
    if alive:
        return "stopping" if record.stop else "training" if progress.since > record.launched else "starting"
    if not saved and (folder / CARD).exists():
        return "ended"
    if last.startswith("error: "):
        return "failed"
    return "stopped" if record.stop or last.startswith("stopped after step") else "killed"


def _what_is_there(folder: Path) -> tuple[bool, bool]:
    """Whether a run can be gone on with, and whether there is an adapter."""
    import_libraries()
    from adapter.method.checkpoint import CONFIG, WEIGHTS
    from train.run_folder import STATE

    return (folder / STATE).exists(), (folder / CONFIG).exists() and (folder / WEIGHTS).exists()


def _record(folder: Path) -> Record | None:
    try:
        return Record(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _write(folder: Path, record: Record) -> None:
    import_libraries()
    from adapter.files import atomic_write

    with atomic_write(folder / RECORD) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(record)), encoding="utf-8")
