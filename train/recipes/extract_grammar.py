"""Small phrase grammar of the `extract` recipe: turns clause patterns and a record into text. Knows no phrases.

Pattern syntax: `[a|b|]` picks one alternative (may nest), `{slot}` prints a form of a field or of the context,
`<...>` is kept only if every field in it is still to be told (no nesting), `*` is where loose fragments go.
A slot is "form field" ("on date"), or "field" alone.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache

_SLOT = re.compile(r"\{([^{}]+)\}")
_OPTIONAL = re.compile(r"<([^<>]*)>")
_CHOICE = re.compile(r"\[([^\[\]]*)\]")
FIELDS = {
    "person": ("name", "role", "company", "city", "email", "phone"),
    "meeting": ("topic", "with", "date", "time", "place"),
    "order": ("item", "quantity", "price", "customer", "date"),
}
_ALL_FIELDS = frozenset(name for names in FIELDS.values() for name in names)


@dataclass(frozen=True)
class Phrasebook:
    """Every phrase one split may use for one record type. `labels` maps a field to its labels in lists."""

    heads: tuple[str, ...]
    fragments: dict[str, tuple[str, ...]]
    followups: tuple[str, ...]
    notes: dict[str, tuple[str, ...]]
    note_heads: tuple[str, ...]
    labels: dict[str, tuple[str, ...]]
    distractors: tuple[str, ...]


@dataclass
class Record:
    """Fields of one record: `values` as the answer holds them, `forms` maps every slot to the text it prints."""

    kind: str
    values: dict[str, str | int]
    forms: dict[str, str] = field(default_factory=dict)


@cache
def slot_fields(slot: str) -> frozenset[str]:
    """The fields that a slot tells: none for a context slot such as a pronoun."""
    if slot == "q item":
        return frozenset({"item", "quantity"})
    name = slot.split()[-1]
    return frozenset({name}) & _ALL_FIELDS


@lru_cache(maxsize=20_000)
def told(pattern: str) -> frozenset[str]:
    """All the fields that a resolved pattern tells, optional ones included."""
    return frozenset().union(*(slot_fields(slot) for slot in _SLOT.findall(pattern)))


@lru_cache(maxsize=20_000)
def needed(pattern: str) -> frozenset[str]:
    """The fields that a resolved pattern cannot do without."""
    return told(_OPTIONAL.sub("", pattern))


def choose(pattern: str, rng: random.Random) -> str:
    """Resolves every `[a|b]` of a pattern, innermost first."""
    while "[" in pattern:
        pattern = _CHOICE.sub(lambda match: rng.choice(match.group(1).split("|")), pattern)
    return pattern


@cache
def uncounted(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """The same patterns for an order that gives no quantity."""
    return tuple(pattern.replace("{q item}", "{some item}") for pattern in patterns)


def draw(patterns: Sequence[str], left: set[str], rng: random.Random, tells: bool = False) -> str:
    """A resolved pattern (slots unfilled) that needs only fields in `left`, and what it tells is taken from `left`.

    With `tells`, one that tells at least one field. The patterns must hold one that fits: it is looked for at random.
    """
    while True:
        pattern = choose(rng.choice(patterns), rng)
        needs = needed(pattern)
        if needs <= left and (needs or not tells):
            break
    left -= needs

    def optional(match: re.Match[str]) -> str:
        fields = told(match.group(1))
        if not fields <= left or rng.random() > 0.8:
            return ""
        left.difference_update(fields)
        return match.group(1)

    return _tidy(_OPTIONAL.sub(optional, pattern))


def _tidy(frame: str) -> str:
    """One space where parts left two, and a capital after each end mark within a frame."""
    frame = re.sub(r" {2,}", " ", frame).strip()
    frame = re.sub(r"([.?!] )([a-z])", lambda match: match.group(1) + match.group(2).upper(), frame)
    return re.sub(r"([.?!] \{)(he|his)\}", lambda match: match.group(1) + match.group(2).capitalize() + "}", frame)


def fill(text: str, forms: dict[str, str]) -> str:
    """Prints the slots of a frame."""
    return _SLOT.sub(lambda match: forms[match.group(1)], text)


def capital(text: str) -> str:
    """First letter in upper case; the rest as it is."""
    return text[:1].upper() + text[1:]


def prose(book: Phrasebook, record: Record, rng: random.Random) -> list[str]:
    """Sentence frames (slots unfilled, end marks included) that tell each field of the record exactly once."""
    left = set(record.values)
    sentence = draw(book.heads if "quantity" in left else uncounted(book.heads), left, rng)
    if "*" in sentence:
        loose = sorted(name for name in left if name in book.fragments)
        rng.shuffle(loose)
        parts = []
        for name in loose[: rng.choice((len(loose), len(loose), 1))]:
            if name in left:
                parts.append(draw(book.fragments[name], left, rng))
        sentence = sentence.replace("*", "".join(part if part[0] in " ,;" else " " + part for part in parts))
    sentences = [sentence]
    while left:
        sentences.append(draw(book.followups, left, rng, tells=True))
    return sentences


def note(book: Phrasebook, record: Record, rng: random.Random, separator: str) -> str:
    """A terse note: a head where the type needs one, then the fields in almost any order, no sentences."""
    left = set(record.values)
    counted = "quantity" in left
    head = draw(book.note_heads, left, rng)
    order = list(FIELDS[record.kind])
    if rng.random() < 0.6:
        rng.shuffle(order)
    parts = []
    for name in order:
        if name in left:
            parts.append(draw(book.notes[name] if counted else uncounted(book.notes[name]), left, rng))
    if head and rng.random() < 0.4 and not head.endswith(":"):
        return separator.join([head, *parts])
    return (head + " " if head else "") + separator.join(parts)


def block(book: Phrasebook, record: Record, rng: random.Random, title: str) -> str:
    """A labelled list, one field a line or separated by commas."""
    order = [name for name in FIELDS[record.kind] if name in record.values]
    if rng.random() < 0.5:
        rng.shuffle(order)
    colon = rng.choice((": ", ": ", " - ", "="))
    lines = [rng.choice(book.labels[name]) + colon + "{raw " + name + "}" for name in order]
    joined = rng.choice(("\n", "\n", ", ", "; ")).join(lines)
    return f"{title}\n{joined}" if title else joined
