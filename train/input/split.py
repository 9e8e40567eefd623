"""Which records are learnt and which are held out, so that no picture file and no conversation is on both sides.

Holds two hashes and no text of each record, and opens no picture that is a file.
"""

import dataclasses
import hashlib
import itertools
import math
import os
import random
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import normalize

import numpy as np
import torch
from tqdm import tqdm

from train.config import DataConfig, TrainConfig
from train.formats.dataset import DataError, Records, open_records
from train.formats.record import picture_key
from train.input.examples import Example, FilePart, ShuffledExamples, SkippedExamples, read_example

# Records with the same request are one group. A request that more records share than these ("Hello", or one of the
# few phrasings of a task) is common: records with it are grouped by their whole text.
_COMMON_COUNT, _COMMON_SHARE = 20, 0.02  # a common request has more records than both


class FileExamples:
    """The examples of a run on files: endless and shuffled by the seed for "train", once for "validation".

    name: of its files. parts: what is learnt; held_out: (records, index) for every evaluation. digest: of records
    and split. pictures: how many records have one. description: of the split, a sentence.
    """

    def __init__(self, data: Sequence[DataConfig], config: TrainConfig, skipped: SkippedExamples) -> None:
        """Reads every record once. Raises DataError."""
        self._config, self._skipped = config, skipped
        sources = [_SplitSource(one, skipped) for one in data]
        self.name = " and ".join(source.records.name for source in sources)
        self.pictures = sum(int(source.scan.pictured.sum()) for source in sources)
        self.digest = hashlib.sha256("\n".join(source.digest for source in sources).encode()).hexdigest()
        common = _common_requests([s for source in sources for s in (source.scan, source.separate_scan) if s])
        # How many of an evaluation's rows each source gives: of those that hold out, as they share the steps.
        weights = [source.data.weight * len(source.scan.indices) * source.holds_out for source in sources]
        every = itertools.accumulate(weights, initial=0)
        ends = [round(config.held_out * end / (sum(weights) or 1)) for end in every]
        wanted = [end - start for start, end in itertools.pairwise(ends)]
        groups = [source.scan.groups(common) for source in sources]
        chosen = [
            _choose_groups(of_source, count, source.share, config.seed)
            for source, of_source, count in zip(sources, groups, wanted, strict=True)
        ]
        # A picture may be in several files: what one of them holds out, none teaches.
        learnt = [~np.isin(of_source, np.concatenate(chosen)) for of_source in groups]
        learnt_groups = np.concatenate([of_source[which] for of_source, which in zip(groups, learnt, strict=True)])
        self.parts = tuple(source.part(which) for source, which in zip(sources, learnt, strict=True))
        self.learnt = sum(len(part.indices) for part in self.parts)
        self.held_out: list[tuple[Records, int]] = []
        evaluated: set[int] = set()
        also: list[str] = []
        neither = sum(len(source.scan.indices) for source in sources) - self.learnt
        for source, of_source, own, count in zip(sources, groups, chosen, wanted, strict=True):
            records, found = source.records, source.scan
            which = np.isin(of_source, own)
            if source.separate is not None and source.separate_scan is not None:
                records, found = source.separate, source.separate_scan
                of_source = found.groups(common)
                which = ~np.isin(of_source, learnt_groups)
                if taught := int((~which).sum()):
                    also.append(f"; {taught:,} of '{records.name}' are left out, as they are learnt")
                if count and not which.any():
                    raise DataError(
                        f"All that '{records.name}' holds out is in the data to learn from too. Give other "
                        "records as data.validation, or a share of these."
                    )
            _, first, inverse = np.unique(of_source[which], return_index=True, return_inverse=True)
            pool = np.flatnonzero(which)[np.argsort(first[inverse], kind="stable")]  # those of one group together
            drawn = pool[draw_evenly(len(pool), count, config.seed)]
            self.held_out += [(records, int(index)) for index in found.indices[drawn]]
            evaluated.update(of_source[drawn].tolist())
            neither -= len(drawn) * (records is source.records)
        if self.pictures and config.vision is not None:  # perhaps in a field that is not read
            blind = (source.records.name for source in sources if not source.scan.pictured.any())
            also += [f"; no record of '{name}' has a picture" for name in blind]
        kinds = len(np.unique(learnt_groups))
        text = f"{self.learnt:,} records of {kinds:,} pictures or conversations to learn from, "
        if self.held_out:
            text += f"{len(self.held_out):,} of {len(evaluated):,} others held out for every evaluation"
        elif any(wanted):
            text += "none held out, as each picture or conversation is more than data.validation allows"
        else:
            text += "none held out"
        if neither:
            text += f", {neither:,} used for neither, as they share a picture or a conversation with held-out ones"
        self.description = "".join([text, *also])

    def __call__(self, split: str) -> Iterator[Example | None]:
        if split == "train":
            return self._train()
        return (read_example(records, index, self._skipped) for records, index in self.held_out)

    def _train(self) -> ShuffledExamples:
        return ShuffledExamples(self.parts, self._config.seed, self._skipped, self._config.history)

    def with_steps(self, config: TrainConfig) -> TrainConfig:
        """The configuration with epochs converted to steps: in each a record comes as often as its weight says."""
        if config.steps:
            return config
        whole, stream = int(config.epochs), self._train()
        steps = [math.ceil(stream.epoch_size(epoch) / config.batch_size) for epoch in range(whole + 1)]
        total = sum(steps[:whole]) + math.ceil(round(steps[whole] * (config.epochs - whole), 6))
        return dataclasses.replace(config, steps=max(1, total), epochs=0)


