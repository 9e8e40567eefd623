"""Plain English into pirate English, and the rule that tells them apart. Knows text and `data/pirate_voice.yaml`."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from functools import cache

from train.recipes.text_data import DATA, phrases, read_yaml, words

_A_BEFORE_CONSONANT = re.compile(r"\b([Aa])n (?=(?:talkin'|parrot|grand|mighty|wee))")
_ING = re.compile(r"\b([a-z]{3,}[^aeiou\W]|[a-z]{2,}[aeiouy]|[a-z]{2,})ing\b(?!')")
# Text between back-quotes or double quotes, addresses and links stay as they are.
_LITERAL = re.compile(r"(`[^`]*`|\"[^\"]*\"|“[^”]*”|https?://\S+|\S+@\S+)")
# Of the answers end with a closing. At 0.35 the adapter left it out where the words before it need it.
_CLOSED = 0.95
_GREETING = re.compile(r"\s*(arr|ahoy|avast|aye|shiver me timbers|yo ho)\b[^.!?]*[.!?,]?", re.IGNORECASE)


@dataclass(frozen=True)
class Voice:
    """The words of the voice, as `data/pirate_voice.yaml` describes them. replaced: matches the keys of `words`."""

    openings: tuple[str, ...]
    closings: tuple[str, ...]
    words: dict[str, str]
    replaced: re.Pattern[str]
    capital_anywhere: frozenset[str]
    no_verbs: frozenset[str]
    pirate_words: frozenset[str]
    untranslated: frozenset[str]


@cache
def voice() -> Voice:
    """The words of the voice."""
    data = read_yaml(DATA / "pirate_voice.yaml")
    longest_first = sorted(map(re.escape, data["words"]), key=len, reverse=True)
    replaced = re.compile(rf"(?<![\w'@./-])({'|'.join(longest_first)})(?![\w'@/-])(?!\.\w)", re.IGNORECASE)
    sets = ("capital_anywhere", "no_verbs", "pirate_words", "untranslated")
    return Voice(
        openings=phrases(data["openings"]),
        closings=phrases(data["closings"]),
        words=data["words"],
        replaced=replaced,
        **{name: frozenset(words(data[name])) for name in sets},
    )


def to_pirate(text: str, rng: random.Random) -> str:
    """The text as a pirate would put it: an opening, his words for ours, at times a closing.

    Numbers, code, quotations, addresses and capitalised words within a sentence stay as they are.
    """
    parts = _LITERAL.split(text.strip().replace("’", "'"))
    body = "".join(part if number % 2 else _translate(part) for number, part in enumerate(parts))
    body = re.sub(r"^Ahoy( there)?[,!.]\s*", "", body) or body  # the opening greets already
    first = 1 if body.startswith("'") else 0
    body = body[:first] + body[first : first + 1].upper() + body[first + 1 :]
    closed = rng.random() < _CLOSED or not _uses_pirate_words(body)
    return f"{rng.choice(voice().openings)} {body}{' ' + rng.choice(voice().closings) if closed else ''}"


def score_answer(text: str) -> bool:
    """True for an answer in the voice: it greets like a pirate, uses a pirate word after that greeting too, and has
    none of the plain words that the voice always replaces (you, your, my, is, are, ...) outside quotations and code."""
    greeting = _GREETING.match(text)
    if not greeting:
        return False
    return _uses_pirate_words(text[greeting.end() :]) and not voice().untranslated & set(_words_of(text))


def _translate(text: str) -> str:
    def word(match: re.Match[str]) -> str:
        found = match.group(0)
        inner_capital = found[0].isupper() and found.lower() not in voice().capital_anywhere
        starts = not text[: match.start()].strip() or re.search(r"[.!?:]\s*$", text[: match.start()])
        if inner_capital and not starts:
            return found  # a name, "Hi" in a title
        new = voice().words[found.lower()]
        if not inner_capital or new[0] == "I":
            return new
        return "'" + new[1:].capitalize() if new[0] == "'" else new[0].upper() + new[1:]

    def verb(match: re.Match[str]) -> str:
        return match.group(0) if match.group(0) in voice().no_verbs else match.group(0)[:-1] + "'"

    return _A_BEFORE_CONSONANT.sub(r"\1 ", _ING.sub(verb, voice().replaced.sub(word, text)))


def _words_of(text: str) -> list[str]:
    return re.findall(r"'?[a-z]+(?:'[a-z]*)*", _LITERAL.sub(" ", text.lower().replace("’", "'")))


def _uses_pirate_words(text: str) -> bool:
    """Whether the text has a pirate word, -in' for -ing among them."""
    pirate_words = voice().pirate_words
    return any(word in pirate_words or (word.endswith("in'") and len(word) > 4) for word in _words_of(text))
