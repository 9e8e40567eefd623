"""What can be measured: each task reads its data once and measures one Answerer after another on it.

Knows formats, prompts and metrics; knows nothing of files to write or of tables.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from adapter.base.template import Message, encode_answer
from adapter.errors import BadInput
from adapter.method.vision import VisualFeatures
from train.evaluate.answerer import Answerer
from train.evaluate.intervals import Figure, mean, ratio, share
from train.evaluate.metrics import CAPTION_METRICS, caption_scores, exact_match, token_f1
from train.evaluate.perplexity import STRENGTHS, WINDOW, text_windows, window_losses
from train.evaluate.scienceqa import by_column, extract_letter
from train.formats import scienceqa
from train.formats.dataset import open_records
from train.formats.index import Index, decoded, index_json, opened
from train.formats.record import DataError, Picture, fault, image_path, list_of, picture_key, required, text_of
from train.input.examples import Example
from train.input.rows import IGNORED, Tokeniser

_PICTURES = 64  # whose features are held at a time
T = TypeVar("T")


@dataclass(frozen=True)
class Measured:
    """What one Answerer reached. figures: by the rows and columns of the table; answers: its generated texts."""

    figures: Mapping[str, Mapping[str, Figure]]
    answers: tuple[str, ...] = ()


class Task(Protocol):
    """One thing to measure on data that has been read."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader has to know of the figures."""

    def measure(self, answerer: Answerer, seed: int) -> Measured:
        """seed: of the intervals."""


