"""What the recipes in `train/recipes/` have in common: settings, data to train on, and measures of the result."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from adapter.files import atomic_write
from adapter.method.adapter import Adapter
from adapter.method.config import VisionConfig
from train.config import DataConfig, RecipeFile, read_recipe
from train.evaluate.answerer import Answerer
from train.evaluate.intervals import Figure
from train.input.examples import Example

Measure = Callable[[Answerer], dict[str, Figure]]

_FOLDER = Path(__file__).parent
_ROOT = _FOLDER.parents[1]


@dataclass(frozen=True)
class Examples:
    """What a recipe trains on that makes its examples itself.

    of_split: those for "train" are endless, and those for "validation" finite and disjoint from them. digest: of
    what they are made from. prepare(adapter) fills buffers of a new adapter that are not trained, such as names of
    classes. vision: of a new adapter.
    """

    of_split: Callable[[str], Iterable[Example]]
    digest: str = ""
    prepare: Callable[[Adapter], None] = lambda _: None
    vision: VisionConfig | None = None

    def __call__(self, split: str) -> Iterable[Example]:
        return self.of_split(split)


def digest_of(files: Iterable[Path]) -> str:
    """Of the content of files, in hexadecimal."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


@dataclass(frozen=True)
class MeasuredSets:
    """The files of a recipe's sets and what measures an adapter, or the bare base, on them.

    files: inside `train/recipes`.
    """

    measure: Measure
    files: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        return digest_of(_FOLDER / file for file in self.files)[:16]

    def describe(self) -> str:
        """A sentence for the card: the files and a digest of their content."""
        if not self.files:
            return ""
        names = ", ".join(f"`{file}`" for file in self.files)
        return f"The sets in `train/recipes`, {names}, have the digest {self.digest}."


@dataclass(frozen=True)
class Recipe:
    """One adapter that can be trained by name.

    data: what the adapter is trained and tested on, for its card. development: the sets that the recipe is developed
    on, measured when a training ends. sealed: those that decide nothing, measured when `--score` asks for them.
    examples: None if the examples are rows of files, which `recipe.yaml` names.
    """

    data: str
    development: MeasuredSets
    sealed: MeasuredSets
    examples: Examples | None = None


def recipe_names() -> list[str]:
    """Names of all recipes: the folders of `train/recipes/` with a `recipe.py`."""
    return sorted(file.parent.name for file in _FOLDER.glob("*/recipe.py"))


def load_recipe(name: str, tokenizer: Any) -> Recipe:
    """Recipe `name`. tokenizer: of the base."""
    return importlib.import_module(f"train.recipes.{name}.recipe").recipe(tokenizer)


def record_scoring(name: str, sets: MeasuredSets, adapter: str, commit: str) -> tuple[int, int, str]:
    """Writes a scoring of sealed sets into `ledger.json`, before it is made: the ledger outlives adapters and cards.

    adapter: its digest. Returns how often the sets have been scored with this one, how often with others too, and
    what the sets have decided, which spends them; "" as long as they have decided nothing.
    """
    file = _FOLDER / "ledger.json"
    ledger = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    entry = ledger.setdefault(sets.digest, {"recipe": name, "spent": "", "scorings": []})
    entry["scorings"].append({"adapter": adapter, "date": date.today().isoformat(), "commit": commit})
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps(ledger, indent=1) + "\n", encoding="utf-8")
    adapters = [scoring["adapter"] for scoring in entry["scorings"]]
    return adapters.count(adapter), len(adapters), entry["spent"]


def card_text(name: str) -> str:
    """What the card of a recipe's adapter says of its data."""
    return (_FOLDER / name / "card.md").read_text(encoding="utf-8").strip()


def read_own(name: str, assignments: Sequence[str]) -> RecipeFile:
    """The settings of a recipe, which a user could have written. Paths of data in it are relative to the project."""
    recipe = read_recipe(_FOLDER / name / "recipe.yaml", assignments)
    return replace(recipe, data=tuple(map(_in_project, recipe.data)))


def _in_project(data: DataConfig) -> DataConfig:
    def found(path: str) -> str:
        return path if os.path.exists(path) or not (_ROOT / path).exists() else str(_ROOT / path)

    validation = data.validation
    return replace(
        data, path=found(data.path), validation=found(validation) if isinstance(validation, str) else validation
    )
