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
from train.input.history import with_unseen_history
from train.recipes.pirate_voice import score_answer, to_pirate
from train.recipes.recipe import Recipe
from train.recipes.sealed_sets import pirate_scores
from train.recipes.text_data import DATA, phrases, read_yaml, words

AnswerFunction = Callable[[list[Conversation]], list[str]]

CONFIG = TrainConfig(
    name="pirate",
    description="Answers like a pirate, in a sentence or two.",
    steps=150,
    batch_size=8,
    lr=6e-3,
    gate_lr=2e-2,
    prompt_std=0.2,
    prompt_norm=True,
    eval_every=50,
)
CARD_TEXT = """Trained on the base's own short answers to questions composed from a grammar
(`train/recipes/data/pirate_questions.yaml`), put into the voice by rule (`train/recipes/pirate_voice.py`). Tested on
questions whose topics and forms never occur in training. An answer counts if it greets like a pirate, uses a pirate
word after the greeting too, and has none of the plain words that the voice always replaces (you, your, my, is, are)."""
_COUNTS = {"train": 500, "validation": 60, "test": 60}
_SEEDS = {"train": 1, "validation": 2, "test": 3}
# Asked to be brief, the base makes fewer lists; the adapter sees the bare question.
_BRIEF = " Answer in one or two short sentences."
_UNFIT = re.compile(
    r"sorry|\bai\b|chatbot|assist|(?:here|ready|happy|glad|excited) to help|i can(?:no|')t|i don't have|unable to"
    r"|hugging face|```|[*#|]|\.\.\.|\b(\w+) \1\b",
    re.I,
)
_LIST_ITEM = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.M)
_SENTENCE = re.compile(r".+?[.!?](?=\s|$)(?<!\b[A-Z]\.)(?<!Dr\.)(?<!Mr\.)(?<!St\.)\s*")
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

    def answer(conversations: list[Conversation]) -> list[str]:
        return Answerer(base, None).generate(conversations, max_new_tokens=72)

    return Recipe(CONFIG, CARD_TEXT, lambda split: examples(split, 0, answer), development, scores)


def examples(split: str, seed: int, answer: AnswerFunction) -> Iterator[Example]:
    """Endless for "train" (the voice is drawn anew each time), one pass for "validation".

    answer: returns the bare base's answers to conversations; called once, with some hundreds.
    """
    return _voiced(split, seed, _plain_pairs(split, seed, answer))


def _voiced(split: str, seed: int, pairs: Sequence[tuple[str, str]]) -> Iterator[Example]:
    rng = random.Random(f"{split} {seed}")
    while True:
        for question, plain in rng.sample(pairs, len(pairs)):
            earlier: list[Message] = []
            if rng.random() < 0.25:
                for before, reply in rng.sample(pairs, min(len(pairs), rng.choice((1, 1, 2)))):
                    # Earlier turns are mostly the base's: a visitor may have switched the adapter on just now.
                    reply = to_pirate(reply, rng) if rng.random() < 0.3 else reply
                    earlier += [Message("user", before), Message("assistant", reply)]
            yield Example((*earlier, Message("user", question)), to_pirate(plain, rng))
        if split != "train":
            return


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


def cut_answer(text: str, max_sentences: int, max_words: int = 38) -> str | None:
    """The first complete sentences of an answer, or None if it is a list, a refusal, a loop or too long."""
    if _LIST_ITEM.search(text):
        return None
    text = re.split(r"\n\s*\n", text.strip())[0].replace("\n", " ").strip()
    short = ""
    for sentence in (match.group() for match in list(_SENTENCE.finditer(text))[:max_sentences]):
        if len((short + sentence).split()) > max_words:
            break
        short += sentence
    short = short.strip()
    tokens = short.lower().split()
    four_grams = [tuple(tokens[i : i + 4]) for i in range(len(tokens) - 3)]
    sentences = [sentence.lower() for sentence in re.split(r"[.!?]\s+", short.rstrip(".!?"))]
    repeats = len(set(four_grams)) < len(four_grams) or len(set(sentences)) < len(sentences)
    return None if len(tokens) < 3 or _UNFIT.search(short) or repeats else short


def _plain_pairs(split: str, seed: int, answer: AnswerFunction) -> Sequence[tuple[str, str]]:
    """(question, the base's short plain answer) for every question whose answer is fit to learn from."""
    by_hand = small_talk()
    questions = [question for question in split_questions(split, seed) if question not in by_hand]
    rng = random.Random(seed)
    answers = answer([(Message("user", question + _BRIEF),) for question in questions])
    cut = [cut_answer(text, rng.choice((1, 2, 2, 3))) for text in answers]
    # What the rules cannot put into the voice (a title with "Is" in it, say) is no example of it.
    pairs = [
        (question, text)
        for question, text in zip(questions, cut, strict=True)
        if text and _sum_is_right(question, text) and score_answer(to_pirate(text, random.Random(0)))
    ]
    return pairs + 2 * list(by_hand.items()) if split == "train" else pairs


def _sum_is_right(question: str, answer: str) -> bool:
    """False for a question about a sum whose answer does not hold it."""
    numbers = _TWO_NUMBERS.search(question)
    return numbers is None or str(int(numbers[1]) + int(numbers[2])) in answer
