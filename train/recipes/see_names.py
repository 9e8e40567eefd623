"""Names for the `see` recipe: of the encoder's classes, of drawings and their concepts, and sentences made of them.

Knows text only. Its word lists are in `data/see.yaml`. `data/see_classes.tsv` has one line for each of ImageNet's
1,000 classes, in order: the name that people use, and the kind of thing it is (from WordNet's hypernyms, corrected by
hand; empty where no everyday word fits).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache

from train.recipes.text_data import DATA, read_yaml, words

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


@cache
def see_words(key: str) -> tuple[str, ...]:
    """A word list of the recipe."""
    return words(read_yaml(DATA / "see.yaml")[key])


@cache
def _pattern(template: str, *keys: str) -> re.Pattern[str]:
    """A regular expression in which each {} is an alternative of the words of a list."""
    return re.compile(template.format(*("|".join(see_words(key)) for key in keys)))


@cache
def class_names() -> tuple[Name, ...]:
    """The encoder's 1,000 classes."""
    lines = (DATA / "see_classes.tsv").read_text(encoding="utf-8").splitlines()
    return tuple(Name(with_article(name), kind) for name, kind in (line.split("\t") for line in lines))


def with_article(name: str) -> str:
    """A bare name with "a" or "an", or as it is where it takes none: mass nouns and plurals."""
    head = re.split(r" (?:of|with|in|on|at|for|and|without|behind) ", name)[0]
    if _pattern(r"(s|\b({}))$", "uncounted").search(head) and not _pattern(r"({})$", "counted_s").search(head):
        return name
    vowel = re.match(r"[aeiouAEIOU]|hour|x-ray|F-22|M-3", name) and not re.match(
        r"uni|euro|one|UK|ukulele|US", name
    )
    return ("an " if vowel else "a ") + name


def renamed(name: str) -> str:
    """The name to use for a drawing in place of `name`, "" to leave the drawing out."""
    return str(read_yaml(DATA / "see.yaml")["renamed"].get(name, name))


def stamp_name(caption: str) -> str:
    """The thing that a stamp's first line names, with its article; "" if the line is no plain name."""
    end = r"[.!?:;—(,]|  | - | is | are | was | used | lets | resembles | says "
    text = re.sub(r"[“”\"]", "", re.split(end, caption.strip())[0].strip(" “”\"'"))
    parts = text.split()
    if not 1 <= len(parts) <= 7 or (parts[0].lower() in see_words("no_first_words") and parts[0] != "An"):
        return ""
    if parts[0] in ("A", "An", "The", "Some", "Two"):
        return parts[0].lower() + text[len(parts[0]) :]
    return with_article(text if parts[0][1:] != parts[0][1:].lower() else text[0].lower() + text[1:])


def emoji_name(description: str) -> str:
    """The thing that an emoji shows, with its article; "" for signs, letters and variants of other emoji."""
    signs = re.compile("|".join(read_yaml(DATA / "see.yaml")["signs"]))
    if signs.search(description) or description in see_words("zodiac"):
        return ""
    name = re.sub(r"^(oncoming|articulated) ", "", description)
    name = {"ewe": "sheep", "locked": "closed padlock", "unlocked": "open padlock"}.get(name, name)
    return with_article(re.sub(r" (not )?done$", "", name))


def concept(drawing: str) -> str:
    """The thing itself in a drawing's name: "a red apple" is "an apple", "a grinning cat with a hat" "a cat"."""
    bare = re.sub(r"^(an?|the|some|two) ", "", drawing)
    if measured := _pattern(r"(?:{}) of (.*)", "measures").match(bare):
        bare = measured[1]
    parts = _pattern(r" (?:{}) ", "prepositions").split(bare)[0].split()
    if parts[-1] == "face":
        parts = parts[-2:-1] if len(parts) > 1 and parts[-2] in see_words("faced") else ["face"]
    if parts[0] == "person":
        parts = parts[:1]
    while len(parts) > 1 and parts[0].lower() in see_words("adjectives"):
        parts = parts[1:]
    return with_article(" ".join(parts))


def is_named(words: Collection[str], text: str) -> bool:
    """Whether `text` holds one of the words, as a whole word or its regular plural, and not as what it is not."""
    said = _DENIED.sub("", text)
    return any(re.search(rf"\b{re.escape(word)}(e?s)?\b", said, re.IGNORECASE) for word in words)


def drawing_sentence(name: str) -> str:
    """The answer about a drawing of that name."""
    return f"The picture shows {name}."


def concept_kind(concept: str) -> str:
    """The kind of what a drawing shows, "" where no everyday word fits."""
    return _kinds().get(re.sub(r"^(an?|the|some|two) ", "", concept), "")


@cache
def _kinds() -> dict[str, str]:
    table = read_yaml(DATA / "see.yaml")["kinds"]
    return {name: kind for kind, names in table.items() for name in words(names)}


@cache
def group_of_kind() -> dict[str, str]:
    """The group of things that each kind is of, such as animal: {"dog": "animal", ...}. Kinds of none are left out."""
    groups = read_yaml(DATA / "see.yaml")["groups"]
    return {kind: group for group, kinds in groups.items() for kind in words(kinds)}


def posterior_sentence(first: Name, probability: float, second: Name, kind: str, mass: float, member: Name) -> str:
    """The answer that says no more than the encoder knows.

    first, second: the likeliest names. probability: of the first. kind: the likeliest kind; mass: the probability of
    all its names; member: the likeliest of them.
    """
    if probability >= SURE:
        kind_is_clear = not first.kind or re.search(rf"\b{re.escape(first.kind)}\b", first.text)
        return f"The picture shows {first.text}{'' if kind_is_clear else f', a kind of {first.kind}'}."
    if mass >= SURE_OF_KIND:
        alone = read_yaml(DATA / "see.yaml")["kind_alone"].get(kind) or with_article(kind)
        return f"The picture shows {alone}, perhaps {member.text}."
    return f"{_NOT_SURE}, perhaps {first.text} or {second.text}."


def hedged(answer: str) -> bool:
    """Whether an answer says that it is not sure, rather than name a thing."""
    return _NOT_SURE in answer


def group_answer(group: str, belongs: bool) -> str:
    """The answer to whether a thing is of a group."""
    name = with_article(group)
    return f"Yes, it is {name}." if belongs else f"No, it is not {name}."


def colour_answer(colour: str) -> str:
    """The answer to which colour a thing is."""
    return f"It is mostly {colour}."


def medium_answer(is_photo: bool) -> str:
    """The answer to whether a picture is a drawing or a photograph."""
    return f"It is a {'photograph' if is_photo else 'drawing'}."
