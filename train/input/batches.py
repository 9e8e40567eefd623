"""Batches: rows of similar length, padded together with the features of their pictures, made ahead of their use.

The order of batches is a function of the seed and of a StreamPosition, so that a run can stop and resume anywhere.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from adapter.method.vision import VisualFeatures
from train.formats.dataset import DataError
from train.input.examples import Example, ShuffledExamples
from train.input.rows import IGNORED, TokenisedRow, Tokeniser

T = TypeVar("T")
_AHEAD = 2  # items
_GROUP_BATCHES = 32  # batches that are sorted by length together
_MOST_EMPTY_GROUPS = 64  # in a row, after which there is nothing to learn
_LENGTH_MULTIPLE = 16  # tokens: steps on a CPU are 5 to 14 % faster (docs/log.md)


@dataclass(frozen=True)
class Batch:
    """input_ids, labels: [B, T], right-padded to T, a multiple of 16; labels are -100 where there is no loss.

    features: of the batch's images, in row order. prompt_rows: [B] index among [no image, image 0, ...]; None if
    all rows have an image or none has.
    """

    input_ids: Tensor
    labels: Tensor
    features: VisualFeatures | None
    prompt_rows: Tensor | None
    tokens: int  # without padding
    supervised: int  # positions with loss

    def to(self, device: torch.device) -> Batch:
        return self.map(lambda t: t.to(device, non_blocking=True))

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return replace(
            self,
            input_ids=change(self.input_ids),
            labels=change(self.labels),
            features=None if self.features is None else self.features.map(change),
            prompt_rows=None if self.prompt_rows is None else change(self.prompt_rows),
        )


@dataclass(frozen=True)
class StreamPosition:
    """A run's position in its examples: how many precede the current group, the group's number, its next batch."""

    examples: int = 0
    group: int = 0
    batch: int = 0


class Batches:
    """Endless batches of rows of similar length, as lists of rows; `position` is that of the next one.

    An epoch of n examples from files has ceil(n / batch_size) batches, of which the last ones may be smaller: each
    example that can be used comes once.
    """

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
        if isinstance(self._stream, ShuffledExamples):
            self._stream.skip(position.examples)
        else:
            next(itertools.islice(self._stream, position.examples, position.examples), None)
        self.position = position

    def __iter__(self) -> Iterator[list[TokenisedRow]]:
        passed_over = 0  # examples in a row
        while True:
            start, size = self.position, self._batch_size * _GROUP_BATCHES
            most_passed_over = size * _MOST_EMPTY_GROUPS
            if isinstance(self._stream, ShuffledExamples):
                # An epoch ends with its last group: every example comes once before any comes again.
                size = min(size, self._stream.left_in_epoch())
                most_passed_over = min(most_passed_over, self._stream.epoch_size())
            group = list(itertools.islice(self._stream, size))
            rows = self._tokeniser.rows(group)
            passed_over = 0 if rows else passed_over + len(group)
            if not group or passed_over >= most_passed_over:
                raise DataError(
                    "Nothing to learn: every example is broken, or too long before its answer begins. "
                    "See which with --check, or raise max_length."
                )
            count = -(-len(group) // self._batch_size)
            if not isinstance(self._stream, ShuffledExamples):
                count = min(count, len(rows))
            batches = [rows[i * len(rows) // count : (i + 1) * len(rows) // count] for i in range(count)]
            random.Random(f"{self._seed} {start.group}").shuffle(batches)
            next_group = StreamPosition(start.examples + len(group), start.group + 1)
            for number, batch in enumerate(batches):
                if number >= start.batch:
                    last = number == len(batches) - 1
                    self.position = next_group if last else replace(start, batch=number + 1)
                    yield batch
            self.position = next_group


def stack_features(features: Sequence[VisualFeatures | None]) -> tuple[VisualFeatures | None, Tensor | None]:
    """The features of several rows in one, and `prompt_rows` as in Batch."""
    present = [f for f in features if f is not None]
    if not present:
        return None, None
    counter = itertools.count(1)
    rows = torch.tensor([0 if f is None else next(counter) for f in features])
    return VisualFeatures.cat(present), rows if len(present) < len(features) else None


def collate(rows: Sequence[TokenisedRow]) -> Batch:
    """One batch of at least one row, with the features that the examples have. No token reads the padding."""
    length = -(-max(len(row.ids) for row in rows) // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
    input_ids = torch.tensor([row.ids + [0] * (length - len(row.ids)) for row in rows])
    labels = torch.tensor([row.labels + [IGNORED] * (length - len(row.labels)) for row in rows])
    features, index = stack_features([row.example.features for row in rows])
    supervised = int((labels[:, 1:] != IGNORED).sum())
    return Batch(input_ids, labels, features, index, sum(len(row.ids) for row in rows), supervised)


class Prefetch(Iterator[T], Generic[T]):
    """An iterator whose next items are made in a thread, until its context ends.

    What making an item raises is raised where that item would be used.
    """

    def __init__(self, make: Callable[[Callable[[], bool]], Iterator[T]]) -> None:
        """make(stopping): returns the items; stopping() says whether the context has ended: nobody waits then."""
        self._stopped = threading.Event()
        self._items = make(self._stopped.is_set)
        self._thread = ThreadPoolExecutor(1, "prefetch")
        self._ahead: deque[Future[T]] = deque()

    def __next__(self) -> T:
        while len(self._ahead) <= _AHEAD:
            self._ahead.append(self._thread.submit(next, self._items))
        return self._ahead.popleft().result()

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.shutdown(cancel_futures=True)