def drawn(items: Sequence[T], limit: int | None) -> list[T]:
    """At most `limit` items, drawn evenly: what is in order of subject or length is represented as a whole."""
    count = len(items)
    if limit is None or limit >= count:
        return [items[i] for i in range(count)]
    return [items[i * count // limit] for i in range(limit)]


@dataclass(frozen=True)
class ScienceQA:
    """Letters by their likelihood and in generated text. cue: written behind each question."""

    problems: Sequence[scienceqa.Problem]
    cue: str = ""
    max_new_tokens: int = 32
    notes: tuple[str, ...] = (
        "unreadable: generated answers that name no choice, or several; they count as wrong",
    )

    @staticmethod
    def open(folder: Path, split: str, limit: int | None, cue: str, max_new_tokens: int) -> ScienceQA:
        """Raises DataError for what is missing or broken."""
        if not scienceqa.is_scienceqa(folder):
            raise DataError(
                f"'{folder.name}' holds no problems.json. Give the folder that ScienceQA's problems.json, "
                "pid_splits.json and images/ are in.",
                str(folder),
            )
        return ScienceQA(drawn(scienceqa.problems(folder, split), limit), cue, max_new_tokens)

    def measure(self, answerer: Answerer, seed: int) -> Measured:
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
        return Measured(figures, tuple(texts))


@dataclass(frozen=True)
class Choice:
    """A question, its choices, the index of the right one, and a picture; where: its place in the file."""

    question: str
    choices: tuple[str, ...]
    answer: int
    image: Picture | None
    where: str


@dataclass(frozen=True)
class MultipleChoice:
    """The likeliest of the choices' texts."""

    questions: Sequence[Choice]
    cue: str = ""
    notes: tuple[str, ...] = (
        "by sum: of the log-likelihoods of a choice's tokens; by length: that sum over its characters, as "
        "lm-eval's acc_norm",
    )

    @staticmethod
    def open(path: Path, images: Path | None, limit: int | None, cue: str) -> MultipleChoice:
        """JSON or JSONL. Raises DataError."""
        rows = _json_rows(path)
        folder = images or path.parent
        read = map(rows.read, drawn(range(len(rows)), limit))
        return MultipleChoice([_choice(value, where, folder) for value, where in read], cue)

    def measure(self, answerer: Answerer, seed: int) -> Measured:
        tokenizer = answerer.base.tokenizer
        by_sum: list[bool] = []
        by_length: list[bool] = []
        for part, features in _with_features(answerer, [(q.image, q.where) for q in self.questions]):
            ids, labels, shown = [], [], []
            for question, feature in zip(self.questions[part], features, strict=True):
                prompt = answerer.encode((Message("user", question.question + self.cue),))
                for text in question.choices:
                    # Without its end, as lm-eval does.
                    target = encode_answer(tokenizer, text, answerer.template)[:-1]
                    ids.append(prompt + target)
                    labels.append([IGNORED] * len(prompt) + target)
                    shown.append(feature)
            sums = iter([float(s.logprobs.sum()) for s in answerer.token_scores(ids, labels, shown)])
            for question in self.questions[part]:
                scores = {i: next(sums) for i in range(len(question.choices))}
                by_sum.append(max(scores, key=lambda i: scores[i]) == question.answer)
                best = max(scores, key=lambda i: scores[i] / len(question.choices[i]))
                by_length.append(best == question.answer)
        return Measured({"accuracy": {"by sum": share(by_sum), "by length": share(by_length)}})


@dataclass(frozen=True)
class ExactMatch:
    """Greedy answers beside the wanted ones."""

    examples: Sequence[Example]
    max_new_tokens: int = 64
    notes: tuple[str, ...] = (
        "texts in lower case, without punctuation and articles, as in SQuAD's evaluation; of a conversation the "
        "last answer counts",
    )

    @staticmethod
    def open(
        path: Path, format: str, images: Path | None, split: str | None, limit: int | None, max_new_tokens: int
    ) -> ExactMatch:
        """Any format of training data. Raises DataError."""
        return ExactMatch(_examples(path, format, images, split, limit), max_new_tokens)

    def measure(self, answerer: Answerer, seed: int) -> Measured:
        pictures = [example.picture for example in self.examples]
        texts = answerer.generate([e.messages for e in self.examples], pictures, self.max_new_tokens)
        pairs = [(text, example.answer) for text, example in zip(texts, self.examples, strict=True)]
        figures = {
            "exact match": share([exact_match(*pair) for pair in pairs]),
            "token F1": mean([token_f1(*pair) for pair in pairs], seed, scale=100),
        }
        return Measured({"answers": figures}, tuple(texts))


@dataclass(frozen=True)
class Captions:
    """Greedy captions beside all references of each picture. examples: the first of each picture."""

    examples: Sequence[Example]
    references: Sequence[Sequence[str]]
    max_new_tokens: int = 64
    notes: tuple[str, ...] = (CAPTION_METRICS,)

    @staticmethod
    def open(
        path: Path, format: str, images: Path | None, split: str | None, limit: int | None, max_new_tokens: int
    ) -> Captions:
        """Raises DataError. A picture's request is that of its first record."""
        groups: dict[str, list[Example]] = {}
        for example in _examples(path, format, images, split, None):
            if example.picture is None:
                raise DataError(f"{example.where}: no picture, so there is nothing to caption. Take it out.")
            groups.setdefault(picture_key(example.picture), []).append(example)
        chosen = drawn(list(groups.values()), limit)
        references = [[example.answer for example in group] for group in chosen]
        return Captions([group[0] for group in chosen], references, max_new_tokens)

    def measure(self, answerer: Answerer, seed: int) -> Measured:
        pictures = [example.picture for example in self.examples]
        texts = answerer.generate([e.messages for e in self.examples], pictures, self.max_new_tokens)
        return Measured({"captions": caption_scores(texts, self.references, seed)}, tuple(texts))


@dataclass(frozen=True)
class HeldOutLoss:
    """The loss of all answers of conversations, as the trainer measures it."""

    examples: Sequence[Example]
    max_length: int = 512
    notes: tuple[str, ...] = (
        "nats a token of the answers, each with its end; without records whose answer begins beyond --max-length",
    )

    @staticmethod
    def open(
        path: Path, format: str, images: Path | None, split: str | None, limit: int | None, max_length: int
    ) -> HeldOutLoss:
        """Raises DataError."""
        return HeldOutLoss(_examples(path, format, images, split, limit), max_length)

    def measure(self, answerer: Answerer, seed: int) -> Measured:
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
        return Measured({"held-out loss": {"loss": ratio(sums, counts, seed)}})


@dataclass(frozen=True)
class Perplexity:
    """Of a text, in windows that are read on their own. strengths: of the adapter; none: the Answerer's own."""

    text: str
    limit: int | None = None
    strengths: tuple[float, ...] = ()
    notes: tuple[str, ...] = (f"of windows of {WINDOW} tokens that are each read on their own",)

    @staticmethod
    def open(path: Path, limit: int | None) -> Perplexity:
        """A text file in UTF-8. Raises DataError."""
        if not path.is_file():
            raise DataError(f"There is no file '{path.name}'. Check the path.", str(path))
        with opened(path) as file:
            text = decoded(file.read(), path.name).removeprefix("\ufeff")
        if not text.strip():
            raise DataError(f"{path.name} is empty. Check that it is the right file.", str(path))
        return Perplexity(text, limit)

    def measure(self, answerer: Answerer, seed: int) -> Measured:
        windows = drawn(text_windows(answerer.base, self.text), self.limit)
        if not windows:
            raise DataError("The text has fewer than two tokens. Give a longer one.")
        strengths = self.strengths if answerer.adapter is not None else ()
        figures = {}
        for strength in strengths or (answerer.strength,):
            sums, counts = window_losses(replace(answerer, strength=strength), windows)
            row = f"strength {strength:g}" if strengths else "text"
            figures[row] = {"perplexity": ratio(sums, counts, seed, math.exp)}
        return Measured(figures)


def forgetting(text: str, limit: int | None) -> Perplexity:
    """The perplexity of a text that an adapter was not trained on, against its strength."""
    return Perplexity(text, limit, STRENGTHS)


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


def _examples(path: Path, format: str, images: Path | None, split: str | None, limit: int | None) -> list[Example]:
    records = open_records(path, format, images, split)
    return [Example.of(record) for record in drawn(records, limit)]


def _json_rows(path: Path) -> Index:
    if not path.is_file():
        raise DataError(f"There is no file '{path.name}'. Check the path.", str(path))
    return index_json(path)


def _choice(value: dict[str, Any], where: str, images: Path) -> Choice:
    question = text_of(required(value, "question", where), "question", where, blank=False)
    choices = tuple(
        text_of(choice, f"choices[{i}]", where, blank=False)
        for i, choice in enumerate(list_of(required(value, "choices", where), "choices", where))
    )
    answer = required(value, "answer", where)
    if isinstance(answer, str):
        letters = scienceqa.LETTERS[: len(choices)]
        if choices.count(answer) == 1:
            answer = choices.index(answer)
        elif len(answer.strip()) == 1 and answer.strip().upper() in letters:
            answer = letters.index(answer.strip().upper())
    if type(answer) is not int or not 0 <= answer < len(choices):
        remedy = f"It is the text of one choice, its letter, or its index from 0 to {len(choices) - 1}."
        raise fault(where, "answer", f"is {answer!r}, which names no choice", remedy)
    image = value.get("image")
    return Choice(question, choices, answer, image_path(image, "image", where, images) if image else None, where)
