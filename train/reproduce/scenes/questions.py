"""Multiple-choice questions about drawn scenes, about short texts and about words. Knows scenes as data; knows
nothing of drawing, files or models.

Who does not see the picture or read the text can only guess: right answers stand at every place equally often, and
wrong ones are drawn from the same words. Combinations of a thing and its colour, phrasings and words of the test
split never occur in training.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from train.reproduce.scenes import words
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
    """What the questions of one rule have in common. weight: how many of them there are, against the others."""

    name: str
    subject: str
    topic: str
    grades: range
    weight: int
    make: Maker


Maker = Callable[["_Draw"], Question]


class _Draw:
    """Random choices for one question, of what its split may use."""

    def __init__(self, rng: random.Random, test: bool) -> None:
        self.rng, self.test = rng, test

    def phrase(self, known: Sequence[str], unseen: Sequence[str]) -> str:
        return self.rng.choice(unseen if self.test else known)

    def one_of(self, pool: Sequence[T]) -> T:
        """One of the pool; every fourth is kept for the test."""
        return self.rng.choice([item for i, item in enumerate(pool) if (i % 4 == 3) == self.test])

    def combination(self, kinds: Sequence[str] = _KINDS) -> tuple[str, str]:
        """A kind and a colour that the split has together."""
        while True:
            found = self.rng.choice(kinds), self.rng.choice(_COLORS)
            if (found in HELD_OUT) == self.test:
                return found

    def scene(self, things: Sequence[Thing]) -> Scene:
        return Scene(self.rng.choice(_PLACES), tuple(things), self.rng.randrange(2**31))

    def single(self, kinds: Sequence[str] = _KINDS) -> Thing:
        """One large thing near the middle."""
        u = self.rng.uniform
        return Thing(*self.combination(kinds), 0.5 + u(-0.12, 0.12), 0.5 + u(-0.12, 0.12), u(0.46, 0.62))

    def small(self, combination: tuple[str, str], x: float, y: float, size: float = 0.28) -> Thing:
        u = self.rng.uniform
        return Thing(*combination, x + u(-0.03, 0.03), y + u(-0.03, 0.03), size * u(0.9, 1.1))

    def several(self, number: int) -> list[Thing]:
        """So many things alike, in some of the four corners."""
        alike = self.combination()
        return [self.small(alike, *corner) for corner in self.rng.sample(_CORNERS, number)]

    def question(self, skill: str, text: str, right: str, wrong: Sequence[str], hint: str = "") -> Question:
        """The right choice at a random place among the wrong ones."""
        at = self.rng.randrange(len(wrong) + 1)
        return Question(text, (*wrong[:at], right, *wrong[at:]), at, hint, None, skill)

    def seen(
        self, skill: str, text: str, right: str, choices: Sequence[str], scene: Scene, hint: str = ""
    ) -> Question:
        """A question whose choices stand in an order of their own: by the alphabet, or by size."""
        return Question(text, tuple(choices), choices.index(right), hint, scene, skill)


def _group(draw: _Draw) -> Question:
    group = draw.rng.choice(tuple(GROUPS))
    text = draw.phrase(
        ("What is in the picture?", "What does the picture show?", "Which kind of thing is this?"),
        ("What do you see in the image?", "To which group does this thing belong?"),
    )
    return draw.seen("group", text, group, tuple(GROUPS), draw.scene([draw.single(GROUPS[group])]))


def _color(draw: _Draw) -> Question:
    # The question does not name the thing: whoever knows which colours it had before would know which is left.
    thing = draw.single()
    text = draw.phrase(
        ("What color is it?", "Which color does it have?", "It has which color?"),
        ("What is the color of this thing?", "Which color is the thing in the image?"),
    )
    return draw.seen("color", text, thing.color, _COLORS, draw.scene([thing]))


def _count(draw: _Draw) -> Question:
    number = draw.rng.randint(1, len(COUNTS))
    things = draw.several(number)
    text = draw.phrase(
        ("How many {} are there?", "How many {} does the picture show?", "Count the {}."),
        ("How many {} can you see?", "What is the number of {}?"),
    ).format(words.plural(things[0].kind))
    return draw.seen("count", text, COUNTS[number - 1], COUNTS, draw.scene(things))


def _place(draw: _Draw) -> Question:
    scene = draw.scene([draw.single()])
    text = draw.phrase(
        ("Where is the {}?", "Where does the {} stand?", "In which place is the {}?"),
        ("Where can you find the {}?", "At which place do you see the {}?"),
    ).format(scene.things[0].kind)
    return draw.seen("place", text, scene.place, _PLACES, scene)


def _layout(draw: _Draw) -> Question:
    """Where things stand to each other."""
    alike, right = draw.combination(), draw.rng.choice(("column", "row"))
    along, across = (0.22, 0.5, 0.78), draw.rng.uniform(0.35, 0.65)
    spots = [(across, at) if right == "column" else (at, across) for at in along]
    text = draw.phrase(
        ("How do the {} stand?", "In which order are the {}?", "What do the {} form?"),
        ("How are the {} arranged?", "Which line do the {} make?"),
    ).format(words.plural(alike[0]))
    scene = draw.scene([draw.small(alike, *spot, size=0.25) for spot in spots])
    return draw.seen("layout", text, right, ("column", "row"), scene)


def _size(draw: _Draw) -> Question:
    """How two things compare."""
    right = draw.rng.choice(("no", "yes"))
    kinds = draw.rng.sample(_KINDS, 2)
    sizes = [0.36, 0.36 if right == "yes" else 0.18]
    draw.rng.shuffle(sizes)
    text = draw.phrase(
        ("Are both things of one size?", "Are the two things as large as each other?"),
        ("Have the things the same size?",),
    )
    spots = ((0.29, 0.5), (0.71, 0.5))
    things = [
        draw.small(draw.combination((kind,)), *spot, size)
        for kind, spot, size in zip(kinds, spots, sizes, strict=True)
    ]
    return draw.seen("size", text, right, ("no", "yes"), draw.scene(things))


def _number(draw: _Draw) -> Question:
    right = draw.rng.choice(("plural", "singular"))
    text = draw.phrase(
        ("Which form of the noun fits the picture?", "Is the noun for this plural or singular?"),
        ("Which form of the noun do you need here?",),
    )
    number = 1 if right == "singular" else draw.rng.randint(2, 4)
    return draw.seen("number", text, right, ("plural", "singular"), draw.scene(draw.several(number)))


def _drawn(draw: _Draw) -> Question:
    """With a text too, which says whose picture it is."""
    group, (name, other) = draw.rng.choice(tuple(GROUPS)), draw.rng.sample(words.NAMES, 2)
    text = draw.phrase(("What did {} draw?", "Which thing has {} drawn?"), ("What did {} make a picture of?",))
    scene = draw.scene([draw.single(GROUPS[group])])
    hint = f"{name} drew this for {other}."
    return draw.seen("drawn", text.format(name), group, tuple(GROUPS), scene, hint)


def _trade(draw: _Draw) -> Question:
    town, (right, wrong) = draw.rng.choice(words.TOWNS), draw.rng.sample(words.GOODS, 2)
    hint = draw.rng.choice(("{} sells {} to others.", "The people of {} sell {}.")).format(town, right)
    text = draw.phrase(("What does {} sell?", "Which good does {} sell?"), ("What can you buy in {}?",)).format(
        town
    )
    return draw.question("trade", text, right, [wrong], hint=hint)


def _property(draw: _Draw) -> Question:
    (right, wrong), state = draw.rng.sample(words.STUFFS, 2), draw.rng.choice(words.STATES)
    hint = draw.rng.choice(("In this test the {} was {}.", "We found that the {} is {}.")).format(right, state)
    text = draw.phrase(("Which thing is {}?", "What is {}?"), ("Which of the two is {}?",)).format(state)
    return draw.question("property", text, right, [wrong], hint=hint)


def _meaning(draw: _Draw) -> Question:
    word, (right, wrong) = draw.rng.choice(words.NEW_WORDS), draw.rng.sample(words.VERBS, 2)
    hint = draw.rng.choice(("To {} is to {}.", "They say {} when they {}.")).format(word, right)
    text = draw.phrase(('What does "{}" mean?', 'What is the meaning of "{}"?'), ('What is it to "{}"?',)).format(
        word
    )
    return draw.question("meaning", text, right, [wrong], hint=hint)


def _pairs(skill: str, pool: Sequence[tuple[str, str]], known: Sequence[str], unseen: Sequence[str]) -> Maker:
    """Without context: what goes with the first word of a pair; the wrong choice goes with another's."""

    def make(draw: _Draw) -> Question:
        cue, right = draw.one_of(pool)
        wrong = right
        while wrong == right:
            wrong = draw.one_of(pool)[1]
        return draw.question(skill, draw.phrase(known, unseen).format(cue), right, [wrong])

    return make


