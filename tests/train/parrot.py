"""A recipe of the project for the tiny base: the adapter says its question again."""

import itertools
import random
from collections.abc import Iterator

from adapter.base.template import Message
from train.config import TrainConfig
from train.evaluate.answerer import Answerer
from train.evaluate.intervals import Figure
from train.input.examples import Example
from train.recipes.recipe import Examples, MeasuredSets, Recipe

CONFIG = TrainConfig("parrot", steps=6, batch_size=4, prompt_length=4, template="raw", eval_every=3, held_out=8)


def examples(split: str) -> Iterator[Example]:
    rng = random.Random(split)
    source = (Example((Message("user", f"{word}>"),), word) for word in iter(lambda: rng.choice("abcd"), ""))
    return source if split == "train" else itertools.islice(source, 8)


def parrot(score: float = 50.0) -> Recipe:

    def figure(answerer: Answerer) -> Figure:
        value = 20.0 if answerer.told else score
        return Figure(value, value - 10, value + 10, 4, "Wilson")

    return Recipe(
        "Says it again.",
        (Message("user", "a>"), Message("assistant", "a")),
        MeasuredSets(lambda answerer: {"parrots, %": figure(answerer)}, ("parrot/recipe.yaml",)),
        MeasuredSets(lambda answerer: {"parrots, sealed, %": figure(answerer)}, ("parrot/recipe.yaml",)),
        Examples(examples),
    )
