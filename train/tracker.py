"""Experiment trackers by accelerate: TensorBoard, Weights & Biases and others."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, filter_trackers

from adapter.errors import first_line
from train.config import TrainConfig, flatten
from train.run_folder import METRICS, TrainError

NONE = "none"


def check_tracker(name: str) -> None:
    """Raises TrainError if there is no such tracker, or if its package is not installed."""
    if name == NONE:
        return
    if name not in LOGGER_TYPE_TO_CLASS:
        known = ", ".join([NONE, *sorted(LOGGER_TYPE_TO_CLASS)])
        raise TrainError(f"There is no tracker '{name}'. Choose one of: {known}.")
    if not filter_trackers(name, logging_dir="."):
        raise TrainError(f"The tracker {name} is not installed here. Install it with: pip install {name}")


def start_tracker(accelerator: Accelerator, config: TrainConfig, folder: Path, step: int) -> None:
    """Begins to track a run in the first process, from whose figures after `step` on. Raises TrainError."""
    if config.tracker == NONE:
        return
    check_tracker(config.tracker)
    accelerator.project_configuration.set_directories(str(folder / config.tracker))
    accelerator.log_with = filter_trackers(config.tracker, accelerator.logging_dir)
    # Figures that a resumed run records anew replace those behind its last save.
    options = {"tensorboard": {"purge_step": step + 1}} if step else {}
    try:
        settings = flatten(dataclasses.asdict(config)).items()
        accelerator.init_trackers(config.name, {key: v for key, v in settings if v is not None}, options)
    except Exception as error:  # whatever a service's client raises, such as for a missing login
        raise TrainError(
            f"The tracker {config.tracker} could not be started. Set it up, or leave tracker out.",
            first_line(error),
        ) from error


def stop_tracker(accelerator: Accelerator, log: Callable[[str], None]) -> None:
    """Sends what is left. A failure is only logged: the run itself is as good without."""
    for tracker in accelerator.trackers:
        try:
            tracker.finish()
        except Exception as error:
            log(f"warning: the tracker {tracker.name} may lack the last figures; {METRICS} has them.")
            print(first_line(error), file=sys.stderr)
    accelerator.trackers.clear()
