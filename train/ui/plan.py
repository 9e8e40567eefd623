"""From the page's settings to a recipe and the equivalent command; and the bundled data sets."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from adapter.base.embedded import BASE
from adapter.errors import BadInput
from adapter.method.config import MAX_NAME_LENGTH, RESERVED_NAMES
from train.config import RecipeFile, flatten, read_recipe

MIN_STEPS, MAX_STEPS = 10, 1000
MIN_LR, MAX_LR = 0.001, 0.02
MAX_DESCRIPTION_LENGTH, MAX_QUESTION_LENGTH = 120, 200
ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "assets" / "samples"


@dataclass(frozen=True)
class RunPlan:
    """A run that is not started yet: its data, facts about them, then its settings.

    source: the sample or the upload; shown: as written in a command; settings: of the recipe, beside what the
    other fields say; question, picture: asked before and while it learns; steps, lr: None for the preset's;
    label: of a sample.
    """

    source: Path
    shown: str
    pictures: bool = False
    template: str = "chat"
    base: str = BASE
    settings: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""
    description: str = ""
    question: str = ""
    picture: Path | None = None
    steps: int | None = None
    lr: float | None = None
    label: str = ""

    def with_settings(
        self, name: str | None, description: str | None, question: str | None, steps: float, rate: float
    ) -> RunPlan:
        """As the components of the page give them. Raises BadInput if one is out of range."""
        try:
            count, lr = int(steps), round(float(rate), 6)
        except (TypeError, ValueError, OverflowError):  # no number, or none at all
            raise BadInput("Steps and learning rate are numbers.") from None
        if not (MIN_STEPS <= count <= MAX_STEPS and MIN_LR <= lr <= MAX_LR):
            raise BadInput(f"A run here has {MIN_STEPS} to {MAX_STEPS} steps, and a rate of {MIN_LR} to {MAX_LR}.")
        told = " ".join((description or "").split())[:MAX_DESCRIPTION_LENGTH]
        asked = (question or "").strip()[:MAX_QUESTION_LENGTH]
        return replace(self, name=(name or "").strip(), description=told, question=asked, steps=count, lr=lr)

    def assignments(self, data: str) -> list[str]:
        """The run as `key=value` arguments of the command line. Raises ConfigError."""
        values: dict[str, Any] = {"data": data, "data.validation": 0.1, "preset": "quick"}
        values |= {"name": self.name, **flatten(self.settings), "description": self.description}
        if self.template != "chat":
            values["template"] = self.template
        if self.pictures:
            values["vision.projection"] = "global"
        values = {key: value for key, value in values.items() if value != ""}
        default = read_recipe(None, _assignments(values)).train
        if self.steps is not None and self.steps != default.steps:
            values.update(steps=self.steps, eval_every=max(5, self.steps // 8))
        if self.lr is not None and self.lr != default.lr:
            values["lr"] = self.lr
        return _assignments(values)

    def recipe(self, data: Path) -> RecipeFile:
        """Raises ConfigError."""
        base = _assignments({"base": self.base}) if self.base != BASE else []
        return read_recipe(None, [*self.assignments(str(data)), *base])

    def command(self, folder: str = "", public: bool = False) -> str:
        """The equivalent shell command. folder: of the run, if not the default one; public: without paths."""
        arguments = self.assignments(self.shown)
        if self.base != BASE:
            arguments += ["--base", Path(self.base).name if public and os.path.isabs(self.base) else self.base]
        if folder:
            arguments += ["--out", folder]
        return "python -m train " + " ".join(map(shlex.quote, arguments))


def samples() -> dict[str, RunPlan]:
    """Returns the plans of the shipped data sets, in the order of samples.json; none without that file."""
    file, found = SAMPLES / "samples.json", {}
    for entry in json.loads(file.read_text(encoding="utf-8")) if file.is_file() else ():
        name, path, picture = entry["name"], SAMPLES / entry["path"], entry.get("picture")
        shown = path.relative_to(ROOT).as_posix()
        plan = RunPlan(path, shown, path.is_dir(), name=f"my-{name}", question=entry["question"])
        label = f"{entry['title']}\n{entry['description']}"
        if path.exists():
            own = {**entry["settings"], "label": label, "picture": SAMPLES / picture if picture else None}
            found[name] = replace(plan, **own)
    return found


def free_name(wanted: str, taken: Iterable[str]) -> str:
    """A name like `wanted` that check_name accepts."""
    unavailable = {other.lower() for other in taken} | RESERVED_NAMES
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", wanted).strip("-_")[: MAX_NAME_LENGTH - 4].lower() or "my-adapter"
    name, number = stem, 1
    while name in unavailable:
        number += 1
        name = f"{stem}-{number}"
    return name


def _assignments(values: Mapping[str, Any]) -> list[str]:
    """key=value, as the command line reads them back."""

    def is_plain(value: Any) -> bool:
        try:
            return isinstance(value, str) and value == value.strip() and yaml.safe_load(value) == value
        except yaml.YAMLError:
            return False

    return [f"{key}={value if is_plain(value) else json.dumps(value)}" for key, value in values.items()]
