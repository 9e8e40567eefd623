"""A report on data before training: broken records, lengths, what max_length truncates, missing images."""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from adapter.base.image_file import open_image
from adapter.base.template import without_control
from adapter.errors import AdapterError, BadInput, printable
from train.formats.dataset import Records
from train.formats.record import picture_key, picture_source
from train.input.examples import Example
from train.input.rows import IGNORED, Tokeniser

_LISTED_FAULTS = 10  # of each kind


@dataclass
class Report:
    """Statistics of a data set; `str(report)` is the text for people. Lengths are in tokens, untruncated.

    The lists name each fault; uncaptioned: images without a record. Records: with_control: with control tokens;
    truncated: over max_length; answerless: without any answer then. supervised: tokens with loss; images: files.
    """

    records: int
    max_length: int
    uncaptioned: Sequence[str]
    broken: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    lengths: array[int] = field(default_factory=lambda: array("I"), repr=False)
    empty_answers: int = 0
    with_control: int = 0
    truncated: int = 0
    answerless: int = 0
    repeated: int = 0  # records whose faulty image is listed for another one
    supervised: int = 0
    images: int = 0

    @property
    def clean(self) -> bool:
        """Whether every record can be trained on."""
        return not (self.broken or self.missing or self.unreadable or self.answerless)

    def __str__(self) -> str:
        lines = [f"{self.records:,} records", *_listed(self.broken, "cannot be read")]
        if self.lengths:
            median, most, longest = np.percentile(self.lengths, (50, 95, 100)).round().astype(int)
            lines += [
                f"tokens: median {median:,}, 95 % up to {most:,}, longest {longest:,}",
                f"at max_length {self.max_length:,}: {self.supervised:,} supervised tokens, {self.truncated:,} "
                f"records truncated, {self.answerless:,} of them lose their whole answer",
            ]
        if self.empty_answers:
            lines.append(f"{self.empty_answers:,} records with an empty answer: they teach to say nothing")
        if self.with_control:
            lines.append(
                f"{self.with_control:,} records with control tokens: the template writes these, take them out"
            )
        if self.images:
            lines.append(f"{self.images:,} images{'' if self.missing or self.unreadable else ', all opened'}")
            lines += [*_listed(self.missing, "missing"), *_listed(self.unreadable, "are no pictures")]
        return "\n".join([*lines, *_listed(self.uncaptioned, "without a caption, and passed over")])


def _listed(faults: Sequence[str], problem: str) -> list[str]:
    lines = [f"{len(faults):,} {problem}:", *(f"  {printable(fault)}" for fault in faults[:_LISTED_FAULTS])]
    if len(faults) > _LISTED_FAULTS:
        lines.append(f"  and {len(faults) - _LISTED_FAULTS:,} more")
    return lines if faults else []


def make_report(records: Records, tokeniser: Tokeniser, max_length: int, images: bool = True) -> Report:
    """Reads every record, with progress on a terminal. images: whether they are learnt from, so opened."""
    report = Report(len(records), max_length, records.uncaptioned)
    folder = records.path if records.path.is_dir() else records.path.parent
    seen: dict[str, bool] = {}  # pictures, and whether they can be read
    for i in tqdm(range(len(records)), desc="check", unit="record", disable=None, leave=False):
        place = ""
        try:
            record = records[i]
            place = f"{record.where}: "
            ids, labels, _ = tokeniser.row(Example.of(record), truncate=False)
        except AdapterError as error:
            report.broken.append(f"{place}{error}")
            continue
        supervised = sum(label != IGNORED for label in labels[:max_length])
        report.lengths.append(len(ids))
        report.supervised += supervised
        report.empty_answers += not record.messages[-1].text.strip()
        if tokeniser.template != "raw":
            report.with_control += any(without_control(tokeniser.tokenizer, m) != m for m in record.messages)
        report.truncated += len(ids) > max_length
        report.answerless += len(ids) > max_length and not supervised
        image = record.image
        if image is None or not images:
            continue
        if (key := picture_key(image)) in seen:
            report.repeated += not seen[key]
            continue
        seen[key] = False
        report.images += 1
        name: object = image.name
        if isinstance(image, Path):  # its path within the data's folder; of one elsewhere the whole
            name = image.relative_to(folder) if image.is_relative_to(folder) else image
        place = f"{name} ({record.where})"
        if isinstance(image, Path) and not os.path.isfile(image):  # raises for no name, however odd
            report.missing.append(place)
            continue
        try:
            open_image(picture_source(image))
            seen[key] = True
        except BadInput as error:
            report.unreadable.append(f"{place}: {error}")
    return report
