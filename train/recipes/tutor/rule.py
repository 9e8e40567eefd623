"""The form of a tutor's answer: one plain sentence, and one short question back."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from train.evaluate.answerer import Conversation
from train.recipes.sealed_sets import loops
from train.recipes.text_data import read_yaml, words

_MAX_SENTENCE, _MAX_QUESTION = 25, 20  # words
_PARTS = re.compile(r"([^\n]+?[.!]) ([^.!?\n]+\?)")
# An end of a sentence within the first: a tutor gives one. Initials and numbers such as 3.5 are none.
_INNER_END = re.compile(r"[.!?]\s+(?=\S)(?<!\b[A-Z]\.\s)(?<!\b(?:Dr|Mr|St)\.\s)(?<!\b(?:Mrs|etc)\.\s)")
_LIST_MARK = re.compile(r"(?:[-*\u2022#>]|\d+[.)])\s")
_PLURAL = re.compile(r"(?<!s)s$")
_SUFFIX = re.compile(r"(?:ing|edly|ed|ie|ier|ly|er|y|e)$")


def score_answer(text: str, conversation: Conversation) -> bool:
    """True for a sentence of at most 25 words and a question of at most 20 that belongs to the topic, is new, and
    does not loop.

    It belongs to the topic if it shares a content word of at least four letters with the user's last message or with
    the sentence. It is new if no earlier turn asks it.
    """
    match = _PARTS.fullmatch(text.strip())
    if match is None or _INNER_END.search(match[1]) or _LIST_MARK.match(match[1]):
        return False
    sentence, question = match.groups()
    earlier = {_bare(part) for m in conversation for part in re.findall(r"[^.!?\n]+", m.text)}
    return (
        2 <= len(sentence.split()) <= _MAX_SENTENCE
        and 3 <= len(question.split()) <= _MAX_QUESTION
        and bool(content_words(question) & content_words(f"{conversation[-1].text} {sentence}"))
        and _bare(question) not in earlier
        and not loops(sentence)
        and not loops(question)
    )


def content_words(text: str) -> set[str]:
    """Stems of the words of at least four letters that say what a text is about."""
    return {_stem(word) for word in re.findall(r"[^\W\d_]{4,}", text.lower()) if word not in _function_words()}


def _stem(word: str) -> str:
    """Without its ending, so that plant, plants and planting are the same; at least three letters stay."""
    singular = _PLURAL.sub("", word)
    stem = _SUFFIX.sub("", singular)
    return stem if len(stem) >= 3 else singular


def _bare(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


@cache
def _function_words() -> frozenset[str]:
    return frozenset(words(read_yaml(Path(__file__).with_name("tutor.yaml"))["function_words"]))