def _members(
    skill: str, members: Sequence[str], strangers: Sequence[str], known: Sequence[str], unseen: Sequence[str]
) -> Maker:
    """Without context: which word belongs to a class."""

    def make(draw: _Draw) -> Question:
        return draw.question(skill, draw.phrase(known, unseen), draw.one_of(members), [draw.one_of(strangers)])

    return make


def _plural(draw: _Draw) -> Question:
    one, other = draw.one_of(words.NOUNS), draw.one_of(words.NOUNS)
    text = draw.phrase(("Which word is plural?", "Which word means more than one?"), ("Which noun is plural?",))
    return draw.question("plural", text, words.plural(one), [other])


_ANIMAL = _members(
    "animal",
    words.ANIMALS,
    words.NOT_ANIMALS,
    ("Which is an animal?", "Which of these is alive?", "Which one can eat and move?"),
    ("Which one is an animal?", "Which of these is an animal?"),
)
_LIQUID = _members(
    "liquid",
    words.LIQUIDS,
    words.SOLIDS,
    ("Which is a liquid?", "Which one flows?", "Which is liquid in a room?"),
    ("Which one is a liquid?", "Which of these is liquid?"),
)
_OPPOSITE = _pairs(
    "opposite",
    words.OPPOSITES,
    ("What is the opposite of {}?", "Which word is the opposite of {}?"),
    ("Which word means the opposite of {}?",),
)
_CAPITAL = _pairs(
    "capital",
    words.CAPITALS,
    ("{} is the capital of which country?", "Which country has the capital {}?"),
    ("In which country is {}?",),
)
_WORK = _pairs("work", words.WORK, ("What does a {} make?", "A {} works on what?"), ("What comes from a {}?",))

