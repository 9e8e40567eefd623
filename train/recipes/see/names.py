"""Names for the `see` recipe: of the encoder's classes and of kinds of things, and sentences made of them.

`classes.tsv` has one line for each of ImageNet's 1,000 classes, in order: the name that people use, with its article,
and the kind of thing it is (from WordNet's hypernyms, corrected by hand; empty where no everyday word fits).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from train.recipes.text_data import table

FOLDER = Path(__file__).parent
SURE, SURE_OF_KIND = 0.4, 0.35  # least probabilities of a name and of a kind that is named
_NOT_SURE = "I am not sure"
# "not a cat", up to the end of the clause; "not sure, perhaps a cat" is a guess.
_DENIED = re.compile(
    r"\b(?:not|no|never|isn't|aren't)\b(?! sure\b| certain\b| only\b)[^,;.:!?]*?(?=[,;.:!?]|\bbut\b|$)", re.I
)


@dataclass(frozen=True)
class Name:
    """What something is called: `text` with its article, and the kind of thing or ""."""

    text: str
    kind: str = ""


@dataclass(frozen=True)
class Kind:
    """text: how the kind is called, with its article. group: that it is of, with its article, such as "an animal"."""

    text: str
    group: str


@cache
def class_names() -> tuple[Name, ...]:
    """The encoder's 1,000 classes."""
    return tuple(Name(*row) for row in table(FOLDER / "classes.tsv"))


@cache
def kinds() -> dict[str, Kind]:
    """All kinds of things by name."""
    return {name: Kind(text, group) for name, text, group in table(FOLDER / "kinds.tsv")}


def group_of(kind: str) -> str:
    """The group of things that a kind is of, or ""."""
    return kinds()[kind].group if kind else ""


@cache
def groups() -> tuple[str, ...]:
    """All groups of things."""
    return tuple(sorted({kind.group for kind in kinds().values()} - {""}))


def is_named(words: Collection[str], text: str) -> bool:
    """Whether `text` holds one of the words, as a whole word or its regular plural, and not as what it is not."""
    said = _DENIED.sub("", text)
    return any(re.search(rf"\b{re.escape(word)}(e?s)?\b", said, re.IGNORECASE) for word in words)


def drawing_sentence(name: str) -> str:
    """The answer about a drawing of that name."""
    return f"The picture shows {name}."


def posterior_sentence(first: Name, probability: float, second: Name, kind: str, mass: float, member: Name) -> str:
    """The answer that says no more than the encoder knows.

    first, second: the likeliest names. probability: of the first. kind: the likeliest kind; mass: the probability of
    all its names; member: the likeliest of them.
    """
    if probability >= SURE:
        kind_is_clear = not first.kind or re.search(rf"\b{re.escape(first.kind)}\b", first.text)
        return f"The picture shows {first.text}{'' if kind_is_clear else f', a kind of {first.kind}'}."
    if mass >= SURE_OF_KIND:
        return f"The picture shows {kinds()[kind].text}, perhaps {member.text}."
    return f"{_NOT_SURE}, perhaps {first.text} or {second.text}."


def hedged(answer: str) -> bool:
    """Whether an answer says that it is not sure, rather than name a thing."""
    return _NOT_SURE in answer
