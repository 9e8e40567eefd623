"""The folder of a training run: the best adapter so far, which can be served at any time; `state.pt` with all that
an exact continuation needs (latest adapter, optimiser, position in the data); `metrics.jsonl`; and, where a recipe
asks for them, the adapters of some steps in `checkpoints`.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from adapter.errors import AdapterError, first_line
from adapter.files import atomic_write
from adapter.method.adapter import Adapter
from adapter.method.checkpoint import save_adapter
from adapter.method.config import BaseFingerprint
from train.config import TrainConfig

STATE = "state.pt"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
_UNMOVED_GATE, _UNMOVED_STEPS = 1e-5, 50  # gates that are all below this after so many steps do not learn
_SATURATED_GATE = 2.65  # tanh of this is 0.99
# Settings that change nothing about the adapter of a run: a resumed run may have others.
_FREE_SETTINGS = {"save_every", "checkpoint_every", "gradient_checkpointing", "tracker"}
# Settings that the encoder and the base decide; they are 1 until those are loaded.
_SIZES = {"vision.feature_size", "vision.token_size", "tuning.intermediate_size"}


class TrainError(AdapterError):
    """A run cannot start, continue or be saved."""


@dataclass(frozen=True)
class RunInputs:
    """What a run is made from besides its settings and its base; "" where it is not known.

    data: digest of the records. precision: of the frozen base, as chosen. start_from: digest of that adapter.
    """

    data: str = ""
    precision: str = ""
    start_from: str = ""


class RunFolder:
    """One run's folder. Every file is written atomically; failures are TrainErrors that name a remedy."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / ".lock", timeout=0)

    def open(self, resume: bool) -> None:
        """Locks the folder for this process. It must hold an unfinished run if and only if `resume`."""
        name, state = f"'{self.path.name}'", self.path / STATE
        if resume and not state.exists():  # before the folder is made: its name may be mistyped
            raise TrainError(f"{name} holds no unfinished run. Start it without --resume.", str(self.path))
        with _explained(f"{name} cannot be written. Give another folder with --out.", self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire()
            except Timeout as error:
                used = f"{name} is in use by another run. Give this one its own with --out."
                raise TrainError(used, str(self.path)) from error
        if not resume and state.exists():
            raise TrainError(
                f"{name} holds an unfinished run. Go on with it by --resume, or give another folder with --out.",
                str(self.path),
            )

    def close(self) -> None:
        """Releases the lock."""
        self._lock.release()

    def load(
        self, config: TrainConfig | None, inputs: RunInputs, base: BaseFingerprint | None = None
    ) -> dict[str, Any]:
        """Reads what `save` wrote. Raises TrainError, which names each difference, if that was another run's.

        None, or "" in `inputs`: not known yet, and not compared.
        """
        path = self.path / STATE
        with _explained(f"'{path.name}' cannot be read. Start anew with another --out.", path):
            state = torch.load(path, map_location="cpu", weights_only=True)
            saved, saved_inputs = state["config"], RunInputs(**state["inputs"])
            trained_for = BaseFingerprint(**state["base"])
        differences = [] if config is None else _changed_settings(saved, asdict(config))
        differences += _changed_inputs(saved_inputs, inputs)
        if base is not None and (reasons := _changed_base(trained_for, base)):
            differences.append(f"its base was {trained_for.name} and is {base.name} ({', '.join(reasons)})")
        if differences:
            raise TrainError(
                f"The run in '{self.path.name}' cannot go on, because it would be another run: "
                f"{'; '.join(differences)}. Resume it as it was started, or start anew with another --out.",
                str(self.path),
            )
        return state

    def save(self, state: Mapping[str, Any]) -> None:
        """Replaces state.pt."""
        sentence = (
            f"The run cannot be saved in '{self.path.name}'. The last good save is still there: free some room."
        )
        with _explained(sentence, self.path), atomic_write(self.path / STATE) as temporary:
            torch.save(state, temporary)

    def save_adapter(self, adapter: Adapter) -> None:
        """Replaces the adapter."""
        with _explained(f"The adapter cannot be saved in '{self.path.name}'. Free some room.", self.path):
            save_adapter(adapter, self.path)

    def save_checkpoint(self, adapter: Adapter, step: int) -> None:
        """Writes the adapter into a folder of its own, which can be served like any other."""
        folder = self.path / CHECKPOINTS / f"step-{step:06d}"
        sentence = f"The adapter of step {step} cannot be kept in '{self.path.name}'. Free some room."
        with _explained(sentence, folder):
            save_adapter(adapter, folder)

    def drop_checkpoints_after(self, step: int) -> None:
        """Removes the numbered adapters of later steps, which are another run's or will be written anew."""
        for folder in (self.path / CHECKPOINTS).glob("step-*"):
            if folder.name[5:].isdigit() and int(folder.name[5:]) > step:
                shutil.rmtree(folder, ignore_errors=True)

    def finish(self) -> None:
        """Removes state.pt: the run is complete and cannot be resumed."""
        (self.path / STATE).unlink(missing_ok=True)


def settings_that_count(config: TrainConfig) -> dict[str, Any]:
    """The settings that all processes of a run must have alike."""
    return {name: value for name, value in asdict(config).items() if name not in _FREE_SETTINGS}


def _changed_settings(saved: Mapping[str, Any], now: Mapping[str, Any], group: str = "") -> list[str]:
    """What differs, such as "lr was 0.01 and is 0.5"."""
    differences: list[str] = []
    for key in sorted({*saved, *now} - _FREE_SETTINGS):
        was, is_now, name = saved.get(key), now.get(key), f"{group}{key}"
        if isinstance(was, Mapping) and isinstance(is_now, Mapping):
            differences += _changed_settings(was, is_now, f"{name}.")
        elif was != is_now and not (name in _SIZES and is_now == 1):
            differences.append(f"{name} was {_shown(was)} and is {_shown(is_now)}")
    return differences


def _changed_base(saved: BaseFingerprint, now: BaseFingerprint) -> list[str]:
    """Unlike an adapter, which may be used with a sibling of its base, a run goes on with the same weights."""
    changed = saved.weights and now.weights and saved.weights != now.weights
    return [*saved.differences(now), *(["other weights"] if changed else [])]


def _changed_inputs(saved: RunInputs, now: RunInputs) -> list[str]:
    differences = []
    if saved.data and now.data and saved.data != now.data:
        differences.append("its data has changed since it started, or which of it is held out")
    if saved.precision and now.precision and saved.precision != now.precision:
        differences.append(f"precision was {saved.precision} and is {now.precision}")
    if saved.start_from != now.start_from:
        differences.append("start_from is not the adapter that it started from")
    return differences


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "set"
    text = "not set" if value is None else repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


@contextlib.contextmanager
def _explained(sentence: str, path: Path) -> Iterator[None]:
    """Raises TrainError with the sentence for any error: a full disk and damaged bytes raise all kinds."""
    try:
        yield
    except TrainError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise TrainError(sentence, f"{path}: {reason}") from error


class MetricsWriter:
    """Writes metrics.jsonl, one JSON object with its `step` per line, and passes its figures on to a tracker."""

    def __init__(
        self,
        folder: Path,
        last_step: int,
        log: Callable[[str], None],
        track: Callable[[dict[str, float], int], None] = lambda *_: None,
    ) -> None:
        """last_step: the step that a resumed run continues after; recorded lines of later steps are dropped."""
        self._path, self._log, self._track = folder / METRICS, log, track
        self._warned: set[str] = set()
        self._drop_after(last_step)

    def record(self, step: int, **values: float) -> None:
        """Writes the finite values. A full disk or a tracker that fails loses figures but does not end the run."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._write({"step": step, **finite})
        try:
            self._track(finite, step)
        except Exception as error:  # whatever a service's client raises
            self._warn(f"the tracker does not take all figures; {METRICS} has them", first_line(error))

    def record_gates(self, step: int, gates: Tensor) -> None:
        """Writes the mean absolute gate of each layer, lowest first. gates: [L, H]."""
        self._write({"step": step, "gates": [round(v, 5) for v in gates.abs().mean(dim=1).tolist()]})

    def check_gates(self, step: int, gates: Tensor, activation: str) -> None:
        """Warns, once, if gates [L, H] do not move or are so large that tanh passes no gradient."""
        if step == _UNMOVED_STEPS and gates.abs().max() < _UNMOVED_GATE:
            self._warn("the gates have not moved. Raise gate_lr; at zero gates nothing else learns")
        if activation == "tanh" and (gates.abs() > _SATURATED_GATE).float().mean() > 0.5:
            self._warn("most gates are saturated and hardly learn any more. Lower gate_lr")

    def _write(self, line: dict[str, Any]) -> None:
        with contextlib.suppress(OSError), open(self._path, "a") as file:
            file.write(json.dumps(line) + "\n")

    def _warn(self, text: str, detail: str = "") -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._log(f"warning: {text}.")
            if detail:
                print(detail, file=sys.stderr)

    def _drop_after(self, step: int) -> None:
        if not self._path.exists():
            return
        lines = []
        for line in self._path.read_text().splitlines():
            with contextlib.suppress(ValueError):  # a line that a kill has truncated
                if json.loads(line)["step"] <= step:
                    lines.append(line + "\n")
        with contextlib.suppress(OSError), atomic_write(self._path) as temporary:
            temporary.write_text("".join(lines))
