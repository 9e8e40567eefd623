"""Examples and the batches made of them: template, tokens, labels, grouping by length. Knows no models.

The order of batches is a function of the seed and of a StreamPosition, so that a run can stop and resume anywhere.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adapter.base.template import Message, encode_conversation
from adapter.errors import BadInput
from adapter.method.vision import VisualFeatures
from train.formats.dataset import DataError, Record, Records
from train.history import sample_history

IGNORED = -100
_GROUP_BATCHES = 32  # batches that are sorted by length together
_MOST_EMPTY_GROUPS = 64  # in a row, after which there is nothing to learn


@dataclass(frozen=True)
class Example:
    """A conversation that ends in a user turn, the answer to learn, and the image that the user showed.

    features, picture: the image, either encoded or as a file. all_turns: earlier assistant turns carry loss too.
    where: the record's place in its file, for messages. history: earlier exchanges that carry no loss and are left
    out of rows that would be too long with them.
    """

    messages: tuple[Message, ...]
    answer: str
    features: VisualFeatures | None = None
    picture: Path | None = None
    all_turns: bool = False
    where: str = ""
    history: tuple[Message, ...] = ()

    @staticmethod
    def of(record: Record) -> Example:
        """The example of a record, in which all assistant turns carry loss."""
        *messages, answer = record.messages
        return Example(tuple(messages), answer.text, picture=record.image, all_turns=True, where=record.where)


class TokenisedRow(NamedTuple):
    """A tokenised example; labels are -100 where there is no loss."""

    ids: list[int]
    labels: list[int]
    example: Example


@dataclass(frozen=True)
class Batch:
    """input_ids, labels: [B, T], right-padded; labels are -100 before the answer and in the padding.

    features: of the batch's images, in row order. rows: [B] index among [no image, image 0, ...]; None if all rows
    have an image or none has.
    """

    input_ids: Tensor
    labels: Tensor
    features: VisualFeatures | None
    rows: Tensor | None

    tokens: int  # without padding
    supervised: int  # positions with loss

    def to(self, device: torch.device) -> Batch:
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            labels=self.labels.to(device),
            features=None if self.features is None else self.features.to(device),
            rows=None if self.rows is None else self.rows.to(device),
        )


@dataclass(frozen=True)
class StreamPosition:
    """A run's position in its examples: how many precede the current group, the group's number, its next batch."""

    examples: int = 0
    group: int = 0
    batch: int = 0


class SkippedExamples:
    """Counts the examples that cannot be used and logs the first of them, each place once."""

    def __init__(self, log: Callable[[str], None] = print, most_logged: int = 20) -> None:
        self._log, self._most_logged = log, most_logged
        self.places: set[str] = set()

    def add(self, place: str, reason: object) -> None:
        """reason: the sentence to log, which names the place too."""
        if place in self.places:
            return
        self.places.add(place)
        if len(self.places) <= self._most_logged:
            self._log(f"skipped: {reason}")
        elif len(self.places) == self._most_logged + 1:
            self._log("skipped more; from here on they are only counted")


class ShuffledExamples(Iterator["Example | None"]):
    """Endless examples of records, shuffled anew each epoch; None in place of a broken record.

    history: the share of single-turn examples that get earlier exchanges.
    """

    def __init__(
        self, records: Records, indices: Sequence[int], seed: int, skipped: SkippedExamples, history: float = 0
    ) -> None:
        self._records, self._indices, self._seed, self._skipped = records, indices, seed, skipped
        self._history = history
        self._next = 0
        self._epoch, self._order = -1, torch.empty(0)

    def __len__(self) -> int:
        """Examples per epoch."""
        return len(self._indices)

    def skip(self, count: int) -> None:
        """Advances by `count` examples without reading them."""
        self._next += count

    def __next__(self) -> Example | None:
        number = self._next
        self._next += 1
        epoch, at = divmod(number, len(self._indices))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self._indices), generator=generator)
        example = read_example(self._records, self._indices[int(self._order[at])], self._skipped)
        if self._history and example and len(example.messages) == 1:
            rng = random.Random(f"{self._seed} {number} history")
            if rng.random() < self._history:
                return replace(example, history=sample_history(rng))
        return example


def read_example(records: Records, index: int, skipped: SkippedExamples) -> Example | None:
    """The example of one record; None, and counted in `skipped`, if the record is broken."""
    try:
        return Example.of(records[index])
    except DataError as error:
        skipped.add(f"record {index + 1}", error)
        return None


class Tokeniser:
    """Turns examples into rows, truncated at `max_length` tokens."""

    def __init__(
        self, tokenizer: Any, template: str, max_length: int, skipped: SkippedExamples | None = None
    ) -> None:
        self._tokenizer, self._template, self._max_length = tokenizer, template, max_length
        self._skipped = skipped or SkippedExamples()
        self.pad = tokenizer.pad_token_id or 0

    def rows(self, examples: Iterable[Example | None]) -> list[TokenisedRow]:
        """Rows of all examples that have a label left, shortest first."""
        rows = []
        for example in examples:
            if example is None:
                continue
            try:
                row = self.row(example)
            except BadInput as error:
                self._skipped.add(example.where, f"{example.where or 'an example'}: {error}")
                continue
            # A row that is truncated within its prompt has no label, and a mean over no labels is NaN.
            if any(label != IGNORED for label in row.labels[1:]):
                rows.append(row)
            elif example.where:
                self._skipped.add(
                    example.where, f"{example.where}: no token to learn is left within {self._max_length} tokens"
                )
        return sorted(rows, key=lambda row: len(row.ids))

    def row(self, example: Example, truncate: bool = True) -> TokenisedRow:
        """Tokens and labels of one example. Raises BadInput if its messages cannot be templated."""
        messages = (*example.history, *example.messages, Message("assistant", example.answer))
        all_turns = example.all_turns and not example.history
        ids, supervised = encode_conversation(self._tokenizer, messages, self._template, all_turns)
        if example.history and len(ids) > self._max_length:
            return self.row(replace(example, history=()), truncate)
        labels = [token if has_loss else IGNORED for token, has_loss in zip(ids, supervised, strict=True)]
        end = self._max_length if truncate else None
        return TokenisedRow(ids[:end], labels[:end], example)


class Batches:
    """Endless batches of rows of similar length, as lists of rows; `position` is that of the next one."""

    def __init__(
        self,
        examples: Iterable[Example | None],
        tokeniser: Tokeniser,
        batch_size: int,
        seed: int,
        position: StreamPosition = StreamPosition(),
    ) -> None:
        self._stream = iter(examples)
        self._tokeniser, self._batch_size, self._seed = tokeniser, batch_size, seed
        self._group_size = batch_size * _GROUP_BATCHES
        if isinstance(self._stream, ShuffledExamples):
            self._stream.skip(position.examples)
            # No group spans two epochs of a small file: the same example twice in a batch teaches less.
            self._group_size = min(self._group_size, len(self._stream))
        else:
            next(itertools.islice(self._stream, position.examples, position.examples), None)
        self.position = position

    def __iter__(self) -> Iterator[list[TokenisedRow]]:
        empty = 0
        while True:
            group = list(itertools.islice(self._stream, self._group_size))
            start = self.position
            rows = self._tokeniser.rows(group)
            batches = [rows[i : i + self._batch_size] for i in range(0, len(rows), self._batch_size)]
            random.Random(f"{self._seed} {start.group}").shuffle(batches)
            next_group = StreamPosition(start.examples + len(group), start.group + 1)
            for number, batch in enumerate(batches):
                if number >= start.batch:
                    last = number == len(batches) - 1
                    self.position = next_group if last else replace(start, batch=number + 1)
                    yield batch
            self.position = next_group
            empty = 0 if batches else empty + 1
            if not group or empty == _MOST_EMPTY_GROUPS:
                raise DataError(
                    "Nothing to learn: every example is broken, or too long before its answer begins. "
                    "See which with --check, or raise max_length."
                )


def stack_features(features: Sequence[VisualFeatures | None]) -> tuple[VisualFeatures | None, Tensor | None]:
    """The features of several rows in one, and `rows` as in Batch."""
    present = [f for f in features if f is not None]
    if not present:
        return None, None
    counter = itertools.count(1)
    rows = torch.tensor([0 if f is None else next(counter) for f in features])
    return VisualFeatures.cat(present), rows if len(present) < len(features) else None


def collate(
    rows: Sequence[TokenisedRow], pad: int, encode: Callable[[Example], VisualFeatures | None] | None = None
) -> Batch:
    """One batch of at least one row. encode: returns the features of an example whose image is a file."""
    length = max(len(row.ids) for row in rows)
    input_ids = torch.tensor([row.ids + [pad] * (length - len(row.ids)) for row in rows])
    labels = torch.tensor([row.labels + [IGNORED] * (length - len(row.labels)) for row in rows])
    features, index = stack_features([encode(row.example) if encode else row.example.features for row in rows])
    supervised = int((labels[:, 1:] != IGNORED).sum())
    return Batch(input_ids, labels, features, index, sum(len(row.ids) for row in rows), supervised)
