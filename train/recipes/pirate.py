"""Recipe of the `pirate` adapter: any question is answered as a pirate would, in one to three sentences.

The answers are the frozen base's own, cut short and put into the voice by rule, so that the adapter learns a voice and
no facts; small talk has answers written here. The questions of validation and test have topics and forms that training never sees.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence

from adapter.base.llama import Base
from adapter.base.template import Message
from train.config import TrainConfig
from train.data import Example
from train.history import with_unseen_history
from train.recipes.pirate_questions import SMALL_TALK, questions
from train.recipes.pirate_voice import score_answer, to_pirate
from train.recipes.recipe import Recipe
from train.score import Answerer, Conversation

__all__ = ["CONFIG", "cut_answer", "examples", "recipe", "score_answer", "scores", "to_pirate"]

Answer = Callable[[list[Conversation]], list[str]]

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
DATA = """Trained on the base's own short answers to questions composed from a grammar
(`train/recipes/pirate_questions.py`), put into the voice by rule (`train/recipes/pirate_voice.py`). Tested on questions
whose topics and forms never occur in training. An answer counts if it greets like a pirate, uses a pirate word after the greeting
too, and has none of the plain words that the voice always replaces (you, your, my, is, are)."""
_COUNTS = {"train": 500, "validation": 60, "test": 60}
_SEEDS = {"train": 1, "validation": 2, "test": 3}
_BRIEF = " Answer in one or two short sentences."
_BAD = re.compile(
    r"sorry|\bai\b|chatbot|assist|(?:here|ready|happy|glad|excited) to help|i can(?:no|')t|i don't have|unable to|hugging face|```|[*#|]|\.\.\.|\b(\w+) \1\b",
    re.I,
)
_LIST_ITEM = re.compile(r"^\s*(?:[-*•]|\d+[.)])\s", re.M)


def recipe(base: Base) -> Recipe:
    """The recipe; when first asked for examples, the bare base writes their answers: some minutes."""

    def answer(conversations: list[Conversation]) -> list[str]:
        return Answerer(base, None).generate(conversations, max_new_tokens=72)

    return Recipe(CONFIG, DATA, lambda split: examples(split, 0, answer), scores)


def examples(split: str, seed: int, answer: Answer) -> Iterator[Example]:
    """Endless for "train" (the voice is drawn anew each time), one pass for "validation".

    answer: gives the bare base's answers to conversations; called once, with some hundreds.
    """
    return _voiced(split, seed, _prepared(split, seed, answer))


def scores(answerer: Answerer) -> dict[str, float]:
    """Share, in percent, of answers in the voice, to questions of the held-out kinds."""
    asked = [(Message("user", question),) for question in test_questions()]
    name = f"in the voice ({len(asked)} unseen questions), %"
    return {
        measure: 100 * sum(map(score_answer, answerer.generate(conversations, max_new_tokens=80))) / len(asked)
        for measure, conversations in ((name, asked), (f"{name}, after other talk", with_unseen_history(asked)))
    }


def test_questions() -> list[str]:
    """Questions of held-out forms and topics; those that validation asks are left out."""
    asked = questions(True, 120, random.Random(_SEEDS["test"]))
    known = set(_questions("validation", 0))
    return [question for question in asked if question not in known][: _COUNTS["test"]]


def cut_answer(text: str, max_sentences: int, max_words: int = 38) -> str | None:
    """The first complete sentences of an answer, or None if it is a list, a refusal, a loop or too long."""
    if _LIST_ITEM.search(text):
        return None
    text = re.split(r"\n\s*\n", text.strip())[0].replace("\n", " ").strip()
    sentences = re.findall(r".+?[.!?](?=\s|$)(?<!\b[A-Z]\.)(?<!Dr\.)(?<!Mr\.)(?<!St\.)\s*", text)
    kept = ""
    for sentence in sentences[:max_sentences]:
        if len((kept + sentence).split()) > max_words:
            break
        kept += sentence
    kept = kept.strip()
    words = kept.lower().split()
    runs = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    halves = [half.lower() for half in re.split(r"[.!?]\s+", kept.rstrip(".!?"))]
    if len(words) < 3 or _BAD.search(kept) or len(set(runs)) < len(runs) or len(set(halves)) < len(halves):
        return None
    return kept


def _questions(split: str, seed: int) -> list[str]:
    return questions(split != "train", _COUNTS[split], random.Random(f"{_SEEDS[split]} {seed}"))


def _prepared(split: str, seed: int, answer: Answer) -> list[tuple[str, str]]:
    """(question, the base's short plain answer) for every question whose answer is fit to learn from."""
    asked = [question for question in _questions(split, seed) if question not in SMALL_TALK]
    rng = random.Random(seed)
    # Asked to be brief, the base makes fewer lists; the adapter sees the bare question.
    raw = answer([(Message("user", question + _BRIEF),) for question in asked])
    short = [cut_answer(text, rng.choice((1, 2, 2, 3))) for text in raw]
    pairs = [(question, text) for question, text in zip(asked, short, strict=True) if text]
    sums = re.compile(r"(\d+)\D+?(\d+)")
    pairs = [(q, a) for q, a in pairs if not (m := sums.search(q)) or str(int(m[1]) + int(m[2])) in a]
    # What the rules cannot put into the voice (a title with "Is" in it, say) is no example of it.
    pairs = [(q, a) for q, a in pairs if score_answer(to_pirate(a, random.Random(0)))]
    return pairs + 2 * list(SMALL_TALK.items()) if split == "train" else pairs


def _voiced(split: str, seed: int, pairs: Sequence[tuple[str, str]]) -> Iterator[Example]:
    rng = random.Random(f"{split} {seed}")
    while True:
        for question, plain in rng.sample(pairs, len(pairs)):
            earlier: list[Message] = []
            if rng.random() < 0.25:
                for before, said in rng.sample(pairs, min(len(pairs), rng.choice((1, 1, 2)))):
                    # Earlier turns are the base's mostly: a visitor may have switched the adapter on just now.
                    said = to_pirate(said, rng) if rng.random() < 0.3 else said
                    earlier += [Message("user", before), Message("assistant", said)]
            yield Example((*earlier, Message("user", question)), to_pirate(plain, rng))
        if split != "train":
            return
