"""Examples and the batches made of them: template, tokens, labels, grouping by length. Knows no models.

The order of batches is a function of the seed and of a Position, so that a run can stop and go on anywhere.
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
from train.formats.records import DataError, Record, Records
from train.history import earlier_talk

IGNORED = -100
_GROUP = 32  # batches that are sorted by length together
_EMPTY_GROUPS = 64  # in a row, after which there is nothing to learn


@dataclass(frozen=True)
class Example:
    """A conversation that ends in the user's turn, the answer to learn, and what the user showed.

    A picture is given encoded (`features`) or as the file that it is in. all_turns: learn the earlier answers of
    the conversation too. where: the example's place in its file, for messages. history: what others said before,
    which is not learnt, and left out where there is no room for it.
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
        """The example that a record holds: all its answers are learnt."""
        *messages, answer = record.messages
        return Example(tuple(messages), answer.text, picture=record.image, all_turns=True, where=record.where)


class Row(NamedTuple):
    """A tokenised example; labels are -100 where there is no loss."""

    ids: list[int]
    labels: list[int]
    example: Example


@dataclass(frozen=True)
class Batch:
    """input_ids, labels: [B, T], padded at the end; labels are -100 before the answer and in the padding.

    features: of the pictures in this batch, in order; rows: [B] index among [no picture, picture 0, ...], and
    None if all rows have a picture or none has.
    """

    input_ids: Tensor
    labels: Tensor
    features: VisualFeatures | None
    rows: Tensor | None

    tokens: int  # without padding
    supervised: int  # positions with loss

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            labels=self.labels.to(device),
            features=None if self.features is None else self.features.to(device),
            rows=None if self.rows is None else self.rows.to(device),
        )


@dataclass(frozen=True)
class Position:
    """Where a run is in its examples: how many came before the present group, its number, its next batch."""

    examples: int = 0
    group: int = 0
    batch: int = 0


class Skipped:
    """What could not be learnt from: each place is told once, and counted."""

    def __init__(self, tell: Callable[[str], None] = print, named: int = 20) -> None:
        self._tell, self._named = tell, named
        self.places: set[str] = set()

    def add(self, place: str, reason: object) -> None:
        """reason: names the place too."""
        if place in self.places:
            return
        self.places.add(place)
        if len(self.places) <= self._named:
            self._tell(f"skipped: {reason}")
        elif len(self.places) == self._named + 1:
            self._tell("skipped more; from here on they are only counted")


class Shuffled(Iterator["Example | None"]):
    """Records in an endless order, shuffled anew each epoch; None in the place of a record that is broken.

    history: the share of the examples of one exchange that get another one before it.
    """

    def __init__(
        self, records: Records, indices: Sequence[int], seed: int, skipped: Skipped, history: float = 0
    ) -> None:
        self._records, self._indices, self._seed, self._skipped = records, indices, seed, skipped
        self._history = history
        self._next = 0
        self._epoch, self._order = -1, torch.empty(0)

    def __len__(self) -> int:
        """Of one epoch."""
        return len(self._indices)

    def skip(self, count: int) -> None:
        """Go on after the next `count`, without reading them."""
        self._next += count

    def __next__(self) -> Example | None:
        epoch, at = divmod(self._next, len(self._indices))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self._indices), generator=generator)
        number = self._next
        self._next += 1
        example = readable(self._records, self._indices[int(self._order[at])], self._skipped)
        if self._history and example and len(example.messages) == 1:
            rng = random.Random(f"{self._seed} {number} history")
            if rng.random() < self._history:
                return replace(example, history=earlier_talk(rng))
        return example


def readable(records: Records, index: int, skipped: Skipped) -> Example | None:
    """One record as an example, or None if it is broken."""
    try:
        return Example.of(records[index])
    except DataError as error:
        skipped.add(f"record {index + 1}", error)
        return None


