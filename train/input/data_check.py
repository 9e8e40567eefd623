"""A report on data before training: broken records, lengths, what max_length truncates, missing images."""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from adapter.base.image_file import open_image
from adapter.errors import AdapterError, BadInput
from train.formats.dataset import Records
from train.formats.record import Picture, picture_key, picture_source
from train.input.examples import Example
from train.input.rows import IGNORED, Tokeniser

_LISTED_FAULTS = 10  # of each kind


@dataclass(frozen=True)
class Faults:
    """The number of faults of one kind, and the first of them."""

    count: int = 0
    first: tuple[str, ...] = ()

    def __add__(self, fault: str) -> Faults:
        return Faults(self.count + 1, self.first if self.count >= _LISTED_FAULTS else (*self.first, fault))


@dataclass
class Report:
    """Statistics of a data set; `str(report)` is the text for people. Lengths are in tokens, untruncated.

    truncated: records longer than max_length; answerless: those of them whose answers lie wholly beyond it;
    supervised: tokens with loss, after truncation; images: distinct files; uncaptioned: images that are no record.
    """

    records: int
    max_length: int
    images_opened: bool
    uncaptioned: Faults
    broken: Faults = Faults()
    missing: Faults = Faults()
    unreadable: Faults = Faults()
    lengths: array[int] = field(default_factory=lambda: array("I"), repr=False)
    empty_answers: int = 0
    truncated: int = 0
    answerless: int = 0
    supervised: int = 0
    images: int = 0

    @property
    def median(self) -> int:
        return self._percentile(50)

    @property
    def longest(self) -> int:
        return max(self.lengths, default=0)

    def _percentile(self, share: float) -> int:
        return round(float(np.percentile(self.lengths, share))) if self.lengths else 0

    @property
    def clean(self) -> bool:
        """Whether every record can be trained on."""
        return not (self.broken.count or self.missing.count or self.unreadable.count or self.answerless)

    def __str__(self) -> str:
        lines = [f"{self.records:,} records", *_fault_lines(self.broken, "cannot be read")]
        if self.lengths:
            lines += [
                f"tokens: median {self.median:,}, 95 % up to {self._percentile(95):,}, longest {self.longest:,}",
                f"at max_length {self.max_length:,}: {self.supervised:,} supervised tokens, {self.truncated:,} "
                f"records truncated, {self.answerless:,} of them lose their whole answer",
            ]
        if self.empty_answers:
            lines.append(f"{self.empty_answers:,} records with an empty answer: they teach to say nothing")
        if self.images:
            opened = "all opened" if self.images_opened else "not opened"
            lines += [f"{self.images:,} images, {opened}", *_fault_lines(self.missing, "missing")]
            lines += _fault_lines(self.unreadable, "are no pictures")
        lines += _fault_lines(self.uncaptioned, "without a caption, and passed over")
        return "\n".join(lines)


def make_report(records: Records, tokeniser: Tokeniser, max_length: int, images: bool = True) -> Report:
    """Reads every record, counts its tokens, and opens every image once unless `images` is False.

    Shows progress on a terminal.
    """
    bare = records.uncaptioned
    report = Report(len(records), max_length, images, Faults(len(bare), bare[:_LISTED_FAULTS]))
    seen: set[str] = set()
    for i in tqdm(range(len(records)), desc="check", unit="record", disable=None, leave=False):
        try:
            record = records[i]
            ids, labels, _ = tokeniser.row(Example.of(record), truncate=False)
        except AdapterError as error:
            report.broken += str(error)
            continue
        supervised = sum(label != IGNORED for label in labels[:max_length])
        report.lengths.append(len(ids))
        report.supervised += supervised
        report.empty_answers += not record.messages[-1].text.strip()
        report.truncated += len(ids) > max_length
        report.answerless += len(ids) > max_length and not supervised
        if record.image is None or (key := picture_key(record.image)) in seen:
            continue
        seen.add(key)
        report.images += 1
        place = f"{_within(record.image, records.path)} ({record.where})"
        if isinstance(record.image, Path) and not os.path.isfile(record.image):  # raises for no name, however odd
            report.missing += place
        elif images:
            try:
                open_image(picture_source(record.image))
            except BadInput as error:
                report.unreadable += f"{place}: {error}"
    return report


def _within(image: Picture, data: Path) -> Path | str:
    """The image's path within the data's folder, as its record has it; a path elsewhere is left whole."""
    if not isinstance(image, Path):
        return image.name
    folder = data if data.is_dir() else data.parent
    return image.relative_to(folder) if image.is_relative_to(folder) else image


def _fault_lines(faults: Faults, problem: str) -> list[str]:
    if not faults.count:
        return []
    rest = faults.count - len(faults.first)
    return [
        f"{faults.count:,} {problem}:",
        *(f"  {fault}" for fault in faults.first),
        *[f"  and {rest:,} more"][: rest > 0],
    ]