SKILLS = (
    Skill("group", "natural science", "biology", range(1, 7), 4, _group),
    Skill("color", "natural science", "physics", range(1, 10), 3, _color),
    Skill("count", "natural science", "units-and-measurement", range(1, 7), 4, _count),
    Skill("size", "natural science", "physics", range(7, 13), 2, _size),
    Skill("place", "social science", "geography", range(3, 13), 4, _place),
    Skill("drawn", "social science", "culture", range(7, 13), 3, _drawn),
    Skill("layout", "language science", "figurative-language", range(7, 13), 2, _layout),
    Skill("number", "language science", "grammar", range(3, 10), 2, _number),
    Skill("property", "natural science", "chemistry", range(3, 13), 3, _property),
    Skill("trade", "social science", "economics", range(4, 13), 3, _trade),
    Skill("meaning", "language science", "vocabulary", range(4, 13), 3, _meaning),
    Skill("animal", "natural science", "biology", range(1, 5), 2, _ANIMAL),
    Skill("liquid", "natural science", "chemistry", range(4, 10), 2, _LIQUID),
    Skill("capital", "social science", "geography", range(5, 13), 2, _CAPITAL),
    Skill("work", "social science", "economics", range(1, 7), 2, _WORK),
    Skill("opposite", "language science", "vocabulary", range(2, 8), 2, _OPPOSITE),
    Skill("plural", "language science", "grammar", range(1, 10), 2, _plural),
)


def questions(count: int, test: bool, seed: int) -> list[tuple[Question, Skill]]:
    """`count` different questions in random order, the skills in proportion to their weights.

    A skill that has said all it can leaves its place to the others: pictures there are without end.
    """
    rng = random.Random(seed)
    draw = _Draw(rng, test)
    deck = [skill for skill in SKILLS for _ in range(skill.weight)]
    made: dict[Question, Skill] = {}
    for skill in itertools.cycle(deck):
        if len(made) == count:
            break
        made.setdefault(skill.make(draw), skill)
    pairs = list(made.items())
    rng.shuffle(pairs)
    return pairs