class Tokeniser:
    """From examples to rows, cut at `max_length` tokens."""

    def __init__(self, tokenizer: Any, template: str, max_length: int, skipped: Skipped | None = None) -> None:
        self._tokenizer, self._template, self._max_length = tokenizer, template, max_length
        self._skipped = skipped or Skipped()
        self.pad = tokenizer.pad_token_id or 0

    def rows(self, examples: Iterable[Example | None]) -> list[Row]:
        """Rows of all examples that have something left to learn, shortest first."""
        made = []
        for example in examples:
            if example is None:
                continue
            try:
                row = self.row(example)
            except BadInput as error:
                self._skipped.add(example.where, f"{example.where or 'an example'}: {error}")
                continue
            # A row cut within its prompt has no label, and a mean over none is where NaNs come from.
            if any(label != IGNORED for label in row.labels[1:]):
                made.append(row)
            elif example.where:
                self._skipped.add(
                    example.where, f"{example.where}: no token to learn is left within {self._max_length} tokens"
                )
        return sorted(made, key=lambda row: len(row.ids))

    def row(self, example: Example, cut: bool = True) -> Row:
        """Tokens and labels of one example. Raises BadInput if there is nothing to answer."""
        messages = (*example.history, *example.messages, Message("assistant", example.answer))
        all_turns = example.all_turns and not example.history
        ids, learnt = encode_conversation(self._tokenizer, messages, self._template, all_turns)
        if example.history and len(ids) > self._max_length:
            return self.row(replace(example, history=()), cut)
        labels = [token if learn else IGNORED for token, learn in zip(ids, learnt, strict=True)]
        end = self._max_length if cut else None
        return Row(ids[:end], labels[:end], example)


class Batches:
    """Endless batches of rows of similar length, as lists of rows; `position` is that of the next one."""

    def __init__(
        self,
        examples: Iterable[Example | None],
        tokeniser: Tokeniser,
        batch_size: int,
        seed: int,
        position: Position = Position(),
    ) -> None:
        self._stream = iter(examples)
        if isinstance(self._stream, Shuffled):
            self._stream.skip(position.examples)
        else:
            next(itertools.islice(self._stream, position.examples, position.examples), None)
        self._tokeniser, self._batch_size, self._seed = tokeniser, batch_size, seed
        self._group = batch_size * _GROUP
        if isinstance(self._stream, Shuffled):
            self._group = min(self._group, len(self._stream))  # twice the same in one batch teaches less
        self.position = position

    def __iter__(self) -> Iterator[list[Row]]:
        empty = 0
        while True:
            group = list(itertools.islice(self._stream, self._group))
            start = self.position
            rows = self._tokeniser.rows(group)
            chunks = [rows[i : i + self._batch_size] for i in range(0, len(rows), self._batch_size)]
            random.Random(f"{self._seed} {start.group}").shuffle(chunks)
            following = Position(start.examples + len(group), start.group + 1)
            for number, chunk in enumerate(chunks):
                if number >= start.batch:
                    last = number == len(chunks) - 1
                    self.position = following if last else replace(start, batch=number + 1)
                    yield chunk
            self.position = following
            empty = 0 if chunks else empty + 1
            if not group or empty == _EMPTY_GROUPS:
                raise DataError(
                    "Nothing to learn: every example is broken, or too long before its answer begins. "
                    "See which with --check, or raise max_length."
                )


def gathered(features: Sequence[VisualFeatures | None]) -> tuple[VisualFeatures | None, Tensor | None]:
    """The pictures of several rows as one, and `rows` as in Batch."""
    shown = [f for f in features if f is not None]
    if not shown:
        return None, None
    counter = itertools.count(1)
    rows = torch.tensor([0 if f is None else next(counter) for f in features])
    return VisualFeatures.cat(shown), rows if len(shown) < len(features) else None


def collate(
    rows: Sequence[Row], pad: int, encode: Callable[[Example], VisualFeatures | None] | None = None
) -> Batch:
    """One batch of at least one row. encode: the features of an example that has a picture file."""
    length = max(len(row.ids) for row in rows)
    input_ids = torch.tensor([row.ids + [pad] * (length - len(row.ids)) for row in rows])
    labels = torch.tensor([row.labels + [IGNORED] * (length - len(row.labels)) for row in rows])
    features, index = gathered([encode(row.example) if encode else row.example.features for row in rows])
    supervised = int((labels[:, 1:] != IGNORED).sum())
    return Batch(input_ids, labels, features, index, sum(len(row.ids) for row in rows), supervised)
