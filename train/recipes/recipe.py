"""What the recipes in `train/recipes/` have in common: data to train on and a measure of what came out."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from adapter.base.llama import Base
from adapter.errors import AdapterError
from adapter.method.adapter import Adapter
from train import recipes
from train.config import TrainConfig
from train.data import Example
from train.score import Answerer


@dataclass(frozen=True)
class Recipe:
    """One adapter that can be trained by name.

    examples("train") is endless, examples("validation") is held out from it. scores(answerer) gives named
    numbers measured on held-out data that is not validation's.
    """

    config: TrainConfig
    data: str  # what it is trained and tested on, for the card
    examples: Callable[[str], Iterable[Example]]
    scores: Callable[[Answerer], dict[str, float]]
    prepare: Callable[[Adapter], None] = lambda _: None  # fill what is not trained, such as names of classes


def names() -> list[str]:
    """The recipes that there are: the modules of `train/recipes/` that define `recipe`."""
    return [m.name for m in pkgutil.iter_modules(recipes.__path__) if "_" not in m.name]


def load_recipe(name: str, base: Base) -> Recipe:
    """Recipe `name`, its data prepared with `base`. Raises AdapterError for an unknown name."""
    if name not in names():
        raise AdapterError(f"There is no recipe '{name}'. Choose one of: {', '.join(names())}.")
    return importlib.import_module(f"train.recipes.{name}").recipe(base)
