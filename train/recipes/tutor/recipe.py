"""Recipe of the `tutor` adapter: any question is answered in one plain sentence, and a short question is asked back.

The lessons to learn from are the frozen base's own, kept where they follow the rule (`rule.py`), so that the adapter
learns a manner of conversation and no facts; answers to small talk are written by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapter.base.template import Message
from train.evaluate.answerer import Answerer, Conversation
from train.evaluate.intervals import Figure, share
from train.input.history import with_unseen_history
from train.recipes.recipe import MeasuredSets, Recipe, card_text
from train.recipes.sealed_sets import SEALED, SHARED, after_others, conversation_of, percent, some
from train.recipes.text_data import phrases, read_yaml
from train.recipes.tutor.rule import score_answer

_INSTRUCTION_FOR_BASE = (
    "Answer in one plain sentence of at most 25 words, without a list. Then ask exactly one short question back about "
    "the topic, which nobody has asked yet.\n\n"
)


def recipe(_: Any) -> Recipe:
    """The recipe."""
    sealed = (*SHARED, "sealed/tutor.yaml")
    return Recipe(
        card_text("tutor"), MeasuredSets(development, ("tutor/tutor.yaml",)), MeasuredSets(scores, sealed)
    )


def development_sets() -> tuple[list[Conversation], list[Conversation]]:
    """60 questions, and 30 conversations whose last turn is to be answered, that the recipe was developed on."""
    return _sets(read_yaml(Path(__file__).with_name("tutor.yaml"))["development"])


def sealed_sets() -> tuple[list[Conversation], list[Conversation]]:
    """100 questions of a student, and 50 conversations, the last turn of which is to be answered."""
    return _sets(read_yaml(SEALED / "tutor.yaml"))


def _sets(data: Any) -> tuple[list[Conversation], list[Conversation]]:
    questions = [conversation_of([question]) for question in phrases(data["questions"])]
    return questions, [conversation_of(texts) for texts in data["conversations"]]


def development(answerer: Answerer) -> dict[str, Figure]:
    """Shares, in percent, of answers by the rule: to questions, late in lessons, and after other talk."""
    questions, conversations = development_sets()
    return {
        f"answer and question, {where}, %": share(_by_the_rule(answerer, given))
        for where, given in (
            ("questions", questions),
            ("in conversations", conversations),
            ("questions after other talk", with_unseen_history(questions)),
        )
    }


def scores(answerer: Answerer) -> dict[str, Figure]:
    """Shares of answers by the rule: to first questions, late in conversations, after other adapters."""
    questions, conversations = sealed_sets()
    late = after_others(answerer.base, "tutor", some(questions))
    return {
        **percent("answer and question, first questions", _by_the_rule(answerer, questions)),
        **percent("answer and question, in conversations", _by_the_rule(answerer, conversations)),
        **percent("answer and question, after other adapters", _by_the_rule(answerer, late)),
    }


def _by_the_rule(answerer: Answerer, given: list[Conversation]) -> list[bool]:
    answers = answerer.generate([*map(_told, given)] if answerer.adapter is None else given)
    return [score_answer(text, conversation) for text, conversation in zip(answers, given, strict=True)]


def _told(conversation: Conversation) -> Conversation:
    """The conversation with the manner in words, for the bare base."""
    return (*conversation[:-1], Message("user", _INSTRUCTION_FOR_BASE + conversation[-1].text))
