"""Phrase grammar of the `extract` recipe: phrase books, and how a pattern and a record become text.

Pattern syntax: `[a|b|]` picks one alternative (may nest), `{slot}` prints a form of a field or of the context,
`<...>` is kept only if every field in it still has to be stated (no nesting), `*` is where loose fragments go.
A slot is "form field" ("on date"), or "field" alone. In whole messages `~` is where a distractor may stand, and `\n`
is a line break. The phrases are in `data/`: all files `extract_train*.yaml` make one book, `extract_validation.yaml`
is for the held-out loss and `extract_held_out.yaml` for development.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

from train.recipes.text_data import DATA, phrases, read_yaml

FIELDS = {
    "person": ("name", "role", "company", "city", "email", "phone"),
    "meeting": ("topic", "with", "date", "time", "place"),
    "order": ("item", "quantity", "price", "customer", "date"),
}
_ALL_FIELDS = frozenset(name for names in FIELDS.values() for name in names)
_SLOT = re.compile(r"\{([^{}]+)\}")
_OPTIONAL = re.compile(r"<([^<>]*)>")
_CHOICE = re.compile(r"\[([^\[\]]*)\]")
# Patterns whose words tell a field from what only looks like one get no noise.
_CONTEXT = re.compile(r"\{(other|firm|town)| not |\bnot\b|never|instead")
_REPLACED, _DROPPED, _ADDED = 0.12, 0.06, 0.06
_KEPT, _UNCOUNTED = 0.6, 0.18  # shares of optional parts of whole messages, and of orders that give no quantity

Phrases = tuple[str, ...]


@dataclass(frozen=True)
class Phrasebook:
    """All phrases that one split may use for one type of record.

    heads: first sentences; fragments, notes, labels: by field. followups: sentences that state further fields.
    distractors: sentences that state none, though they may look like it. messages: whole messages of one kind, which
    decide the fields of their record; drills: short ones for rare values.
    """

    heads: Phrases
    fragments: Mapping[str, Phrases]
    followups: Phrases
    notes: Mapping[str, Phrases]
    note_heads: Phrases
    labels: Mapping[str, Phrases]
    distractors: Phrases
    messages: Phrases
    drills: Phrases


@dataclass(frozen=True)
class SplitPhrases:
    """All phrases of one split. books: by type of record, "self" for people who write about themselves.

    earlier_share, instruction_share, note_share: the shares of examples late in a conversation, under an instruction,
    and in notes.
    """

    books: Mapping[str, Phrasebook]
    openings: Phrases
    closings: Phrases
    instructions: Phrases
    separators: Phrases
    block_titles: Mapping[str, Phrases]
    signature_bodies: Phrases
    signoffs: Phrases
    chat: tuple[tuple[str, str], ...]  # (question, answer) of earlier turns
    earlier_share: float = 0.2
    instruction_share: float = 0.28
    note_share: float = 0.14


@dataclass
class Facts:
    """The fields of one record: `values` as the answer has them, `forms` maps each slot to the text it prints."""

    kind: str
    values: dict[str, str | int]
    forms: dict[str, str] = field(default_factory=dict)

    def lower(self) -> None:
        """Puts all values and forms in lower case."""
        self.values = {
            name: value.lower() if isinstance(value, str) else value for name, value in self.values.items()
        }
        self.forms = {slot: form.lower() for slot, form in self.forms.items()}


def _merged(left: Any, right: Any) -> Any:
    """Two phrase books in one: mappings are merged by key, lists of phrases are joined."""
    if isinstance(left, Mapping):
        return {key: _merged(left[key], right[key]) if key in left and key in right else left.get(key, right.get(key))
                for key in (*left, *(key for key in right if key not in left))}  # fmt: skip
    if isinstance(left, float):
        return right
    return (*phrases(left), *phrases(right))


@cache
def split_phrases(split: str) -> SplitPhrases:
    """The phrases of "train", of "validation" (the held-out loss) or of "test" (development)."""
    pattern = {
        "train": "extract_train*.yaml",
        "validation": "extract_validation.yaml",
        "test": "extract_held_out.yaml",
    }
    data: Any = {}
    for path in sorted(DATA.glob(pattern[split])):
        data = _merged(data, read_yaml(path))
    asides = data.get("asides", {})

    def by_name(mapping: Mapping[str, Any]) -> dict[str, Phrases]:
        return {name: phrases(value) for name, value in mapping.items()}

    def whole(text: Any) -> Phrases:
        return tuple(line.replace("\\n", "\n") for line in phrases(text))

    books = {
        kind: Phrasebook(
            heads=phrases(book["heads"]),
            fragments=by_name(book.get("fragments", {})),
            followups=phrases(book["followups"]),
            notes=by_name(book.get("notes", {})),
            note_heads=phrases(book.get("note_heads", ())),
            labels=by_name(book.get("labels", {})),
            distractors=(
                *phrases(book["distractors"]),
                *phrases(asides.get("anywhere", ())),
                *phrases(asides.get(kind, ())),
            ),
            messages=whole(book.get("messages", ())),
            drills=whole(book.get("drills", ())),
        )
        for kind, book in data["books"].items()
    }
    lists = ("openings", "closings", "instructions", "separators", "signature_bodies", "signoffs")
    others: dict[str, Any] = {name: phrases(data.get(name, ())) for name in lists} | data.get("shares", {})
    return SplitPhrases(
        books=books,
        block_titles=by_name(data.get("block_titles", {})),
        chat=tuple(data["chat"].items()),
        **others,
    )


@cache
def slot_fields(slot: str) -> frozenset[str]:
    """The fields that a slot states: none for a context slot such as a pronoun."""
    if slot == "q item":
        return frozenset({"item", "quantity"})
    return frozenset({slot.split()[-1]}) & _ALL_FIELDS


def slots_of(frame: str) -> frozenset[str]:
    """The slots of a frame."""
    return frozenset(_SLOT.findall(frame))


@lru_cache(maxsize=20_000)
def stated_fields(pattern: str) -> frozenset[str]:
    """All fields that a resolved pattern states, optional ones included."""
    return frozenset().union(*(slot_fields(slot) for slot in _SLOT.findall(pattern)))


@lru_cache(maxsize=20_000)
def required_fields(pattern: str) -> frozenset[str]:
    """The fields that a resolved pattern cannot do without."""
    return stated_fields(_OPTIONAL.sub("", pattern))


def resolve_choices(pattern: str, rng: random.Random) -> str:
    """Resolves every `[a|b]` of a pattern, innermost first."""
    while "[" in pattern:
        pattern = _CHOICE.sub(lambda match: rng.choice(match.group(1).split("|")), pattern)
    return pattern


@cache
def without_quantity(patterns: Phrases) -> Phrases:
    """The same patterns for an order that gives no quantity."""
    return tuple(pattern.replace("{q item}", "{some item}") for pattern in patterns)


def draw_pattern(
    patterns: Sequence[str], remaining: set[str], rng: random.Random, must_state: bool = False
) -> str:
    """Returns a resolved pattern, slots unfilled, that needs only fields in `remaining`.

    The fields that it states are removed from `remaining`. must_state: it states at least one. One of `patterns`
    must fit: they are tried at random until one does.
    """
    while True:
        pattern = resolve_choices(rng.choice(patterns), rng)
        required = required_fields(pattern)
        if required <= remaining and (required or not must_state):
            break
    remaining -= required

    def optional(match: re.Match[str]) -> str:
        stated = stated_fields(match.group(1))
        if not stated <= remaining or rng.random() > 0.8:
            return ""
        remaining.difference_update(stated)
        return match.group(1)

    return _tidy(_OPTIONAL.sub(optional, pattern))


def _tidy(frame: str) -> str:
    """Joins double spaces and capitalises the word after each end mark within a frame."""
    frame = re.sub(r" {2,}", " ", frame).strip()
    frame = re.sub(r"([.?!] )([a-z])", lambda match: match.group(1) + match.group(2).upper(), frame)
    return re.sub(r"([.?!] \{)(he|his)\}", lambda match: match.group(1) + match.group(2).capitalize() + "}", frame)


def fill_slots(text: str, forms: Mapping[str, str]) -> str:
    """Prints the slots of a frame."""
    return _SLOT.sub(lambda match: forms[match.group(1)], text)


def capitalize_first(text: str) -> str:
    """The text with its first letter in upper case; the rest is unchanged."""
    return text[:1].upper() + text[1:]


def draw_message(messages: Sequence[str], distractors: Sequence[str], rng: random.Random) -> str:
    """A frame of a whole message: choices resolved, optional parts in or out, at most one distractor at a `~`."""
    frame = resolve_choices(rng.choice(messages), rng)
    frame = _OPTIONAL.sub(lambda match: match.group(1) if rng.random() < _KEPT else "", frame)
    if "{q item}" in frame and rng.random() < _UNCOUNTED:
        frame = frame.replace("{q item}", "{some item}")
    places = frame.count("~")
    chosen = rng.randrange(places) if places and rng.random() < 0.5 else -1
    parts = frame.split("~")
    text = parts[0]
    for place, part in enumerate(parts[1:]):
        distractor = resolve_choices(rng.choice(distractors), rng) if place == chosen else ""
        if distractor and not re.search(r"[.,:;!?\n] *$|^ *$", text):
            text = text.rstrip() + ". "
        if re.search(r"[.!?\n] *$|^ *$", text):
            distractor = capitalize_first(distractor)
        text += distractor
        # Nothing stands at the `~`: the space before it goes, or the one after it where a line begins.
        text = text if distractor else text.rstrip(" ")
        text += part if text.strip() and not text.endswith("\n") else part.lstrip(" ")
    return re.sub(r"[^\S\n]{2,}", " ", re.sub(r" *\n *", "\n", text)).strip()


def fill_sentences(frame: str, forms: Mapping[str, str]) -> str:
    """Prints the slots of a whole message; what begins a sentence gets a capital if the message itself does so."""
    capitals = not frame[:1].islower()
    parts: list[str] = []
    end = 0
    for match in _SLOT.finditer(frame):
        parts.append(frame[end : match.start()])
        form = forms[match.group(1)]
        before = frame[: match.start()]
        if (
            capitals
            and match.group(1) != "email"
            and (not before.strip() or re.search(r"[.!?][ \n]+$|\n$", before))
        ):
            form = capitalize_first(form)
        # "p.m." and "Inc." bring their own full stop.
        end = match.end() + (form.endswith(".") and re.match(r"\.(?!\.)", frame[match.end() :]) is not None)
        parts.append(form)
    return "".join(parts) + frame[end:]


_ABBREVIATIONS = {"please": "pls", "thanks": "thx", "you": "u", "tomorrow": "tmrw", "and": "&", "are": "r", "your": "ur",
                  "because": "cos", "with": "w/", "about": "abt", "see": "c", "okay": "k", "message": "msg",
                  "people": "ppl", "at": "@"}  # fmt: skip
_EMOJI = ("🙂", "👍", "🙏", "😊", "🎉", "😅", "☎️", "📦", ":)", ";-)", "xx", "!!", "...", "👌", "✅", "❤️")


def stylize(frame: str, rng: random.Random) -> str:
    """A whole message as a hurried writer types it: slips, small letters, missing marks, short forms, emoji."""
    roll = rng.random()
    slips, small, short, unmarked = roll < 0.5, 0.3 < roll < 0.85, 0.65 < roll < 0.9, 0.4 < roll < 0.8
    pieces = re.split(r"(\{[^{}]+\})", frame)
    for i in range(0, len(pieces), 2):  # the text between slots
        text = pieces[i]
        if slips:
            text = re.sub(r"[A-Za-z]{4,}", lambda match: _slipped_at_times(match.group(0), rng), text)
        if short:
            text = re.sub(r"\b[a-z]+\b", lambda match: _short(match.group(0), rng), text)
        if small:
            text = text.lower()
        if unmarked:
            text = re.sub(r"'(?=[a-z])", "", text) if rng.random() < 0.7 else text
            # A mark between two slots is what tells one from the other.
            text = re.sub(r"(?<=[a-z])[.!](?= [A-Za-z])", "", text) if rng.random() < 0.6 else text
            text = re.sub(r"(?<=[a-z]),(?= [a-z])", "", text)
        pieces[i] = text
    text = "".join(pieces)
    if rng.random() < 0.2:
        text += " " + rng.choice(_EMOJI)
    return text.strip()


def slipped(word: str, rng: random.Random) -> str:
    """The word, of four letters or more, with two letters swapped, one left out or one doubled."""
    at = rng.randrange(1, len(word) - 1)
    return rng.choice(
        (
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + word[at + 1 :],
            word[: at + 1] + word[at:],
        )
    )


def _slipped_at_times(word: str, rng: random.Random) -> str:
    return slipped(word, rng) if rng.random() < 0.09 else word


def _short(word: str, rng: random.Random) -> str:
    return _ABBREVIATIONS[word] if word in _ABBREVIATIONS and rng.random() < 0.4 else word


def prose(book: Phrasebook, record: Facts, rng: random.Random) -> list[str]:
    """Sentence frames, slots unfilled and end marks included, that state each field of the record exactly once."""
    remaining = set(record.values)
    sentence = draw_pattern(
        book.heads if "quantity" in remaining else without_quantity(book.heads), remaining, rng
    )
    if "*" in sentence:
        loose = sorted(name for name in remaining if name in book.fragments)
        rng.shuffle(loose)
        parts = []
        for name in loose[: rng.choice((len(loose), len(loose), 1))]:
            if name in remaining:
                parts.append(draw_pattern(book.fragments[name], remaining, rng))
        sentence = sentence.replace("*", "".join(part if part[0] in " ,;" else " " + part for part in parts))
    sentences = [sentence]
    while remaining:
        sentences.append(draw_pattern(book.followups, remaining, rng, must_state=True))
    return sentences


def note(book: Phrasebook, record: Facts, rng: random.Random, separator: str) -> str:
    """A terse note: a head where the type needs one, then the fields in almost any order, no sentences."""
    remaining = set(record.values)
    counted = "quantity" in remaining
    head = draw_pattern(book.note_heads, remaining, rng)
    order = list(FIELDS[record.kind])
    if rng.random() < 0.6:
        rng.shuffle(order)
    parts = []
    for name in order:
        if name in remaining:
            patterns = book.notes[name] if counted else without_quantity(book.notes[name])
            parts.append(draw_pattern(patterns, remaining, rng))
    if head and rng.random() < 0.4 and not head.endswith(":"):
        return separator.join([head, *parts])
    return (head + " " if head else "") + separator.join(parts)


def labelled_list(book: Phrasebook, record: Facts, rng: random.Random, title: str) -> str:
    """A labelled list, one field a line or separated by commas."""
    order = [name for name in FIELDS[record.kind] if name in record.values]
    if rng.random() < 0.5:
        rng.shuffle(order)
    colon = rng.choice((": ", ": ", " - ", "="))
    lines = [rng.choice(book.labels[name]) + colon + "{raw " + name + "}" for name in order]
    joined = rng.choice(("\n", "\n", ", ", "; ")).join(lines)
    return f"{title}\n{joined}" if title else joined


# Common words that would be a value where they stand: noise is none of these.
_VALUE_LIKE = frozenset(
    "agent artist author director doctor employee executive lawyer leader manager officer owner player police president "
    "professor reporter scientist season teacher worker one two three four five six seven eight nine ten hundred thousand "
    "million today tonight tomorrow yesterday morning evening afternoon day week month year spring summer fall march may "
    "mr mrs american democrat republican congress hospital school bank store office not never instead no former old new "
    "from at for with by to of on in".split()
)


@cache
def _common_words() -> Phrases:
    """Some thousand common English words."""
    from faker import Faker

    found = {word.lower() for word in Faker("en_US").get_words_list() if word.isalpha()}
    return tuple(sorted(found - _VALUE_LIKE))


def nonsense(rng: random.Random) -> str:
    """A sentence of unrelated words, at times with a number or a name."""
    chosen = rng.choices(_common_words(), k=rng.randint(3, 8))
    if rng.random() < 0.3:
        chosen[rng.randrange(len(chosen))] = rng.choice(("{n}", "{other}", "{other full}"))
    return " ".join(chosen) + rng.choice((".", ".", "!", "?"))


def add_noise(frame: str, rng: random.Random) -> str:
    """Replaces, drops or adds some words of a sentence frame; slots stay.

    This teaches the adapter to read past words that it never saw in such a sentence.
    """
    if _CONTEXT.search(frame):
        return frame
    noisy: list[str] = []
    for word in frame.split(" "):
        roll = rng.random()
        if not word.isalpha() or roll >= _REPLACED + _DROPPED + _ADDED:
            noisy.append(word)
        elif roll < _REPLACED:
            noisy.append(rng.choice(_common_words()))
        elif roll < _REPLACED + _ADDED:
            noisy += [word, rng.choice(_common_words())]
    return " ".join(noisy)
