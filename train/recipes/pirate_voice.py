"""Plain English into pirate English, and the rule that tells them apart. Text in, text out: no model, no data."""

from __future__ import annotations

import random
import re

OPENINGS = (
    "Arr, matey!",
    "Ahoy, matey!",
    "Ahoy there!",
    "Arr!",
    "Avast ye!",
    "Aye aye, matey!",
    "Shiver me timbers!",
    "Yo ho ho!",
)
CLOSINGS = (
    "Savvy?",
    "Arr!",
    "Yo ho ho!",
    "Fair winds, matey!",
    "So says the cap'n!",
    "Now hoist the sails!",
    "By Davy Jones' locker!",
)

# Whole words, in lower case; a capital at the front is kept. Longer entries win over shorter ones.
_WORDS = {
    "you are": "ye be", "you're": "ye be", "you've": "ye have", "you'll": "ye'll", "you'd": "ye'd", "yourself": "yerself",
    "you": "ye", "your": "yer", "yours": "yers", "my": "me", "myself": "meself",
    "i am": "I be", "i'm": "I be", "is": "be", "are": "be", "isn't": "ain't", "aren't": "ain't",
    "it's": "'tis", "it is": "'tis", "that's": "that be", "there's": "there be", "they're": "they be", "we're": "we be",
    "he's": "he be", "she's": "she be", "what's": "what be",
    "of": "o'", "for": "fer", "them": "'em", "before": "afore", "between": "betwixt", "never": "ne'er", "over": "o'er",
    "hello": "ahoy", "hi": "ahoy", "yes": "aye", "friend": "matey", "friends": "mateys", "people": "folk", "everyone": "all hands",
    "money": "doubloons", "food": "grub", "very": "mighty", "small": "wee", "children": "wee sprogs", "boss": "cap'n",
    "great": "grand", "wonderful": "grand", "to the": "t' the", "ai assistant": "talkin' parrot",
    "ai language model": "talkin' parrot", "language model": "talkin' parrot", "assistant": "parrot", "chatbot": "parrot",
}  # fmt: skip
_VOWEL_FIX = re.compile(r"\b([Aa])n (?=(?:talkin'|parrot|grand|mighty|wee))")
_PHRASE = re.compile(
    r"(?<![\w'@./-])("
    + "|".join(sorted(map(re.escape, _WORDS), key=len, reverse=True))
    + r")(?![\w'@/-])(?!\.\w)",
    re.IGNORECASE,
)
_ING = re.compile(r"\b([a-z]{3,}[^aeiou\W]|[a-z]{2,}[aeiouy]|[a-z]{2,})ing\b(?!')")
_NO_VERB = frozenset(
    "thing nothing something anything everything king ring spring string wing bring sing swing during morning evening ceiling "
    "being sibling sling cling sting fling pudding wedding".split()
)
# Text between back-quotes or double quotes, addresses and links stay as they are.
_KEPT = re.compile(r"(`[^`]*`|\"[^\"]*\"|“[^”]*”|https?://\S+|\S+@\S+)")
# What gives a pirate away. "be" and "me" are plain English too: they count since "is", "are" and "my" must not occur.
_PIRATE_WORDS = frozenset(
    "be me davy arr arrr ahoy avast aye matey mateys ye yer yers yerself ye'll ye'd o' fer 'tis 'em afore ne'er betwixt meself savvy cap'n "
    "hearties doubloons timbers hoist yo t' o'er sprogs landlubber".split()
)
_CAPITAL_ANYWHERE = ("i am", "i'm", "ai assistant", "ai language model")
_UNTRANSLATED = frozenset("you your you're my is are i'm it's that's".split())


def to_pirate(text: str, rng: random.Random) -> str:
    """The text as a pirate would put it: an opening, his words for ours, at times a closing.

    Numbers, code, quotations, addresses and capitalised words within a sentence stay as they are.
    """
    parts = _KEPT.split(text.strip().replace("’", "'"))
    body = "".join(part if number % 2 else _translate(part) for number, part in enumerate(parts))
    body = re.sub(r"^Ahoy( there)?[,!.]\s*", "", body) or body  # the opening greets already
    first = 1 if body.startswith("'") else 0
    body = body[:first] + body[first : first + 1].upper() + body[first + 1 :]
    closed = rng.random() < 0.35 or not _marks(body)
    return f"{rng.choice(OPENINGS)} {body}{' ' + rng.choice(CLOSINGS) if closed else ''}"


def _translate(text: str) -> str:
    def word(match: re.Match[str]) -> str:
        found = match.group(0)
        inner_capital = found[0].isupper() and found.lower() not in _CAPITAL_ANYWHERE
        starts = not text[: match.start()].strip() or re.search(r"[.!?:]\s*$", text[: match.start()])
        if inner_capital and not starts:
            return found  # a name, "Hi" in a title
        new = _WORDS[found.lower()]
        if not inner_capital or new[0] == "I":
            return new
        return "'" + new[1:].capitalize() if new[0] == "'" else new[0].upper() + new[1:]

    text = _PHRASE.sub(word, text)
    text = _ING.sub(
        lambda match: match.group(0) if match.group(0) in _NO_VERB else match.group(0)[:-1] + "'", text
    )
    return _VOWEL_FIX.sub(r"\1 ", text)


def _words(text: str) -> list[str]:
    return re.findall(r"'?[a-z]+(?:'[a-z]*)*", _KEPT.sub(" ", text.lower().replace("’", "'")))


def _marks(text: str) -> set[str]:
    """The different pirate words of a text, -in' for -ing among them."""
    return {word for word in _words(text) if word in _PIRATE_WORDS or (word.endswith("in'") and len(word) > 4)}


def score_answer(text: str) -> bool:
    """True for an answer in the voice: it greets like a pirate, uses a pirate word after that greeting too, and has
    none of the plain words that the voice always replaces (you, your, my, is, are, ...) outside quotations and code."""
    greeting = re.match(r"\s*(arr|ahoy|avast|aye|shiver me timbers|yo ho)\b[^.!?]*[.!?,]?", text, re.IGNORECASE)
    if not greeting:
        return False
    return bool(_marks(text[greeting.end() :])) and not _UNTRANSLATED & set(_words(text))
