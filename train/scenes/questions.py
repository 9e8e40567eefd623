"""Multiple-choice questions about drawn scenes, about short texts and about words. Knows scenes as data; knows
nothing of drawing, files or models.

Right answers stand at every place equally often, and wrong ones are drawn from the same words as right ones: who
does not see the picture or read the text can only guess. Combinations of a thing and its colour, phrasings and
words of the test split never occur in training.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from train.scenes import words
from train.scenes.drawing import COLORS, PLACES, THINGS, Scene, Thing

T = TypeVar("T")
COUNTS = ("one", "two", "three", "four")
_KINDS, _COLORS, _PLACES = list(THINGS), list(COLORS), list(PLACES)
# Two colours of every thing are kept for the test.
HELD_OUT = frozenset((k, _COLORS[(3 * i + j) % len(_COLORS)]) for i, k in enumerate(_KINDS) for j in range(2))
_WHERE = {
    "meadow": "in a meadow",
    "beach": "on a beach",
    "snow": "in snow",
    "night": "at night",
    "room": "in a room",
}
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

    def combination(self, other: Sequence[tuple[str, str]] = ()) -> tuple[str, str]:
        """A kind and a colour of the split; neither occurs in `other`."""
        while True:
            kind, color = self.rng.choice(_KINDS), self.rng.choice(_COLORS)
            if ((kind, color) in HELD_OUT) == self.test and all(kind != k and color != c for k, c in other):
                return kind, color

    def place(self) -> str:
        return self.rng.choice(_PLACES)

    def scene(self, things: Sequence[Thing], place: str | None = None) -> Scene:
        return Scene(place or self.place(), tuple(things), self.rng.randrange(2**31))

    def single(self) -> Thing:
        """One large thing near the middle."""
        kind, color = self.combination()
        u = self.rng.uniform
        return Thing(kind, color, 0.5 + u(-0.12, 0.12), 0.5 + u(-0.12, 0.12), u(0.42, 0.58))

    def pair(self) -> tuple[Thing, Thing]:
        """A large thing and a small one, side by side."""
        first = self.combination()
        second = self.combination([first])
        u = self.rng.uniform
        xs = [u(0.28, 0.32), u(0.7, 0.74)]
        self.rng.shuffle(xs)
        large = Thing(*first, xs[0], u(0.42, 0.6), u(0.38, 0.44))
        return large, Thing(*second, xs[1], u(0.42, 0.6), u(0.17, 0.21))

    def question(
        self, skill: str, text: str, right: str, wrong: Sequence[str], scene: Scene | None = None, hint: str = ""
    ) -> Question:
        """The right choice at a random place among the wrong ones."""
        at = self.rng.randrange(len(wrong) + 1)
        return Question(text, (*wrong[:at], right, *wrong[at:]), at, hint, scene, skill)

    def others(self, right: str, pool: Sequence[str], count: int) -> list[str]:
        return self.rng.sample([word for word in pool if word != right], count)


def _thing(draw: _Draw) -> Question:
    thing = draw.single()
    text = draw.phrase(
        ("What is in the picture?", "What does the picture show?", "What can you see here?"),
        ("Which thing is shown?", "What do you see in the image?"),
    )
    return draw.question("thing", text, thing.kind, draw.others(thing.kind, _KINDS, 2), draw.scene([thing]))


def _color(draw: _Draw) -> Question:
    thing = draw.single()
    text = draw.phrase(
        ("What color is the {}?", "Which color does the {} have?", "The {} has which color?"),
        ("What is the color of the {}?", "Which color is the {} in the image?"),
    ).format(thing.kind)
    return draw.question("color", text, thing.color, draw.others(thing.color, _COLORS, 1), draw.scene([thing]))


def _count(draw: _Draw) -> Question:
    (kind, color), number = draw.combination(), draw.rng.randint(1, 4)
    u = draw.rng.uniform
    corners = draw.rng.sample(_CORNERS, number)
    things = [Thing(kind, color, x + u(-0.04, 0.04), y + u(-0.04, 0.04), u(0.26, 0.32)) for x, y in corners]
    plural = words.plural(kind)
    text = draw.phrase(
        ("How many {} are there?", "How many {} does the picture show?", "Count the {}."),
        ("How many {} can you see?", "What is the number of {}?"),
    ).format(plural)
    right = COUNTS[number - 1]
    return draw.question("count", text, right, draw.others(right, COUNTS, 1), draw.scene(things))


def _place(draw: _Draw) -> Question:
    scene = draw.scene([draw.single()])
    text = draw.phrase(
        ("Where is the {}?", "Where does the {} stand?", "In which place is the {}?"),
        ("Where was the {} drawn?", "At which place do you see the {}?"),
    ).format(scene.things[0].kind)
    return draw.question("place", text, scene.place, draw.others(scene.place, _PLACES, 2), scene)


def _bigger(draw: _Draw) -> Question:
    large, small = draw.pair()
    right, wrong = (large, small) if draw.rng.random() < 0.5 else (small, large)
    if right is large:
        text = draw.phrase(("Which is bigger?", "Which thing is larger?"), ("Which one is the bigger thing?",))
    else:
        text = draw.phrase(("Which is smaller?", "Which thing is smaller?"), ("Which one is the smaller thing?",))
    return draw.question("bigger", text, right.kind, [wrong.kind], draw.scene([large, small]))


def _sentence(draw: _Draw) -> Question:
    scene = draw.scene([draw.single()])
    kind = scene.things[0].kind
    if draw.rng.random() < 0.5:
        wrong = f"A {draw.others(kind, _KINDS, 1)[0]} {_WHERE[scene.place]}."
    else:
        wrong = f"A {kind} {_WHERE[draw.others(scene.place, _PLACES, 1)[0]]}."
    text = draw.phrase(
        ("Which sentence fits the picture?", "Which sentence tells what you see?"),
        ("Which sentence is true here?",),
    )
    return draw.question("sentence", text, f"A {kind} {_WHERE[scene.place]}.", [wrong], scene)


def _drawn(draw: _Draw) -> Question:
    """A picture and a text that says whose it is."""
    thing, name = draw.single(), draw.rng.choice(words.NAMES)
    text = draw.phrase(
        ("What did {} draw?", "Which thing has {} drawn?"), ("What did {} make a picture of?",)
    ).format(name)
    hint = f"{name} drew this for {draw.others(name, words.NAMES, 1)[0]}."
    return draw.question("drawn", text, thing.kind, draw.others(thing.kind, _KINDS, 1), draw.scene([thing]), hint)


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
    while other == one:
        other = draw.one_of(words.NOUNS)
    if draw.rng.random() < 0.5:
        text = draw.phrase(
            ("Which word is plural?", "Which word means more than one?"), ("Which noun is plural?",)
        )
        return draw.question("plural", text, words.plural(one), [other])
    text = draw.phrase(("Which word is singular?", "Which word means only one?"), ("Which noun is singular?",))
    return draw.question("plural", text, one, [words.plural(other)])


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
    Skill("thing", "natural science", "biology", range(1, 7), 4, _thing),
    Skill("color", "natural science", "physics", range(1, 10), 4, _color),
    Skill("count", "natural science", "units-and-measurement", range(1, 7), 4, _count),
    Skill("bigger", "natural science", "physics", range(5, 13), 3, _bigger),
    Skill("place", "social science", "geography", range(3, 13), 4, _place),
    Skill("drawn", "social science", "culture", range(7, 13), 2, _drawn),
    Skill("sentence", "language science", "reading-comprehension", range(2, 10), 3, _sentence),
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
    """`count` different questions, the skills in proportion to their weights, in random order."""
    rng = random.Random(seed)
    draw = _Draw(rng, test)
    deck = [skill for skill in SKILLS for _ in range(skill.weight)]
    made: dict[Question, Skill] = {}
    tries = 0
    while len(made) < count:
        skill = deck[tries % len(deck)]
        tries += 1
        made.setdefault(skill.make(draw), skill)
    pairs = list(made.items())
    rng.shuffle(pairs)
    return pairs
