"""Recipe of the `pirate` adapter: any question is answered as a pirate would, in one to three sentences.

The answers to learn from are the frozen base's own, cut short and put into the voice by rule, so that the adapter
learns a voice and no facts; answers to small talk are written by hand.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from train.evaluate.answerer import Answerer, Conversation
from train.evaluate.intervals import Figure, share
from train.input.history import with_unseen_history
from train.recipes.recipe import MeasuredSets, Recipe, card_text
from train.recipes.sealed_sets import SEALED, SHARED, after_others, conversation_of, percent, some
from train.recipes.text_data import phrases, read_yaml, words

_DATA = Path(__file__).with_name("pirate.yaml")
_GREETING = re.compile(r"\s*(arr|ahoy|avast|aye|shiver me timbers|yo ho)\b[^.!?]*[.!?,]?", re.IGNORECASE)
# Text between back-quotes or double quotes, addresses and links are nobody's voice.
_LITERAL = re.compile(r"(`[^`]*`|\"[^\"]*\"|“[^”]*”|https?://\S+|\S+@\S+)")


def recipe(_: Any) -> Recipe:
    """The recipe."""
    sealed = (*SHARED, "sealed/pirate_questions.yaml")
    return Recipe(
        card_text("pirate"), MeasuredSets(development, ("pirate/pirate.yaml",)), MeasuredSets(scores, sealed)
    )


def development_questions() -> list[Conversation]:
    """60 questions that the recipe was developed on."""
    return [conversation_of([question]) for question in phrases(read_yaml(_DATA)["development"])]


def sealed_questions() -> list[Conversation]:
    """300 questions of a visitor."""
    groups = read_yaml(SEALED / "pirate_questions.yaml").values()
    return [conversation_of([question]) for group in groups for question in phrases(group)]


def development(answerer: Answerer) -> dict[str, Figure]:
    """Share, in percent, of answers in the voice to questions of the held-out kinds."""
    questions = development_questions()
    name = "in the voice, %"
    return {
        name: share(_in_the_voice(answerer, questions)),
        f"{name}, after other talk": share(_in_the_voice(answerer, with_unseen_history(questions))),
    }


def scores(answerer: Answerer) -> dict[str, Figure]:
    """Shares of answers in the voice, to 300 questions and to 60 after other adapters' answers."""
    questions = sealed_questions()
    late = after_others(answerer.base, "pirate", some(questions))
    return {
        **percent("in the voice", _in_the_voice(answerer, questions)),
        **percent("in the voice, after other adapters", _in_the_voice(answerer, late)),
    }


def _in_the_voice(answerer: Answerer, conversations: list[Conversation]) -> list[bool]:
    return list(map(score_answer, answerer.generate(conversations, max_new_tokens=80)))


def score_answer(text: str) -> bool:
    """True for an answer in the voice: it greets like a pirate, uses a pirate word after that greeting too, and has
    none of the plain words that the voice always replaces (you, your, my, is, are, ...) outside quotations and code."""
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
    return frozenset(words(read_yaml(_DATA)[key]))


def _words_of(text: str) -> list[str]:
    return re.findall(r"'?[a-z]+(?:'[a-z]*)*", _LITERAL.sub(" ", text.lower().replace("’", "'")))