class _SplitSource:
    """The records of one DataConfig, and those of its validation file or split if it has one, read once."""

    def __init__(self, data: DataConfig, skipped: SkippedExamples) -> None:
        def opened(path: str, split: str | None) -> Records:
            return open_records(path, data.format, data.images, split, data.config)

        self.data = data
        self.records = opened(data.path, data.split)
        self.separate: Records | None = None
        if isinstance(data.validation, str):
            is_split = self.records.has_splits and re.fullmatch(r"\w+", data.validation)
            self.separate = opened(data.path, data.validation) if is_split else opened(data.validation, None)
        elif data.validation and self.records.format == "scienceqa" and data.split in (None, "train"):
            self.separate = opened(data.path, "val")
        self.share = 0.0 if isinstance(data.validation, str) or self.separate is not None else data.validation
        self.holds_out = self.share > 0 or self.separate is not None
        self.scan = _scan(self.records, skipped)
        self.separate_scan = None if self.separate is None else _scan(self.separate, skipped)

    @property
    def digest(self) -> str:
        validation = self.share if self.separate_scan is None else self.separate_scan.digest
        images = "" if self.data.images is None else Path(self.data.images).name
        return f"{self.scan.digest} {validation} {images} {self.data.weight}"

    def part(self, learnt: np.ndarray) -> FilePart:
        """learnt: [N], which of the readable records are learnt. Raises DataError if none is."""
        if not learnt.any():
            raise DataError(f"'{self.data.path}' has no record left to learn from. Lower data.validation.")
        return FilePart(self.records, self.scan.indices[learnt], self.data.weight)


@dataclass(frozen=True, eq=False)
class _Scan:
    """What tells the N readable records of a file apart. indices: their numbers in the file. pictured: [N].

    requests: hashes of the picture or else the first request; conversations: of everything. digest: of the file.
    """

    indices: np.ndarray
    requests: np.ndarray
    conversations: np.ndarray
    pictured: np.ndarray
    digest: str

    def groups(self, common: np.ndarray) -> np.ndarray:
        """[N], the hash of each record's group, to be kept on one side. common: of _common_requests."""
        return np.where(np.isin(self.requests, common), self.conversations, self.requests)


def _scan(records: Records, skipped: SkippedExamples) -> _Scan:
    """Reads every record once, with progress on a terminal. Raises the first fault if all are broken."""
    indices, requests, conversations, pictured = array("q"), array("Q"), array("Q"), array("b")
    digest = hashlib.sha256(f"{records.format} {len(records)}\n".encode())
    folder = f"{os.path.abspath(records.images)}{os.sep}"
    fault: DataError | None = None
    for i in tqdm(range(len(records)), desc="read", unit="record", disable=None, leave=False):
        try:
            record = records[i]
        except DataError as error:
            fault = fault or error
            skipped.add(f"{records.name}, record {i + 1}", error)
            digest.update(b"broken\n")
            continue
        indices.append(i)
        pictured.append(record.image is not None)
        picture = "" if record.image is None else picture_key(record.image)
        turns = [(m.role, " ".join(normalize("NFKC", m.full_text).casefold().split())) for m in record.messages]
        first = next((text for role, text in turns if role == "user"), "")
        requests.append(_hash(f"picture {picture}" if picture else f"text {first}"))
        conversations.append(_hash(repr((picture, turns))))
        if isinstance(record.image, Path):  # by its name within the folder, so that the folder may move
            picture = os.path.abspath(record.image).removeprefix(folder)
        content = picture, [(turn.role, turn.text, turn.input) for turn in record.messages]
        digest.update(f"{content!r}{record.unlearnt or ''}\n".encode())
    if fault is not None and not indices:
        raise DataError(f"'{records.name}' has no record that can be read. {fault}", fault.detail)
    numbers, has_picture = np.array(indices), np.array(pictured, dtype=bool)
    return _Scan(numbers, np.array(requests), np.array(conversations), has_picture, digest.hexdigest())


def _common_requests(scans: Sequence[_Scan]) -> np.ndarray:
    """Hashes of the requests that are common (see _COMMON_COUNT), of records without a picture only."""
    requests, counts = np.unique(np.concatenate([s.requests[~s.pictured] for s in scans]), return_counts=True)
    return requests[counts > max(_COMMON_COUNT, int(_COMMON_SHARE * counts.sum()))]


def _choose_groups(groups: np.ndarray, most: int, share: float, seed: int) -> np.ndarray:
    """The hashes of the groups to hold out, drawn by the seed: `most` groups with `share` of the records, at most.

    groups: [N], of each record. Where even the smallest group is above that share, one of the smallest is held out
    if it has at most a quarter of the records. A share of less than one record holds out nothing.
    """
    unique, first, counts = np.unique(groups, return_index=True, return_counts=True)
    room = int(share * len(groups))
    if room and (smallest := int(counts.min())) <= len(groups) // 4:
        room = max(room, smallest)
    order = torch.randperm(len(unique), generator=torch.Generator().manual_seed(seed)).numpy()
    chosen: list[int] = []
    for group in np.argsort(first)[order]:
        if len(chosen) == most or not room:
            break
        if counts[group] <= room:
            room -= int(counts[group])
            chosen.append(group)
    return unique[chosen]


def draw_evenly(count: int, wanted: int, seed: int) -> list[int]:
    """`wanted` of the numbers below `count`, ascending: one at random from each of as many equal stretches."""
    if count <= wanted:
        return list(range(count))
    rng = random.Random(f"{seed} held out")
    return [rng.randrange(i * count // wanted, (i + 1) * count // wanted) for i in range(wanted)]


def _hash(text: str) -> int:
    data = text.encode("utf-8", "surrogatepass")  # of names of files
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
