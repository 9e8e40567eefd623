"""Words for the `see` recipe: what the encoder's classes and the drawings are called, and the sentences made of them.

`see_classes.tsv` holds one line for each of ImageNet's 1,000 classes, in order: the name that people use, and the
kind of thing it is (from WordNet's hypernyms, put right by hand; empty where no everyday word fits). Knows text only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from train.recipes.see_drawings import with_article

_PREPOSITIONS = "of|with|in|on|at|for|and|without|behind|from|dancing|playing|making|hatched|inside|worn|covered|showing|fluttering"
_MEASURES = "pair|cup|glass|bunch|cluster|head|slice|quarter|tube|pile|string|couple|ear|pot|model|map|baby"
# Words before a noun that leave the thing what it is; a drawing's full name keeps them, its concept does not.
_ADJECTIVES = frozenset(
    "red green blue yellow brown black white pink purple grey gray silver golden light dark big small large little huge very old "
    "young happy sad colorful wooden wrapped open closed lit ripe sweet folded sliced fried roasted cooked singing sitting sleeping "
    "spouting fallen leafless wilted broken beating sparkling growing mending revolving empty albino hatching front-facing two some "
    "digital electric classical fairytale medieval crossed clapping folding raising waving grinning".split()
)
_FACED = frozenset("cat dog cow tiger horse mouse rabbit monkey pig fox dragon moon".split())
_CONFIDENT, _KIND_CONFIDENT = 0.4, 0.6


@dataclass(frozen=True)
class Name:
    """What something is called: `text` with its article, and the kind of thing or ""."""

    text: str
    kind: str = ""


def class_names() -> list[Name]:
    """The encoder's 1,000 classes."""
    lines = Path(__file__).with_name("see_classes.tsv").read_text(encoding="utf-8").splitlines()
    return [Name(with_article(name), kind) for name, kind in (line.split("\t") for line in lines)]


def concept(drawing: str) -> str:
    """The thing itself in a drawing's name: "a red apple" is "an apple", "a grinning cat with a hat" "a cat"."""
    bare = re.sub(r"^(an?|the|some|two) ", "", drawing)
    if measured := re.match(rf"(?:{_MEASURES}) of (.*)", bare):
        bare = measured[1]
    words = re.split(rf" (?:{_PREPOSITIONS}) ", bare)[0].split()
    if words[-1] == "face":
        words = words[-2:-1] if len(words) > 1 and words[-2] in _FACED else ["face"]
    if words[0] == "person":
        words = words[:1]
    while len(words) > 1 and words[0].lower() in _ADJECTIVES:
        words = words[1:]
    return with_article(" ".join(words))


def drawing_sentence(name: str) -> str:
    """The answer about a drawing of that name."""
    return f"The picture shows {name}."


def sentence(first: Name, probability: float, second: Name, kind_mass: float) -> str:
    """The answer that says no more than the encoder knows.

    first, second: the likeliest names; probability: of the first; kind_mass: of all names of the first's kind.
    """
    kind = first.kind
    told = not kind or re.search(rf"\b{re.escape(kind)}\b", first.text)
    if probability >= _CONFIDENT or (told and kind_mass >= _KIND_CONFIDENT):
        return f"The picture shows {first.text}{'' if told else f', a kind of {kind}'}."
    if (
        kind
        and kind_mass >= _KIND_CONFIDENT
        and kind not in ("clothing", "cattle", "fabric", "furniture", "food", "shellfish")
    ):
        return f"The picture shows {with_article(kind)}, perhaps {first.text}."
    return f"The picture shows {first.text} or {second.text}."
