"""A recipe of the project for the tiny base: the adapter says its question again."""

from adapter.base.template import Message
from tests.train.conftest import examples
from train.config import TrainConfig
from train.evaluate.answerer import Answerer
from train.evaluate.intervals import Figure
from train.recipes.recipe import Examples, MeasuredSets, Recipe

CONFIG = TrainConfig("parrot", steps=6, batch_size=4, prompt_length=4, template="raw", eval_every=3, held_out=8)


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
