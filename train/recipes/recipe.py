"""What the recipes in `train/recipes/` have in common: data to train on and a measure of the result."""

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
from train.evaluate.answerer import Answerer
from train.evaluate.intervals import Figure
from train.input.examples import Example

Measure = Callable[[Answerer], dict[str, Figure]]


@dataclass(frozen=True)
class Recipe:
    """One adapter that can be trained by name.

    config: settings of the training run. data: what the adapter is trained and tested on, for its card.
    examples("train") is endless, examples("validation") is finite and disjoint from it.
    development(answerer) measures the sets that the recipe is developed on, when a training ends; scores(answerer)
    measures the sealed sets, which decide nothing, when `--score` asks for them. prepare(adapter) fills buffers of a new adapter
    that are not trained, such as names of classes.
    """

    config: TrainConfig
    data: str
    examples: Callable[[str], Iterable[Example]]
    development: Measure
    scores: Measure
    prepare: Callable[[Adapter], None] = lambda _: None


def recipe_names() -> list[str]:
    """Names of all recipes: the modules of `train/recipes/` without an underscore, but for this one."""
    found = [module.name for module in pkgutil.iter_modules(recipes.__path__)]
    return [name for name in found if "_" not in name and name != "recipe"]


def load_recipe(name: str, base: Base) -> Recipe:
    """Returns recipe `name`, its data prepared with `base`. Raises AdapterError for an unknown name."""
    if name not in recipe_names():
        raise AdapterError(f"There is no recipe '{name}'. Choose one of: {', '.join(recipe_names())}.")
    return importlib.import_module(f"train.recipes.{name}").recipe(base)
