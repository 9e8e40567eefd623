"""Examples: conversations that end in an answer to learn, from records in files."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import random
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from adapter.base.template import Message
from adapter.method.vision import VisualFeatures
from train.config import DataConfig, TrainConfig
from train.formats.dataset import DataError, Record, Records, open_records
from train.formats.record import Picture
from train.input.history import sample_history
from train.input.split import Scan, by_group, choose_groups, common_requests, draw_evenly, scan

_MOST_LOGGED = 20  # examples that cannot be used


@dataclass(frozen=True)
class Example:
    """A conversation that ends in a user turn, the answer to learn, and the image that the user showed.

    features, picture: the image, either encoded or as a file. all_turns: earlier assistant turns carry loss too.
    where: the record's place in its file, for messages. history: earlier exchanges that carry no loss and are left
    out of rows that would be too long with them. unlearnt: the numbers of messages that carry no loss either.
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
            self._log(f"skipped: {reason}")
        elif count == _MOST_LOGGED + 1:
            self._log("skipped more; from here on they are only counted")

    def take_new(self) -> list[tuple[str, str]]:
        """What was added since the last call, as arguments of `add`, for other processes."""
        with self._lock:
            new, self._new = self._new, []
        return new


@dataclass(frozen=True, eq=False)
class Part:
    """Records of one file to learn from. indices: [N], their numbers in the file; weight: how often each of them
    comes in an epoch.
    """

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

    def __init__(self, parts: Sequence[Part], seed: int, skipped: SkippedExamples, history: float = 0) -> None:
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
        skipped.add(_place(records, index), error)
        return None


class FileExamples:
    """The examples of a run on files: endless and shuffled by the seed for "train", once for "validation".

    name: of its files. parts: what is learnt; held_out: the (records, index) that every evaluation uses.
    digest: of the content of all records and of how they are split, in hexadecimal: with another one, a run cannot
    be resumed. readable: how many records can be read; pictures: how many of these have one.
    """

    def __init__(self, data: Sequence[DataConfig], config: TrainConfig, skipped: SkippedExamples) -> None:
        """Reads every record once. Raises DataError."""
        self._config, self._skipped = config, skipped
        sources = [_Source(one, skipped) for one in data]
        self.name = " and ".join(source.records.name for source in sources)
        self.pictures = sum(int(source.scan.pictured.sum()) for source in sources)
        self.digest = hashlib.sha256("\n".join(source.digest for source in sources).encode()).hexdigest()
        common = common_requests([s for source in sources for s in (source.scan, source.separate_scan) if s])
        wanted = _rows_of_each(sources, config.held_out)
        groups = [source.scan.groups(common) for source in sources]
        chosen = [
            choose_groups(of_source, count, source.share, config.seed)
            for source, of_source, count in zip(sources, groups, wanted, strict=True)
        ]
        # A picture may be in several files: what one of them holds out, none teaches.
        learnt = [~np.isin(of_source, np.concatenate(chosen)) for of_source in groups]
        learnt_groups = np.concatenate([of_source[which] for of_source, which in zip(groups, learnt, strict=True)])
        self.parts = tuple(source.part(which) for source, which in zip(sources, learnt, strict=True))
        self.held_out: list[tuple[Records, int]] = []
        evaluated: set[int] = set()
        for source, of_source, own, count in zip(sources, groups, chosen, wanted, strict=True):
            records, found = source.records, source.scan
            which = np.isin(of_source, own)
            if source.separate is not None and source.separate_scan is not None:
                records, found = source.separate, source.separate_scan
                of_source = found.groups(common)
                which = ~np.isin(of_source, learnt_groups)
                if count and not which.any():
                    raise DataError(
                        f"All that '{records.name}' holds out is in the data to learn from too. Give other "
                        "records as data.validation, or a share of these."
                    )
            pool = np.flatnonzero(which)[by_group(of_source[which])]
            drawn = pool[draw_evenly(len(pool), count, config.seed)]
            self.held_out += [(records, int(index)) for index in found.indices[drawn]]
            evaluated.update(of_source[drawn].tolist())
        self._should_hold_out = any(wanted)
        self._groups = len(np.unique(learnt_groups)), len(evaluated)
        self.readable = sum(len(source.scan.indices) for source in sources)
        self._own_held_out = sum(records is source.records for source in sources for records, _ in self.held_out)

    def describe(self) -> str:
        """How the records are split, in a sentence."""
        neither = self.readable - self.learnt - self._own_held_out
        learnt, held_out = self._groups
        text = f"{self.learnt:,} records of {learnt:,} pictures or conversations to learn from, "
        if self.held_out:
            text += f"{len(self.held_out):,} of {held_out:,} others held out for every evaluation"
        elif self._should_hold_out:
            text += "none held out, as each picture or conversation is more than data.validation allows"
        else:
            text += "none held out"
        if neither:
            text += f", {neither:,} used for neither, as they share a picture or a conversation with held-out ones"
        return text

    @property
    def learnt(self) -> int:
        """The number of records to learn from."""
        return sum(len(part.indices) for part in self.parts)

    def __call__(self, split: str) -> Iterator[Example | None]:
        if split == "train":
            return self._train()
        return (read_example(records, index, self._skipped) for records, index in self.held_out)

    def _train(self) -> ShuffledExamples:
        return ShuffledExamples(self.parts, self._config.seed, self._skipped, self._config.history)

    def with_steps(self, config: TrainConfig) -> TrainConfig:
        """The configuration with its epochs converted to steps: in each of them, every record comes once."""
        if config.steps:
            return config
        whole, stream = int(config.epochs), self._train()
        steps = [math.ceil(stream.epoch_size(epoch) / config.batch_size) for epoch in range(whole + 1)]
        total = sum(steps[:whole]) + math.ceil(steps[whole] * (config.epochs - whole))
        return dataclasses.replace(config, steps=max(1, total), epochs=0)


