"""What can be measured: each task reads its data once and measures one Answerer after another on it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

from adapter.base.template import Message, encode_answer
from adapter.errors import BadInput
from adapter.method.vision import VisualFeatures
from train.evaluate.answerer import Answerer
from train.evaluate.intervals import Figure, mean, ratio, share
from train.evaluate.metrics import CAPTION_METRICS, caption_scores, exact_match, token_f1
from train.evaluate.perplexity import WINDOW, text_windows, window_losses
from train.evaluate.scienceqa import by_column, extract_letter
from train.formats import scienceqa
from train.formats.dataset import open_records
from train.formats.record import DataError, Picture, picture_key
from train.formats.sources import read_text as read_file
from train.input.examples import Example
from train.input.rows import Tokeniser

_PICTURES = 64  # whose features are held at a time
T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """What one Answerer reached. figures: by the rows and columns of the table; answers: its generated texts."""

    figures: Mapping[str, Mapping[str, Figure]]
    answers: tuple[str, ...] = ()


class Task(Protocol):
    """One thing to measure on data that has been read."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know of the figures."""

    def measure(self, answerer: Answerer, seed: int) -> Result:
        """seed: of the intervals."""


def drawn(items: Sequence[T], limit: int | None) -> list[T]:
    """At most `limit` items, drawn evenly: what is in order of subject or length is represented as a whole."""
    count = len(items)
    if limit is None or limit >= count:
        return [items[i] for i in range(count)]
    return [items[i * count // limit] for i in range(limit)]


def read_problems(folder: Path, split: str, limit: int | None) -> list[scienceqa.Problem]:
    """ScienceQA's problems. Raises DataError for what is missing or broken."""
    if not scienceqa.is_scienceqa(folder):
        raise DataError(
            f"'{folder.name}' holds no problems.json. Give the folder that ScienceQA's problems.json, "
            "pid_splits.json and images/ are in.",
            str(folder),
        )
    return drawn(scienceqa.problems(folder, split), limit)


def read_examples(
    path: Path,
    format: str = "auto",
    images: Path | None = None,
    split: str | None = None,
    limit: int | None = None,
) -> list[Example]:
    """Any format of training data. Raises DataError."""
    return [Example.of(record) for record in drawn(open_records(path, format, images, split), limit)]


def read_text(path: Path) -> str:
    """A text file in UTF-8. Raises DataError."""
    if not path.is_file():
        raise DataError(f"There is no file '{path.name}'. Check the path.", str(path))
    text = read_file(path)
    if not text.strip():
        raise DataError(f"{path.name} is empty. Check that it is the right file.", str(path))
    return text


@dataclass(frozen=True)
class ScienceQA:
    """Letters by their likelihood and in generated text. cue: written behind each question."""

    problems: Sequence[scienceqa.Problem]
    cue: str = ""
    max_new_tokens: int = 32
    notes: tuple[str, ...] = (
        "unreadable: generated answers that name no choice, or several; they count as wrong",
    )

    def measure(self, answerer: Answerer, seed: int) -> Result:
        problems = self.problems
        prompts = [answerer.encode((Message("user", scienceqa.question_text(p) + self.cue),)) for p in problems]
        letters = [
            encode_answer(answerer.base.tokenizer, letter, answerer.template)[0] for letter in scienceqa.LETTERS
        ]
        likeliest: list[int] = []
        for part, features in _with_features(answerer, [(p.image, f"problem {p.id}") for p in problems]):
            logs = answerer.next_logprobs(prompts[part], letters, features)
            likeliest += [int(row[: len(p.choices)].argmax()) for row, p in zip(logs, problems[part], strict=True)]
        texts = answerer.generate_from(prompts, [p.image for p in problems], self.max_new_tokens)
        read = [extract_letter(text, p.choices) for text, p in zip(texts, problems, strict=True)]
        rows = {
            "likeliest letter": [i == p.answer for i, p in zip(likeliest, problems, strict=True)],
            "generated letter": [i == p.answer for i, p in zip(read, problems, strict=True)],
            "unreadable": [i is None for i in read],
        }
        figures = {
            row: {column: share(part) for column, part in by_column(problems, values).items()}
            for row, values in rows.items()
        }
        return Result(figures, tuple(texts))


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
        texts = answerer.generate([e.messages for e in self.examples], pictures, self.max_new_tokens)
        pairs = [(text, example.answer) for text, example in zip(texts, self.examples, strict=True)]
        figures = {
            "exact match": share([exact_match(*pair) for pair in pairs]),
            "token F1": mean([token_f1(*pair) for pair in pairs], seed, scale=100),
        }
        return Result({"answers": figures}, tuple(texts))


@dataclass(frozen=True)
class Captions:
    """Greedy captions beside all references of each picture. examples: the first of each picture."""

    examples: Sequence[Example]
    references: Sequence[Sequence[str]]
    max_new_tokens: int = 64
    notes: tuple[str, ...] = (CAPTION_METRICS,)

    @staticmethod
    def of(examples: Iterable[Example], limit: int | None, max_new_tokens: int) -> Captions:
        """Raises DataError. A picture's request is that of its first record."""
        groups: dict[str, list[Example]] = {}
        for example in examples:
            if example.picture is None:
                raise DataError(f"{example.where}: no picture, so there is nothing to caption. Take it out.")
            groups.setdefault(picture_key(example.picture), []).append(example)
        chosen = drawn(list(groups.values()), limit)
        references = [[example.answer for example in group] for group in chosen]
        return Captions([group[0] for group in chosen], references, max_new_tokens)

    def measure(self, answerer: Answerer, seed: int) -> Result:
        pictures = [example.picture for example in self.examples]
        texts = answerer.generate([e.messages for e in self.examples], pictures, self.max_new_tokens)
        return Result({"captions": caption_scores(texts, self.references, seed)}, tuple(texts))


@dataclass(frozen=True)
class HeldOutLoss:
    """The loss of all answers of conversations, as the trainer measures it."""

    examples: Sequence[Example]
    max_length: int = 512
    notes: tuple[str, ...] = (
        "nats a token of the answers, each with its end; without records whose answer begins beyond --max-length",
    )

    def measure(self, answerer: Answerer, seed: int) -> Result:
        tokeniser = Tokeniser(answerer.base.tokenizer, answerer.template, self.max_length)
        sums: list[float] = []
        counts: list[int] = []
        for part, features in _with_features(answerer, [(e.picture, e.where) for e in self.examples]):
            rows = [tokeniser.row(example) for example in self.examples[part]]
            scores = answerer.token_scores([r.ids for r in rows], [r.labels for r in rows], features)
            scores = [s for s in scores if len(s.logprobs)]
            sums += [-float(s.logprobs.sum()) for s in scores]
            counts += [len(s.logprobs) for s in scores]
        if not counts:
            raise DataError(f"No answer begins within {self.max_length} tokens. Raise --max-length.")
        return Result({"held-out loss": {"loss": ratio(sums, counts, seed)}})


@dataclass(frozen=True)
class Perplexity:
    """Of a text, in windows that are read on their own. strengths: of the adapter; none: the Answerer's own."""

    text: str
    limit: int | None = None
    strengths: tuple[float, ...] = ()
    notes: tuple[str, ...] = (f"of windows of {WINDOW} tokens that are each read on their own",)

    def measure(self, answerer: Answerer, seed: int) -> Result:
        windows = drawn(text_windows(answerer.base, self.text), self.limit)
        if not windows:
            raise DataError("The text has fewer than two tokens. Give a longer one.")
        strengths = self.strengths if answerer.adapter is not None else ()
        figures = {}
        for strength in strengths or (answerer.strength,):
            sums, counts = window_losses(replace(answerer, strength=strength), windows)
            row = f"strength {strength:g}" if strengths else "text"
            figures[row] = {"perplexity": ratio(sums, counts, seed, math.exp)}
        return Result(figures)


def _with_features(
    answerer: Answerer, pictures: Sequence[tuple[Picture | None, str]]
) -> Iterator[tuple[slice, list[VisualFeatures | None]]]:
    """Slices of all items, with their features. pictures: of each item, and its place in the data."""
    for start in range(0, len(pictures), _PICTURES):
        part = slice(start, start + _PICTURES)
        yield part, [_features(answerer, picture, where) for picture, where in pictures[part]]


def _features(answerer: Answerer, picture: Picture | None, where: str) -> VisualFeatures | None:
    try:
        (features,) = answerer.features([picture])
    except BadInput as error:
        raise DataError(f"{where}: {picture.name if picture else ''}: {error}") from error
    return features
