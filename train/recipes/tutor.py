"""Recipe of the `tutor` adapter: any question is answered in one plain sentence, and a short question is asked back.

The lessons to learn from are the frozen base's own (`tutor_lessons.py`), kept where they follow the rule
(`tutor_rule.py`), so that the adapter learns a manner of conversation and no facts; answers to small talk are written
by hand. Questions of training are the pirate's; those of the development set are written for it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from adapter.base.llama import Base
from adapter.base.template import Message
from train.config import TrainConfig
from train.evaluate.answerer import Answerer, Conversation
from train.evaluate.intervals import Figure, share
from train.input.examples import Example
from train.input.history import sample_history, with_unseen_history
from train.recipes.base_answers import conversation_of
from train.recipes.pirate import split_questions
from train.recipes.recipe import Recipe
from train.recipes.sealed_sets import tutor_scores
from train.recipes.text_data import DATA, phrases, read_yaml
from train.recipes.tutor_lessons import Writer, write_lessons
from train.recipes.tutor_rule import score_answer

CONFIG = TrainConfig(
    name="tutor",
    description="Answers in one plain sentence and asks a question back.",
    steps=600,
    batch_size=8,
    lr=8e-3,
    gate_lr=3e-2,
    clip_norm=1.0,
    average=0.98,
    prompt_length=16,
    prompt_std=0.2,
    prompt_norm=True,
    keep=0.06,
    eval_every=100,
)
CARD_TEXT = """Trained on lessons that the base itself has written: its plain answer to a question in one sentence, and
the question that it asks back behind an opening such as "Why do you think"; then replies of a student, and so on
(`train/recipes/tutor_lessons.py`, `train/recipes/data/tutor.yaml`). Lessons that break the rule are left out. An answer counts if it is one sentence of at most
25 words and one question of at most 20, the question shares a content word with the sentence or with the student's
message, nobody in the conversation has asked it before, and nothing loops. The bare base is told in words to answer so;
the adapter gets the conversation alone."""
_TURNS = 3  # of a lesson, at most
_SMALL_TALK = 3  # how often each piece of small talk comes in a pass over the lessons
_INSTRUCTION_FOR_BASE = (
    "Answer in one plain sentence of at most 25 words, without a list. Then ask exactly one short question back about "
    "the topic, which nobody has asked yet.\n\n"
)


def recipe(base: Base) -> Recipe:
    """The recipe; when first asked for examples, the bare base writes the lessons, which takes some minutes."""
    return Recipe(CONFIG, CARD_TEXT, lambda split: examples(split, 0, Writer.of(base)), development, scores)


def examples(split: str, seed: int, writer: Writer) -> Iterator[Example]:
    """Endless for "train", one pass for "validation"."""
    by_hand = [(Message("user", q), Message("assistant", a)) for q, a in small_talk().items()]
    known = set(small_talk())
    questions = [question for question in split_questions(split, seed) if question not in known]
    lessons = write_lessons(questions, _TURNS, writer, seed)
    if split == "train":
        lessons += _SMALL_TALK * by_hand
    rng = random.Random(f"{split} {seed}")
    while True:
        for lesson in rng.sample(lessons, len(lessons)):
            yield _example(lesson, rng)
        if split != "train":
            return


def _example(lesson: Conversation, rng: random.Random) -> Example:
    """A lesson's beginning, alone or after other talk, as the adapter may have been chosen just now; or all of it.

    In a later turn the manner can be read off the earlier ones: most of what is to be learnt is in the first.
    """
    roll = rng.random()
    if roll < 0.3:
        return Example((*sample_history(rng), lesson[0]), lesson[1].text)
    if roll < 0.65:
        return Example((lesson[0],), lesson[1].text)
    return Example(lesson[:-1], lesson[-1].text, all_turns=True)


def small_talk() -> dict[str, str]:
    """Answers in the manner to what is no question of a student."""
    return dict(read_yaml(DATA / "tutor.yaml")["small_talk"])


def scores(answerer: Answerer) -> dict[str, Figure]:
    """On the sealed sets, by the same rule."""
    return tutor_scores(answerer, score_answer, _told)


def development(answerer: Answerer) -> dict[str, Figure]:
    """Shares, in percent, of answers by the rule: to questions, late in lessons, and after other talk."""
    data = read_yaml(DATA / "tutor.yaml")["development"]
    questions: list[Conversation] = [(Message("user", question),) for question in phrases(data["questions"])]
    figures = {}
    for where, given in (
        ("questions", questions),
        ("in conversations", [conversation_of(texts) for texts in data["conversations"]]),
        ("questions after other talk", with_unseen_history(questions)),
    ):
        answers = answerer.generate([_told(c) for c in given] if answerer.adapter is None else given)
        right = [score_answer(text, conversation) for text, conversation in zip(answers, given, strict=True)]
        figures[f"answer and question, {where}, %"] = share(right)
    return figures


def _told(conversation: Conversation) -> Conversation:
    """The conversation with the manner in words, for the bare base."""
    return (*conversation[:-1], Message("user", _INSTRUCTION_FOR_BASE + conversation[-1].text))
