"""Multiple-choice questions about drawn scenes, about short texts and about words, as `questions.yaml` words them.

Without the picture or the text one can only guess: right answers stand at every place equally often, and wrong
ones are drawn from the same words. Combinations of a thing and its colour, wordings and words of the test split
never occur in training. Knows scenes as data; knows nothing of pixels, files to write or models.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from train.recipes.text_data import phrases, read_yaml, words
from train.reproduce.scenes.drawing import COLORS, PLACES, THINGS, Scene, Thing

T = TypeVar("T")
COUNTS = ("one", "two", "three", "four")
GROUPS = {
    "animal": ("bird", "fish"), "plant": ("flower", "tree"), "tool": ("hammer", "saw"), "vehicle": ("boat", "car"),
}  # fmt: skip
_KINDS, _COLORS, _PLACES = tuple(THINGS), tuple(COLORS), tuple(PLACES)
# One colour of every thing is kept for the test.
HELD_OUT = frozenset((kind, _COLORS[i % len(_COLORS)]) for i, kind in enumerate(_KINDS))
_CORNERS = ((0.3, 0.32), (0.7, 0.32), (0.3, 0.7), (0.7, 0.7))


@dataclass(frozen=True)
class Question:
    """One question; `answer` is an index into `choices`, `skill` names the rule that made it."""

    question: str
    choices: tuple[str, ...]
    answer: int
    hint: str
    scene: Scene | None
    skill: str


@dataclass(frozen=True)
class Skill:
    """What the questions of one rule have in common, as `questions.yaml` describes it."""

    name: str
    subject: str
    topic: str
    grades: range
    weight: int
    known: tuple[str, ...]
    unseen: tuple[str, ...]
    contexts: tuple[str, ...]


def _data() -> Any:
    return read_yaml(Path(__file__).with_name("questions.yaml"))


@cache
def skills() -> tuple[Skill, ...]:
    """All skills."""
    return tuple(
        Skill(
            name,
            skill["subject"],
            skill["topic"],
            range(skill["grades"][0], skill["grades"][1] + 1),
            skill["weight"],
            phrases(skill["known"]),
            phrases(skill["unseen"]),
            phrases(skill.get("contexts", ())),
        )
        for name, skill in _data()["skills"].items()
    )


@cache
def _words(name: str) -> tuple[str, ...]:
    return words(_data()["words"][name])


@cache
def _pairs(name: str) -> tuple[tuple[str, str], ...]:
    split = (pair.split() for pair in _words(name))
    return tuple((first, second) for first, second in split)


class _Sampler:
    """Random choices for one question of a skill, among what its split may use."""

    def __init__(self, rng: random.Random, test: bool, skill: Skill) -> None:
        self.rng, self.test, self.skill = rng, test, skill

    def wording(self) -> str:
        return self.rng.choice(self.skill.unseen if self.test else self.skill.known)

    def one_of(self, pool: Sequence[T]) -> T:
        """One of the pool; every fourth entry is kept for the test."""
        return self.rng.choice([item for i, item in enumerate(pool) if (i % 4 == 3) == self.test])

    def combination(self, kinds: Sequence[str] = _KINDS, colors: Sequence[str] = _COLORS) -> tuple[str, str]:
        """A kind and a colour that may occur together in the split."""
        while True:
            found = self.rng.choice(kinds), self.rng.choice(colors)
            if (found in HELD_OUT) == self.test:
                return found

    def scene(self, things: Sequence[Thing]) -> Scene:
        return Scene(self.rng.choice(_PLACES), tuple(things), self.rng.randrange(2**31))

    def large(self, kinds: Sequence[str] = _KINDS, colors: Sequence[str] = _COLORS) -> Thing:
        """One large thing near the middle."""
        u = self.rng.uniform
        return Thing(*self.combination(kinds, colors), 0.5 + u(-0.12, 0.12), 0.5 + u(-0.12, 0.12), u(0.46, 0.62))

    def small(self, combination: tuple[str, str], x: float, y: float, size: float = 0.28) -> Thing:
        u = self.rng.uniform
        return Thing(*combination, x + u(-0.03, 0.03), y + u(-0.03, 0.03), size * u(0.9, 1.1))

    def alike(self, number: int) -> list[Thing]:
        """`number` things of one kind and colour, in some of the four corners."""
        combination = self.combination()
        return [self.small(combination, *corner) for corner in self.rng.sample(_CORNERS, number)]

    def text_question(self, text: str, right: str, wrong: str, hint: str = "") -> Question:
        """A question without a picture, the right choice before or after the wrong one."""
        at = self.rng.randrange(2)
        return Question(text, (wrong, right) if at else (right, wrong), at, hint, None, self.skill.name)

    def picture_question(
        self, text: str, right: str, choices: Sequence[str], scene: Scene, hint: str = ""
    ) -> Question:
        """A question whose choices stand in an order of their own: by the alphabet, or by size."""
        return Question(text, tuple(choices), choices.index(right), hint, scene, self.skill.name)


def _group(sampler: _Sampler) -> Question:
    group = sampler.rng.choice(tuple(GROUPS))
    text = sampler.wording()
    return sampler.picture_question(text, group, tuple(GROUPS), sampler.scene([sampler.large(GROUPS[group])]))


def _color(sampler: _Sampler) -> Question:
    # The colour first: drawn by kind, some would be the answer more often, and in the test others.
    thing = sampler.large(colors=(sampler.rng.choice(_COLORS),))
    text = sampler.wording()
    return sampler.picture_question(text, thing.color, _COLORS, sampler.scene([thing]))


def _count(sampler: _Sampler) -> Question:
    number = sampler.rng.randint(1, len(COUNTS))
    things = sampler.alike(number)
    text = sampler.wording().format(plural(things[0].kind))
    return sampler.picture_question(text, COUNTS[number - 1], COUNTS, sampler.scene(things))


def _size(sampler: _Sampler) -> Question:
    """Whether two things are of one size."""
    right = sampler.rng.choice(("no", "yes"))
    kinds = sampler.rng.sample(_KINDS, 2)
    sizes = [0.36, 0.36 if right == "yes" else 0.18]
    sampler.rng.shuffle(sizes)
    text = sampler.wording()
    things = [
        sampler.small(sampler.combination((kind,)), x, 0.5, size)
        for kind, x, size in zip(kinds, (0.29, 0.71), sizes, strict=True)
    ]
    return sampler.picture_question(text, right, ("no", "yes"), sampler.scene(things))


def _place(sampler: _Sampler) -> Question:
    scene = sampler.scene([sampler.large()])
    text = sampler.wording().format(scene.things[0].kind)
    return sampler.picture_question(text, scene.place, _PLACES, scene)


def _drawn(sampler: _Sampler) -> Question:
    """With a text too, which says who drew the picture."""
    group, (name, other) = sampler.rng.choice(tuple(GROUPS)), sampler.rng.sample(_words("names"), 2)
    text = sampler.wording().format(name)
    scene = sampler.scene([sampler.large(GROUPS[group])])
    return sampler.picture_question(text, group, tuple(GROUPS), scene, f"{name} drew this for {other}.")


def _layout(sampler: _Sampler) -> Question:
    """How three things are arranged."""
    combination, right = sampler.combination(), sampler.rng.choice(("column", "row"))
    along, across = (0.22, 0.5, 0.78), sampler.rng.uniform(0.35, 0.65)
    spots = [(across, at) if right == "column" else (at, across) for at in along]
    text = sampler.wording().format(plural(combination[0]))
    scene = sampler.scene([sampler.small(combination, *spot, size=0.25) for spot in spots])
    return sampler.picture_question(text, right, ("column", "row"), scene)


def _number(sampler: _Sampler) -> Question:
    right = sampler.rng.choice(("plural", "singular"))
    text = sampler.wording()
    number = 1 if right == "singular" else sampler.rng.randint(2, 4)
    return sampler.picture_question(text, right, ("plural", "singular"), sampler.scene(sampler.alike(number)))


def _property(sampler: _Sampler) -> Question:
    (right, wrong), state = sampler.rng.sample(_words("stuffs"), 2), sampler.rng.choice(_words("states"))
    hint = sampler.rng.choice(sampler.skill.contexts).format(right, state)
    return sampler.text_question(sampler.wording().format(state), right, wrong, hint)


def _told(subjects: str, answers: str) -> Callable[[_Sampler], Question]:
    """The text says which of the `answers` goes with one of the `subjects`, which the question is about."""

    def make(sampler: _Sampler) -> Question:
        subject, (right, wrong) = sampler.rng.choice(_words(subjects)), sampler.rng.sample(_words(answers), 2)
        hint = sampler.rng.choice(sampler.skill.contexts).format(subject, right)
        return sampler.text_question(sampler.wording().format(subject), right, wrong, hint)

    return make


def _paired(pairs: str) -> Callable[[_Sampler], Question]:
    """Without context: what goes with the first word of a pair; the wrong choice goes with another's."""

    def make(sampler: _Sampler) -> Question:
        first, right = sampler.one_of(_pairs(pairs))
        wrong = right
        while wrong == right:
            wrong = sampler.one_of(_pairs(pairs))[1]
        return sampler.text_question(sampler.wording().format(first), right, wrong)

    return make


