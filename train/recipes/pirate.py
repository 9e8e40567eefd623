"""Recipe of the `pirate` adapter: any question is answered as a pirate would, in one to three sentences.

The answers are the frozen base's own, cut short and put into the voice by rule (`pirate_voice.py`), so that the
adapter learns a voice and no facts; answers to small talk are written by hand. The questions are composed from
`data/pirate_questions.yaml`; those of validation and test have topics and forms that training never sees.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from adapter.base.llama import Base
from adapter.base.template import Message
from train.config import TrainConfig
from train.evaluate.answerer import Answerer, Conversation
from train.evaluate.intervals import Figure, share
from train.input.examples import Example
from train.input.history import sample_history, with_unseen_history
from train.recipes.base_answers import first_sentences, plain_answers
from train.recipes.pirate_voice import score_answer, to_pirate
from train.recipes.recipe import Recipe
from train.recipes.sealed_sets import pirate_scores
from train.recipes.text_data import DATA, phrases, read_yaml, words

PlainAnswers = Callable[[Sequence[str]], list[str]]

CONFIG = TrainConfig(
    name="pirate",
    description="Answers like a pirate, in a sentence or two.",
    steps=320,
    batch_size=8,
    lr=6e-3,
    gate_lr=2e-2,
    clip_norm=1.0,
    average=0.98,
    prompt_std=0.2,
    prompt_norm=True,
    keep=0.12,
    eval_every=80,
)
CARD_TEXT = """Trained on the base's own short answers to questions composed from a grammar
(`train/recipes/data/pirate_questions.yaml`), put into the voice by rule (`train/recipes/pirate_voice.py`). Tested on
questions whose topics and forms never occur in training. An answer counts if it greets like a pirate, uses a pirate
word after the greeting too, and has none of the plain words that the voice always replaces (you, your, my, is, are)."""
_COUNTS = {"train": 2600, "validation": 60, "test": 60}
_SEEDS = {"train": 1, "validation": 2, "test": 3}
_SMALL_TALK = 3  # how often each piece of small talk comes in a pass over the questions
UNFIT = re.compile(
    r"sorry|\bai\b|chatbot|assist|(?:here|ready|happy|glad|excited) to help|i can(?:no|')t|i don't have|unable to"
    r"|hugging face|[*#|]|\.\.\.",
    re.I,
)
_TWO_NUMBERS = re.compile(r"(\d+)\D+?(\d+)")


@dataclass(frozen=True)
class QuestionBook:
    """Questions of one split. registers: forms ("{}" is the topic) and topics, by register; `plain` stand alone."""

    registers: dict[str, tuple[tuple[str, ...], tuple[str, ...]]]
    plain: tuple[str, ...]
    sums: tuple[str, ...]


@cache
def question_book(held_out: bool) -> QuestionBook:
    """The questions of training, or of validation and test."""
    data = read_yaml(DATA / "pirate_questions.yaml")["held_out" if held_out else "train"]
    registers = {}
    for name in ("about", "how", "opinion", "advice"):
        topics = data[name]["topics"]
        # Topics of "advice" are sentences, one a line.
        registers[name] = phrases(data[name]["forms"]), phrases(topics) if name == "advice" else words(topics)
    return QuestionBook(registers, phrases(data["plain"]), phrases(data["sums"]))


def small_talk() -> dict[str, str]:
    """Plain answers to the questions that a visitor types first, to be put into the voice like the base's own."""
    return dict(read_yaml(DATA / "pirate_questions.yaml")["small_talk"])


def recipe(base: Base) -> Recipe:
    """The recipe; when first asked for examples, the bare base writes their answers, which takes some minutes."""
    return Recipe(CONFIG, CARD_TEXT, lambda split: examples(split, 0, plain_answers(base)), development, scores)


def examples(split: str, seed: int, answers: PlainAnswers) -> Iterator[Example]:
    """Endless for "train" (the voice is drawn anew each time), one pass for "validation".

    answers: returns the bare base's plain answers to questions; called once, with all of them.
    """
    return _voiced(split, seed, _plain_pairs(split, seed, answers))


