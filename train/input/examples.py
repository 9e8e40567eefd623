"""Examples: conversations that end in an answer to learn, from records in files."""

from __future__ import annotations

import csv
import math
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch

from adapter.base.template import Message
from adapter.errors import printable
from adapter.method.vision import VisualFeatures
from train.formats.dataset import DataError, Record, Records
from train.formats.record import Picture

_MOST_LOGGED = 20  # examples that cannot be used


@dataclass(frozen=True)
class Example:
    """A conversation that ends in a user turn, the answer to learn, and the image that the user showed.

    features, picture: the image, encoded or as a file. all_turns: earlier assistant turns carry loss too, but not
    those of `unlearnt`. where: the record's place, for messages. history: earlier exchanges without loss, which
    are left out of rows that would be too long with them.
    """

    messages: tuple[Message, ...]
    answer: str
    features: VisualFeatures | None = None
    picture: Picture | None = None
    all_turns: bool = False
    where: str = ""
    history: tuple[Message, ...] = ()
    unlearnt: tuple[int, ...] = ()

    @staticmethod
    def of(record: Record) -> Example:
        """The example of a record, in which all assistant turns carry loss but those of `unlearnt`."""
        *messages, answer = record.messages
        return Example(
            tuple(messages), answer.text, None, record.image, True, record.where, unlearnt=record.unlearnt
        )


class SkippedExamples:
    """Counts the examples that cannot be used, in any thread, and logs the first of them, each place once."""

    def __init__(self, log: Callable[[str], None] = print) -> None:
        self._log, self._lock = log, threading.Lock()
        self.places: set[str] = set()
        self._new: list[tuple[str, str]] = []

    def add(self, place: str, reason: object) -> None:
        """reason: the sentence to log, which names the place too."""
        with self._lock:
            if place in self.places:
                return
            self.places.add(place)
            self._new.append((place, str(reason)))
            count = len(self.places)
        if count <= _MOST_LOGGED:
            self._log(f"skipped: {printable(str(reason))}")
        elif count == _MOST_LOGGED + 1:
            self._log("skipped more; from here on they are only counted")

    def take_new(self) -> list[tuple[str, str]]:
        """What was added since the last call, as arguments of `add`, for other processes."""
        with self._lock:
            new, self._new = self._new, []
        return new


@dataclass(frozen=True, eq=False)
class FilePart:
    """Records of a file to learn from. indices: [N], their numbers; weight: how often each comes in an epoch."""

    records: Records
    indices: np.ndarray
    weight: float = 1.0

    def examples_before(self, epoch: int) -> int:
        return math.floor(self.weight * len(self.indices) * epoch)


class ShuffledExamples(Iterator["Example | None"]):
    """Endless examples of one or several files; None in place of a record that can no longer be read.

    Each file's records are shuffled anew whenever all of them have come, and the files are mixed anew each epoch.
    history: the share of single-turn examples that get earlier exchanges.
    """

    def __init__(self, parts: Sequence[FilePart], seed: int, skipped: SkippedExamples, history: float = 0) -> None:
        self._parts, self._seed, self._skipped, self._history = parts, seed, skipped, history
        self._next = 0
        self._epoch, self._start = 0, 0  # the number of the epoch's first example
        self._order: np.ndarray | None = None  # [N, 2] part and number in the file, of the epoch

    def epoch_size(self, epoch: int | None = None) -> int:
        """The number of examples in an epoch, by default that of the latest example."""
        epoch = self._epoch if epoch is None else epoch
        return sum(part.examples_before(epoch + 1) - part.examples_before(epoch) for part in self._parts)

    def left_in_epoch(self) -> int:
        """The number of examples before the next epoch begins; at least 1."""
        while (end := self._start + self.epoch_size(self._epoch)) <= self._next:
            self._epoch, self._start, self._order = self._epoch + 1, end, None
        return end - self._next

    def skip(self, count: int) -> None:
        """Advances by `count` examples without reading them."""
        self._next += count

    def __next__(self) -> Example | None:
        self.left_in_epoch()
        if self._order is None:
            self._order = self._mixed()
        part, index = self._order[self._next - self._start].tolist()
        number = self._next
        self._next += 1
        example = read_example(self._parts[part].records, index, self._skipped)
        if self._history and example and len(example.messages) == 1:
            rng = random.Random(f"{self._seed} {number} history")
            if rng.random() < self._history:
                return replace(example, history=sample_history(rng))
        return example

    def _mixed(self) -> np.ndarray:
        """The order of the epoch."""
        before = [part.examples_before(self._epoch) for part in self._parts]
        counts = [part.examples_before(self._epoch + 1) - n for part, n in zip(self._parts, before, strict=True)]
        mix = np.repeat(np.arange(len(counts)), counts)
        if len(counts) > 1:
            mix = mix[_permutation(len(mix), self._seed, self._epoch)]
        order = np.stack([mix, mix], axis=1)
        for number, (part, first, count) in enumerate(zip(self._parts, before, counts, strict=True)):
            cycles = range(first // len(part.indices), (first + count) // len(part.indices) + 1)
            stream = [part.indices[_permutation(len(part.indices), self._seed, cycle)] for cycle in cycles]
            order[mix == number, 1] = np.concatenate(stream)[first % len(part.indices) :][:count]
        return order


def read_example(records: Records, index: int, skipped: SkippedExamples) -> Example | None:
    """The example of one record; None, and counted in `skipped`, if the record is broken."""
    try:
        return Example.of(records[index])
    except DataError as error:
        skipped.add(f"{records.name}, record {index + 1}", error)
        return None


def _permutation(count: int, seed: int, cycle: int) -> np.ndarray:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + cycle)).numpy()


# An adapter that was only trained on first turns falls back into the style of the earlier answers. The exchanges
# of history.tsv have many styles, those of the shipped adapters among them; their answers carry no loss.
HISTORY = Path(__file__).with_name("history.tsv")


def sample_history(rng: random.Random, use: str = "train") -> tuple[Message, ...]:
    """One or two exchanges of those for `use`: "train", or "score" for those that no adapter was trained on."""
    chosen = rng.sample(_exchanges(use), rng.choice((1, 1, 2)))
    return tuple(message for exchange in chosen for message in exchange)


def with_unseen_history(conversations: Sequence[tuple[Message, ...]]) -> list[tuple[Message, ...]]:
    """Each conversation after earlier exchanges, for scores: always the same ones, none of them from training."""
    rng = random.Random(0)
    return [(*sample_history(rng, "score"), *conversation) for conversation in conversations]


@cache
def _exchanges(use: str) -> list[tuple[Message, Message]]:
    with HISTORY.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [
            # A line break is written as \n, as a row is one line.
            (Message("user", row["user"]), Message("assistant", row["assistant"].replace("\\n", "\n")))
            for row in rows
            if row["use"] == use
        ]