def _member(members: str, others: str) -> Callable[[_Sampler], Question]:
    """Without context: which word belongs to a class."""

    def make(sampler: _Sampler) -> Question:
        text = sampler.wording()
        return sampler.text_question(text, sampler.one_of(_words(members)), sampler.one_of(_words(others)))

    return make


def _plural(sampler: _Sampler) -> Question:
    one, other = sampler.one_of(_words("nouns")), sampler.one_of(_words("nouns"))
    return sampler.text_question(sampler.wording(), plural(one), other)


def plural(noun: str) -> str:
    """The plural of a word of the benchmark."""
    if noun == "fish":
        return noun
    return noun[:-1] + "ves" if noun.endswith("leaf") else noun + "s"


_MAKERS: dict[str, Callable[[_Sampler], Question]] = {
    "group": _group,
    "color": _color,
    "count": _count,
    "size": _size,
    "place": _place,
    "drawn": _drawn,
    "layout": _layout,
    "number": _number,
    "property": _property,
    "trade": _told("towns", "goods"),
    "meaning": _told("new_words", "verbs"),
    "animal": _member("animals", "not_animals"),
    "liquid": _member("liquids", "solids"),
    "capital": _paired("capitals"),
    "work": _paired("work"),
    "opposite": _paired("opposites"),
    "plural": _plural,
}


def questions(count: int, test: bool, seed: int) -> list[tuple[Question, Skill]]:
    """`count` different questions in random order, the skills in proportion to their weights.

    test: of the test split. A skill without further questions leaves its place to the others; there is no end of
    pictures.
    """
    rng = random.Random(seed)
    deck = [skill for skill in skills() for _ in range(skill.weight)]
    made: dict[Question, Skill] = {}
    for skill in itertools.cycle(deck):
        if len(made) == count:
            break
        made.setdefault(_MAKERS[skill.name](_Sampler(rng, test, skill)), skill)
    pairs = list(made.items())
    rng.shuffle(pairs)
    return pairs
