"""From the Train tab's settings to a recipe, the equivalent command and an estimate of the run's duration; and the
data sets that come with the program.

Knows recipes, assets/samples and the metrics of earlier runs; starts nothing.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from adapter.base.embedded import BASE
from adapter.base.threads import available_cores
from adapter.errors import BadInput
from adapter.method.config import MAX_NAME_LENGTH, RESERVED_NAMES
from adapter.server.loader import import_libraries
from train.config import RecipeFile, TrainConfig, flatten, read_recipe
from train.ui.runs import TrainingRuns

MIN_STEPS, MAX_STEPS = 10, 1000
MIN_LR, MAX_LR = 0.001, 0.02
MAX_DESCRIPTION_LENGTH = 120
SAMPLES = Path(__file__).resolve().parents[2] / "assets" / "samples"
_PRESET = "quick"
# The training speed of the embedded base on two idle cores, by precision, and the seconds before the first step.
_TOKENS_PER_SECOND = {"bf16": 500.0, "fp32": 250.0}
_START_SECONDS = 15.0
_HISTORY_TOKENS = 50.0  # average length of the exchanges that TrainConfig.history puts before a row


@dataclass(frozen=True)
class Sample:
    """A data set that comes with the program.

    question, picture: what to ask the trained adapter. settings: values of a recipe that work for the data.
    """

    name: str
    title: str
    description: str
    path: Path
    question: str = ""
    picture: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def samples(folder: Path = SAMPLES) -> list[Sample]:
    """The samples whose data exists, in the order of samples.json; none without that file."""
    try:
        entries = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    loaded = []
    for entry in entries:
        paths = {key: folder / entry[key] for key in ("path", "picture") if entry.get(key)}
        loaded.append(Sample(**{**entry, "picture": None, **paths}))
    return [sample for sample in loaded if sample.path.exists()]


@dataclass(frozen=True)
class RunPlan:
    """The settings of a run. data: the path that the trainer reads; shown: the path in the displayed command.

    steps, lr: None for the preset's. extra: a sample's own settings.
    """

    name: str
    data: Path
    shown: str
    pictures: bool
    description: str = ""
    steps: int | None = None
    lr: float | None = None
    base: str = BASE
    template: str = "chat"
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.steps is not None and not MIN_STEPS <= self.steps <= MAX_STEPS:
            raise BadInput(f"A run here has {MIN_STEPS} to {MAX_STEPS} steps, got {self.steps}.")
        if self.lr is not None and not MIN_LR <= self.lr <= MAX_LR:
            raise BadInput(f"The learning rate must lie between {MIN_LR} and {MAX_LR}, got {self.lr}.")

    def assignments(self, data: str) -> list[str]:
        """The run as `key=value` arguments of the command line. Raises ConfigError."""
        values: dict[str, Any] = {"data": data, "data.validation": 0.1, "preset": _PRESET, "name": self.name}
        values.update(flatten(self.extra))
        if self.description:
            values["description"] = self.description
        if self.template != "chat":
            values["template"] = self.template
        if self.pictures:
            values["vision.projection"] = "global"
        default = read_recipe(None, _assignments(values)).train
        if self.steps is not None and self.steps != default.steps:
            values.update(steps=self.steps, eval_every=max(5, self.steps // 8))
        if self.lr is not None and self.lr != default.lr:
            values["lr"] = self.lr
        return _assignments(values)

    def recipe(self) -> RecipeFile:
        """Raises ConfigError."""
        base = _assignments({"base": self.base}) if self.base != BASE else []
        return read_recipe(None, [*self.assignments(str(self.data)), *base])

    def command(self, folder: str = "") -> str:
        """The equivalent shell command. folder: of the run, unless it is the default one."""
        arguments = self.assignments(self.shown)
        if self.base != BASE:
            arguments += ["--base", Path(self.base).name if os.path.isabs(self.base) else self.base]
        if folder:
            arguments += ["--out", folder]
        return "python -m train " + " ".join(map(shlex.quote, arguments))


def free_name(wanted: str, taken: Iterable[str]) -> str:
    """A name like `wanted` that check_name accepts."""
    unavailable = {other.lower() for other in taken} | RESERVED_NAMES
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", wanted).strip("-_")[: MAX_NAME_LENGTH - 4].lower() or "my-adapter"
    name, number = stem, 1
    while name in unavailable:
        number += 1
        name = f"{stem}-{number}"
    return name


def estimate_minutes(
    config: TrainConfig, row_tokens: float, base: str, runs: TrainingRuns
) -> tuple[float | None, bool]:
    """Estimates the duration of a run, and whether the speed was measured on this machine.

    The speed is that of the latest run with the same base in `runs`, or else a constant for the embedded base, the
    precision that this processor trains in and the cores that the run may use; the estimate is None for another
    base, and on a GPU.
    """
    speed, measured = _tokens_per_second(base, runs)
    if speed is None:
        return None, False
    tokens = config.steps * config.batch_size * (row_tokens + config.history * _HISTORY_TOKENS)
    return (_START_SECONDS + tokens / speed) / 60, measured


def _tokens_per_second(base: str, runs: TrainingRuns) -> tuple[float | None, bool]:
    if (measured := runs.speed(base)) is not None:
        return measured, True
    if base != BASE:
        return None, False
    import_libraries()
    from train.precision import choose_precision, default_device

    device = default_device()
    if device.type != "cpu":
        return None, False
    precision, _ = choose_precision("auto", device)
    return _TOKENS_PER_SECOND[precision] * available_cores() / 2, False


def _assignments(values: Mapping[str, Any]) -> list[str]:
    return [f"{key}={_to_yaml(value)}" for key, value in values.items()]


def _to_yaml(value: Any) -> str:
    """The value as the command line reads it back."""
    if isinstance(value, str):
        try:
            plain = value == value.strip() and yaml.safe_load(value) == value
        except yaml.YAMLError:
            plain = False
        return value if plain else json.dumps(value)
    return json.dumps(value)