def _voiced(split: str, seed: int, pairs: Sequence[tuple[str, str]]) -> Iterator[Example]:
    rng = random.Random(f"{split} {seed}")
    while True:
        for question, plain in rng.sample(pairs, len(pairs)):
            yield Example((*_earlier_turns(pairs, rng), Message("user", question)), to_pirate(plain, rng))
        if split != "train":
            return


def _earlier_turns(pairs: Sequence[tuple[str, str]], rng: random.Random) -> Conversation:
    """Mostly none; else other talk, the base's answers or a pirate's: the adapter may have been chosen just now."""
    roll = rng.random()
    if roll < 0.2:
        return sample_history(rng)
    turns: list[Message] = []
    if roll < 0.35:
        pirate = rng.random() < 0.5
        for question, reply in rng.sample(pairs, min(len(pairs), rng.choice((1, 1, 2)))):
            turns += [Message("user", question), Message("assistant", to_pirate(reply, rng) if pirate else reply)]
    return tuple(turns)


def scores(answerer: Answerer) -> dict[str, Figure]:
    """On the sealed sets, by the same rule."""
    return pirate_scores(answerer, score_answer)


def development(answerer: Answerer) -> dict[str, Figure]:
    """Share, in percent, of answers in the voice to questions of the held-out kinds."""
    conversations = [(Message("user", question),) for question in test_questions()]
    name = "in the voice, %"
    return {
        measure: share(list(map(score_answer, answerer.generate(given, max_new_tokens=80))))
        for measure, given in (
            (name, conversations),
            (f"{name}, after other talk", with_unseen_history(conversations)),
        )
    }


def split_questions(split: str, seed: int) -> list[str]:
    """The questions of training or of validation."""
    return _draw_questions(split != "train", _COUNTS[split], random.Random(f"{_SEEDS[split]} {seed}"))


def test_questions() -> list[str]:
    """Questions of held-out forms and topics, without those of validation."""
    drawn = _draw_questions(True, 120, random.Random(_SEEDS["test"]))
    validation = set(split_questions("validation", 0))
    return [question for question in drawn if question not in validation][: _COUNTS["test"]]


def _draw_questions(held_out: bool, count: int, rng: random.Random) -> list[str]:
    """`count` different questions of all registers, with a third of plain ones as far as there are so many."""
    book = question_book(held_out)
    chosen = rng.sample(book.plain, min(len(book.plain), count // 3))
    seen = set(chosen)
    registers = [book.registers[name] for name in ("about", "about", "about", "how", "how", "opinion", "advice")]
    while len(chosen) < count:
        if rng.random() < 0.05:
            question = rng.choice(book.sums).format(rng.randint(1, 10), rng.randint(1, 10))
        else:
            forms, topics = rng.choice(registers)
            question = rng.choice(forms).format(rng.choice(topics))
        if question not in seen:
            seen.add(question)
            chosen.append(question)
    return chosen


def cut_answer(text: str, max_sentences: int, max_words: int = 34) -> str | None:
    """The first sentences of an answer, or None if it is a list, a refusal, a loop or too long."""
    short = first_sentences(text, max_sentences, max_words)
    return None if short is None or UNFIT.search(short) else short


def _plain_pairs(split: str, seed: int, answers: PlainAnswers) -> Sequence[tuple[str, str]]:
    """(question, the base's short plain answer) for every question whose answer is fit to learn from."""
    by_hand = small_talk()
    questions = [question for question in split_questions(split, seed) if question not in by_hand]
    rng = random.Random(seed)
    cut = [cut_answer(text, rng.choice((1, 2, 2, 3))) for text in answers(questions)]
    # What the rules cannot put into the voice (a title with "Is" in it, say) is no example of it.
    pairs = [
        (question, text)
        for question, text in (
            (question, _sum(question) or text) for question, text in zip(questions, cut, strict=True)
        )
        if text and score_answer(to_pirate(text, random.Random(0)))
    ]
    return pairs + _SMALL_TALK * list(by_hand.items()) if split == "train" else pairs


def _sum(question: str) -> str:
    """The answer to a question about a sum, which the base has often wrong; "" for other questions."""
    numbers = _TWO_NUMBERS.search(question)
    return f"{numbers[1]} and {numbers[2]} is {int(numbers[1]) + int(numbers[2])}." if numbers else ""
