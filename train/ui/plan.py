"""From a name and a few settings to a recipe, the command that does the same by hand, and how long that may take.

Knows recipes and what older runs took; starts nothing.
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
from adapter.errors import BadInput
from train.config import LONGEST_NAME, RESERVED, ConfigError, RecipeFile, TrainConfig, read_recipe
from train.config import check_name as check_name  # for the page
from train.ui.progress import read_progress

FEWEST_STEPS, MOST_STEPS = 10, 1000
LEAST_LR, MOST_LR = 0.001, 0.02
PRESET = "quick"
LONGEST_DESCRIPTION = 120
# The embedded base on two cores that nobody else uses: tokens a second, and seconds to the first step.
_TOKENS_PER_SECOND, _START_SECONDS = 500.0, 15.0
_TALK_TOKENS = 50.0  # of what `history` puts before a row, on average


@dataclass(frozen=True)
class Plan:
    """One run. data: what the trainer reads; shown: how its owner would write that; extra: a sample's own values.

    steps, lr: None for what the preset says.
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
        if self.steps is not None and not FEWEST_STEPS <= self.steps <= MOST_STEPS:
            raise BadInput(f"A run here has {FEWEST_STEPS} to {MOST_STEPS} steps, got {self.steps}.")
        if self.lr is not None and not LEAST_LR <= self.lr <= MOST_LR:
            raise BadInput(f"The learning rate must lie between {LEAST_LR} and {MOST_LR}, got {self.lr}.")

    def words(self, data: str) -> list[str]:
        """The run as `key=value` words of the command line. Raises ConfigError."""
        values: dict[str, Any] = {"data": data, "data.validation": 0.1, "preset": PRESET, "name": self.name}
        values.update(_flat(self.extra))
        if self.description:
            values["description"] = self.description
        if self.template != "chat":
            values["template"] = self.template
        if self.pictures:
            values["vision.projection"] = "global"
        usual = _usual(values)
        if self.steps is not None and self.steps != usual.steps:
            values.update(steps=self.steps, eval_every=max(5, self.steps // 8))
        if self.lr is not None and self.lr != usual.lr:
            values["lr"] = self.lr
        return _words(values)

    def recipe(self) -> RecipeFile:
        """Raises ConfigError."""
        base = _words({"base": self.base}) if self.base != BASE else []
        return read_recipe(None, [*self.words(str(self.data)), *base])

    def command(self, folder: str = "") -> str:
        """What does the same in a terminal. folder: of the run, if it is not the usual one."""
        base = ["--base", self.base.rstrip("/").rsplit("/", 1)[-1] if os.path.isabs(self.base) else self.base]
        words = [*self.words(self.shown), *(base if self.base != BASE else [])]
        if folder:
            words += ["--out", folder]
        return "python -m train " + " ".join(shlex.quote(word) for word in words)


def _usual(values: Mapping[str, Any]) -> TrainConfig:
    return read_recipe(None, _words(values)).train


def _words(values: Mapping[str, Any]) -> list[str]:
    return [f"{key}={_yaml(value)}" for key, value in values.items()]


def free_name(wanted: str, taken: Iterable[str]) -> str:
    """A name like `wanted` that check_name accepts."""
    known = {other.lower() for other in taken} | RESERVED
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", wanted).strip("-_")[: LONGEST_NAME - 4].lower() or "my-adapter"
    found, number = stem, 1
    while found.lower() in known:
        number += 1
        found = f"{stem}-{number}"
    return found


def minutes(config: TrainConfig, tokens: float, base: str, runs: Path) -> tuple[float | None, bool]:
    """How long a run may take whose rows have `tokens` tokens each, and whether that was measured on this machine.

    By what the latest run on this machine and base took, or else by what the embedded base takes elsewhere; None
    if neither tells.
    """
    speed, measured = _speed(base, runs)
    if speed is None:
        return None, False
    row = tokens + config.history * _TALK_TOKENS
    return (_START_SECONDS + config.steps * config.batch_size * row / speed) / 60, measured


def _speed(base: str, runs: Path) -> tuple[float | None, bool]:
    """Tokens a second, and whether they were counted here."""
    recipes = sorted(runs.glob("*/recipe.yaml"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in recipes[:5]:
        done = read_progress(path.parent)
        if done.seconds >= 3 and _base(path) == base:
            return done.tokens / done.seconds, True
    return (_TOKENS_PER_SECOND * (os.cpu_count() or 2) / 2 if base == BASE else None), False


def _base(recipe: Path) -> str:
    try:
        return read_recipe(recipe, []).base
    except ConfigError:
        return ""


def _flat(values: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield before + key, value


def _yaml(value: Any) -> str:
    """The value as the command line reads it back."""
    if isinstance(value, str):
        try:
            plain = value == value.strip() and yaml.safe_load(value) == value
        except yaml.YAMLError:
            plain = False
        return value if plain else json.dumps(value)
    return json.dumps(value)
