"""Examples: conversations that end in an answer to learn, from records in files. Knows no tokens and no models."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from adapter.base.template import Message
from adapter.method.vision import VisualFeatures
from train.config import DataConfig, TrainConfig
from train.formats.dataset import DataError, Record, Records, open_records
from train.input.history import sample_history


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


class FileExamples:
    """The examples of a run on files: endless and shuffled by the seed for "train", once for "validation"."""

    def __init__(self, data: DataConfig, config: TrainConfig, skipped: SkippedExamples) -> None:
        """Raises DataError."""
        self.records = _open(data, data.path)
        self._config, self._skipped = config, skipped
        order = _permutation(self.records, config.seed)
        self.train_indices: list[int] = order
        self._validation: tuple[Records, list[int]]
        if isinstance(data.validation, str):
            records = _open(data, data.validation)
            self._validation = (records, list(range(len(records))))
        elif self.records.format == "scienceqa":
            records = _open(data, data.path, "val")
            self._validation = (records, _permutation(records, config.seed))
        else:
            count = min(config.held_out, int(len(order) * data.validation))
            self._validation, self.train_indices = (self.records, order[:count]), order[count:]
        if not self.train_indices:
            raise DataError(f"'{data.path}' has no record left to learn from. Lower data.validation.")

    def __call__(self, split: str) -> Iterator[Example | None]:
        if split == "train":
            config = self._config
            return ShuffledExamples(self.records, self.train_indices, config.seed, self._skipped, config.history)
        records, indices = self._validation
        return (read_example(records, index, self._skipped) for index in indices)

    def with_steps(self, config: TrainConfig) -> TrainConfig:
        """The configuration with its epochs converted to steps."""
        if config.steps:
            return config
        steps = max(1, math.ceil(len(self.train_indices) * config.epochs / config.batch_size))
        return dataclasses.replace(config, steps=steps, epochs=0)


def _open(data: DataConfig, path: str, split: str = "train") -> Records:
    images = None if data.images is None else Path(data.images)
    return open_records(Path(path), data.format, images, split)


def _permutation(records: Records, seed: int) -> list[int]:
    return torch.randperm(len(records), generator=torch.Generator().manual_seed(seed)).tolist()
