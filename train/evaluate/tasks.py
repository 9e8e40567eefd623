"""What can be measured: each task reads its data once and measures one Answerer after another on it."""

import pydoc_data.topics
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np

from adapter.base.llama import Base
from adapter.base.template import Message, encode_answer, encode_text
from train.evaluate.answerer import Answerer
from train.evaluate.intervals import Figure, mean, ratio, share
from train.evaluate.report import Result
from train.formats import scienceqa
from train.formats.record import DataError
from train.input.examples import Example
from train.input.rows import IGNORED

_PICTURES = 64  # whose features are held at a time
WINDOW = 256  # tokens that are read together
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)
# Of Python's language reference.
_UNRELATED_TOPICS = (
    "assignment", "class", "conversions", "dynamic-features", "exceptions", "execmodel", "import", "try",
)  # fmt: skip
T = TypeVar("T")


class Task(Protocol):
    """One thing to measure on data that has been read. notes: what a reader has to know of the figures."""

    @property
    def notes(self) -> tuple[str, ...]: ...

    def measure(self, answerer: Answerer, seed: int) -> Result:
        """seed: of the intervals."""


def drawn(items: Sequence[T], limit: int | None) -> list[T]:
    """At most `limit` items, drawn evenly: what is in order of subject or length is represented as a whole."""
    count = len(items)
    wanted = count if limit is None else min(limit, count)
    return [items[i * count // wanted] for i in range(wanted)]


@dataclass(frozen=True)
class ScienceQA:
    """The likeliest letter of each problem. cue: written after each question."""

    problems: Sequence[scienceqa.Problem]
    cue: str = ""
    notes: tuple[str, ...] = ("the likeliest of a problem's own letters, as the next token, is the answer",)

    def measure(self, answerer: Answerer, seed: int) -> Result:
        problems = self.problems
        prompts = [answerer.encode((Message("user", scienceqa.question_text(p) + self.cue),)) for p in problems]
        for problem, prompt in zip(problems, prompts, strict=True):
            if len(prompt) > (most := answerer.base.context_length):
                raise DataError(f"Problem {problem.id} has {len(prompt):,} tokens, and this base reads {most:,}.")
        letters = [
            encode_answer(answerer.base.tokenizer, letter, answerer.template)[0] for letter in scienceqa.LETTERS
        ]
        right: list[bool] = []
        for start in range(0, len(problems), _PICTURES):
            part = slice(start, start + _PICTURES)
            features = answerer.features([p.image for p in problems[part]])
            pairs = zip(answerer.next_logprobs(prompts[part], letters, features), problems[part], strict=True)
            right += [int(row[: len(p.choices)].argmax()) == p.answer for row, p in pairs]
        columns = {column: share(part) for column, part in scienceqa.by_column(problems, right).items()}
        return Result({"likeliest letter": columns})


def normalised(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation and English articles (SQuAD's evaluation).

    Unlike there, a text of nothing else keeps them: the answers "A" and "-" are not empty ones.
    """
    plain = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split() or plain.split() or text.lower().split()


def token_f1(answer: str, wanted: str) -> float:
    """0 to 1: the harmonic mean of precision and recall of the normalised words."""
    found, right = normalised(answer), normalised(wanted)
    if not found or not right:
        return float(found == right)
    return 2 * sum((Counter(found) & Counter(right)).values()) / (len(found) + len(right))


@dataclass(frozen=True)
class ExactMatch:
    """Greedy answers beside the wanted ones."""

    examples: Sequence[Example]
    max_new_tokens: int = 64
    notes: tuple[str, ...] = (
        "texts in lower case, without punctuation and articles, as in SQuAD's evaluation; of a conversation the "
        "last answer counts",
    )

    def measure(self, answerer: Answerer, seed: int) -> Result:
        pictures = [example.picture for example in self.examples]
        places = [example.where for example in self.examples]
        asked = [example.messages for example in self.examples]
        texts = answerer.generate(asked, pictures, self.max_new_tokens, places=places)
        pairs = [(text, example.answer) for text, example in zip(texts, self.examples, strict=True)]
        figures = {
            "exact match": share([normalised(answer) == normalised(wanted) for answer, wanted in pairs]),
            "token F1": mean([token_f1(*pair) for pair in pairs], seed, scale=100),
        }
        return Result({"answers": figures}, tuple(texts))


def unrelated_text() -> str:
    """Prose that no adapter here was trained on and that needs no download."""
    topics = pydoc_data.topics.topics
    return "\n".join(topics[name] for name in _UNRELATED_TOPICS if name in topics)


def text_windows(base: Base, text: str) -> list[list[int]]:
    """A text's tokens in windows of at most WINDOW, each after the token that the tokenizer begins texts with."""
    begin, ids = encode_text(base.tokenizer, ""), encode_text(base.tokenizer, text)
    ids = ids[len(begin) :]
    size = min(WINDOW, base.context_length) - len(begin)
    windows = [begin + ids[start : start + size] for start in range(0, len(ids), size)]
    return [window for window in windows if len(window) > 1]


def window_losses(answerer: Answerer, windows: Sequence[Sequence[int]]) -> tuple[list[float], list[int]]:
    """The summed loss of each window in nats, read on its own, and how many tokens it is the loss of."""
    scores = answerer.token_scores(windows, [[IGNORED, *window[1:]] for window in windows])
    return [-float(s.logprobs.sum()) for s in scores], [len(s.logprobs) for s in scores]


@dataclass(frozen=True)
class Perplexity:
    """Of a text, in windows that are read on their own. strengths: of the adapter; none: the Answerer's own."""

    text: str
    limit: int | None = None
    strengths: tuple[float, ...] = ()
    notes: tuple[str, ...] = (
        f"of windows of {WINDOW} tokens that are each read on their own; against the base window by window",
    )

    def measure(self, answerer: Answerer, seed: int) -> Result:
        windows = drawn(text_windows(answerer.base, self.text), self.limit)
        if not windows:
            raise DataError("The text has fewer than two tokens. Give a longer one.")
        strengths = self.strengths if answerer.adapter is not None else ()
        figures: dict[str, dict[str, Figure]] = {}
        base: list[float] | None = None  # the losses at the first strength, if that is 0
        for strength in strengths or (answerer.strength,):
            sums, counts = window_losses(replace(answerer, strength=strength), windows)
            row = f"strength {strength:g}" if strengths else "text"
            figures[row] = {"perplexity": ratio(sums, counts, seed, np.exp)}
            if base is not None:
                more = [after - before for after, before in zip(sums, base, strict=True)]
                figures[row]["times the base's"] = ratio(more, counts, seed, np.exp)
            elif strengths and strength == 0:
                base = sums
        return Result(figures)