class _Source:
    """The records of one DataConfig, and those of its validation file or split if it has one, read once."""

    def __init__(self, data: DataConfig, skipped: SkippedExamples) -> None:
        self.data = data
        self.records = _open(data, data.path, data.split)
        self.separate: Records | None = None
        if isinstance(data.validation, str):
            is_split = self.records.has_splits and re.fullmatch(r"\w+", data.validation)
            where = (data.path, data.validation) if is_split else (data.validation, None)
            self.separate = _open(data, *where)
        elif self.records.format == "scienceqa" and data.split in (None, "train"):
            self.separate = _open(data, data.path, "val")
        self.share = 0.0 if isinstance(data.validation, str) or self.separate is not None else data.validation
        self.scan = _scan(self.records, skipped)
        self.separate_scan = None if self.separate is None else _scan(self.separate, skipped)

    @property
    def holds_out(self) -> bool:
        return self.share > 0 or self.separate is not None

    @property
    def digest(self) -> str:
        validation = self.share if self.separate_scan is None else self.separate_scan.digest
        images = "" if self.data.images is None else Path(self.data.images).name
        return f"{self.scan.digest} {validation} {images} {self.data.weight}"

    def part(self, learnt: np.ndarray) -> Part:
        """learnt: [N], which of the readable records are learnt. Raises DataError if none is."""
        if not learnt.any():
            raise DataError(f"'{self.data.path}' has no record left to learn from. Lower data.validation.")
        return Part(self.records, self.scan.indices[learnt], self.data.weight)


def _rows_of_each(sources: Sequence[_Source], rows: int) -> list[int]:
    """How many of an evaluation's rows each source gives: of those that hold out, as they share the steps."""
    weights = [source.data.weight * len(source.scan.indices) * source.holds_out for source in sources]
    ends = [round(rows * end / (sum(weights) or 1)) for end in itertools.accumulate(weights, initial=0)]
    return [end - start for start, end in itertools.pairwise(ends)]


def _scan(records: Records, skipped: SkippedExamples) -> Scan:
    """Raises DataError, the first fault, if all records are broken."""
    faults: list[DataError] = []

    def skip(index: int, fault: DataError) -> None:
        if not faults:
            faults.append(fault)
        skipped.add(_place(records, index), fault)

    found = scan(records, skip)
    if not len(found.indices):
        raise DataError(f"'{records.name}' has no record that can be read. {faults[0]}", faults[0].detail)
    return found


def _place(records: Records, index: int) -> str:
    return f"{records.name}, record {index + 1}"


def _open(data: DataConfig, path: str, split: str | None) -> Records:
    return open_records(path, data.format, data.images, split, data.config)


def _permutation(count: int, seed: int, cycle: int) -> np.ndarray:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + cycle)).numpy()
