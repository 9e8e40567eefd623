"""Recipe of the `pirate` adapter: any question is answered as a pirate would, in one to three sentences.

The answers to learn from are the frozen base's own, cut short and put into the voice by rule, so that the adapter
learns a voice and no facts; answers to small talk are written by hand.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from train.evaluate.answerer import Conversation
from train.recipes.recipe import Recipe, recipe_by_rule
from train.recipes.sealed_sets import SEALED, conversation_of, read_yaml

_DATA = Path(__file__).with_name("pirate.yaml")
_GREETING = re.compile(r"\s*(arr|ahoy|avast|aye|shiver me timbers|yo ho)\b[^.!?]*[.!?,]?", re.IGNORECASE)
# Text between back-quotes or double quotes, addresses and links are nobody's voice.
_LITERAL = re.compile(r"(`[^`]*`|\"[^\"]*\"|“[^”]*”|https?://\S+|\S+@\S+)")


def recipe(_: Any) -> Recipe:
    """The recipe."""
    return recipe_by_rule("pirate", lambda text, _: is_in_the_voice(text), sets, "pirate_questions.yaml", 80)


def sets(sealed: bool) -> dict[str, list[Conversation]]:
    """300 sealed questions of a visitor, or 60 that the recipe was developed on."""
    data = read_yaml(SEALED / "pirate_questions.yaml") if sealed else {"": read_yaml(_DATA)["development"]}
    return {
        "in the voice": [conversation_of(question) for group in data.values() for question in group.splitlines()]
    }


def is_in_the_voice(text: str) -> bool:
    """Whether an answer greets like a pirate, uses a pirate word after that greeting too, and has none of the plain
    words that the voice always replaces (you, your, my, is, are, ...) outside quotations and code.
    """
    greeting = _GREETING.match(text)
    if not greeting:
        return False
    after = any(
        word in _words("pirate_words") or (word.endswith("in'") and len(word) > 4)
        for word in _words_of(text[greeting.end() :])
    )
    return after and not _words("untranslated") & set(_words_of(text))


@cache
def _words(key: str) -> frozenset[str]:
    return frozenset(re.findall(r"[^,\s]+", read_yaml(_DATA)[key]))


def _words_of(text: str) -> list[str]:
    return re.findall(r"'?[a-z]+(?:'[a-z]*)*", _LITERAL.sub(" ", text.lower().replace("’", "'")))
