"""The figures of a run: metrics.jsonl, and accelerate's trackers, such as TensorBoard or Weights & Biases."""

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, filter_trackers
from torch import Tensor

from adapter.errors import first_line
from adapter.files import atomic_write
from train.config import METRICS, TrainConfig, flatten
from train.run_folder import TrainError

_NONE = "none"
_UNMOVED_STEPS = 50  # gates that are all 0 after so many do not learn
_SATURATED_GATE = 2.65  # tanh of this is 0.99


def check_tracker(name: str) -> None:
    """Raises TrainError if there is no such tracker, or if its package is not installed."""
    known = [_NONE, *sorted(LOGGER_TYPE_TO_CLASS)]
    if name not in known:
        raise TrainError(f"There is no tracker '{name}'. Choose one of: {', '.join(known)}.")
    if name != _NONE and not filter_trackers(name, logging_dir="."):
        raise TrainError(f"The tracker {name} is not installed here. Install it: .venv/bin/pip install {name}")


class MetricsWriter:
    """Writes metrics.jsonl, one JSON object with its `step` per line, and passes its figures on to the tracker."""

    def __init__(
        self, folder: Path, config: TrainConfig, step: int, accelerator: Accelerator, log: Callable[[str], None]
    ) -> None:
        """step: the last that a resumed run keeps, 0 for a new run; later lines are dropped. Raises TrainError."""
        self._path, self._log, self._accelerator = folder / METRICS, log, accelerator
        self._warned: set[str] = set()
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        with contextlib.suppress(OSError), atomic_write(self._path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines if 0 < step >= _step_of(line)))
        if config.tracker == _NONE:
            return
        accelerator.project_configuration.set_directories(str(folder / config.tracker))
        accelerator.log_with = filter_trackers(config.tracker, accelerator.logging_dir)
        # Figures that a resumed run records anew replace those after its last save.
        options = {"tensorboard": {"purge_step": step + 1}} if step else {}
        settings = {key: v for key, v in flatten(dataclasses.asdict(config)).items() if v is not None}
        try:
            accelerator.init_trackers(config.name, settings, options)
        except Exception as error:  # whatever a service's client raises, such as for a missing login
            text = f"The tracker {config.tracker} could not be started. Set it up, or leave tracker out."
            raise TrainError(text, first_line(error)) from error

    def record(self, step: int, **values: float) -> None:
        """Writes the finite values. A full disk or a tracker that fails loses figures but does not end the run."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        with contextlib.suppress(OSError), open(self._path, "a") as file:
            file.write(json.dumps({"step": step, **finite}) + "\n")
        try:
            self._accelerator.log(finite, step)
        except Exception as error:
            self._warn(f"the tracker does not take all figures; {METRICS} has them", error)

    def check_gates(self, step: int, gates: Tensor, activation: str) -> None:
        """Warns, once, if gates [L, H] do not move or are so large that tanh passes no gradient."""
        if step == _UNMOVED_STEPS and not gates.any():
            self._warn("the gates have not moved. Raise gate_lr; at zero gates nothing else learns")
        if activation == "tanh" and (gates.abs() > _SATURATED_GATE).float().mean() > 0.5:
            self._warn("most gates are saturated and hardly learn any more. Lower gate_lr")

    def close(self) -> None:
        """Sends the tracker what is left."""
        for tracker in self._accelerator.trackers:
            try:
                tracker.finish()
            except Exception as error:
                self._warn(f"the tracker may lack the last figures; {METRICS} has them", error)
        self._accelerator.trackers.clear()

    def _warn(self, text: str, error: Exception | None = None) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._log(f"warning: {text}.")
            if error is not None:
                print(first_line(error), file=sys.stderr)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except ValueError:  # a line that a kill has truncated
        return math.inf
