"""A report on data before training: broken records, lengths, what max_length truncates, missing images."""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
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
_BAR_WIDTH = 40  # characters


@dataclass(frozen=True)
class Faults:
    """The number of faults of one kind, and the first of them."""

    count: int = 0
    first: tuple[str, ...] = ()

    def __add__(self, fault: str) -> Faults:
        return Faults(self.count + 1, self.first if self.count >= _LISTED_FAULTS else (*self.first, fault))


@dataclass(frozen=True)
class Report:
    """Statistics of a data set; `str(report)` is the text for people. Lengths are in tokens, untruncated.

    truncated: records longer than max_length; answerless: those of them whose answers lie wholly beyond it;
    supervised: tokens with loss, after truncation; images: distinct files; histogram: (from, to, records);
    uncaptioned: images that are no record.
    """

    records: int
    max_length: int
    broken: Faults
    empty_answers: int
    median: int
    percentile_95: int
    longest: int
    histogram: tuple[tuple[int, int, int], ...]
    truncated: int
    answerless: int
    supervised: int
    images: int
    images_opened: bool
    missing: Faults
    unreadable: Faults
    uncaptioned: Faults

    @property
    def clean(self) -> bool:
        """Whether every record can be trained on."""
        return not (self.broken.count or self.missing.count or self.unreadable.count or self.answerless)

    def __str__(self) -> str:
        lines = [f"{self.records:,} records", *_fault_lines(self.broken, "cannot be read")]
        if self.histogram:
            lines += [
                f"tokens: median {self.median:,}, 95 % up to {self.percentile_95:,}, longest {self.longest:,}",
                *(_bar_lines(self.histogram) if len(self.histogram) > 1 else []),
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
    broken, missing, unreadable = Faults(), Faults(), Faults()
    lengths = array("I")
    empty = truncated = answerless = supervised = 0
    seen: set[str] = set()
    for i in tqdm(range(len(records)), desc="check", unit="record", disable=None, leave=False):
        try:
            record = records[i]
            ids, labels, _ = tokeniser.row(Example.of(record), truncate=False)
        except AdapterError as error:
            broken += str(error)
            continue
        lengths.append(len(ids))
        empty += not record.messages[-1].text.strip()
        row_supervised = sum(label != IGNORED for label in labels[:max_length])
        supervised += row_supervised
        truncated += len(ids) > max_length
        answerless += len(ids) > max_length and not row_supervised
        if record.image is None or (key := picture_key(record.image)) in seen:
            continue
        seen.add(key)
        place = f"{_within(record.image, records.path)} ({record.where})"
        if isinstance(record.image, Path) and not os.path.isfile(record.image):  # raises for no name, however odd
            missing += place
        elif images:
            try:
                open_image(picture_source(record.image))
            except BadInput as error:
                unreadable += f"{place}: {error}"
    uncaptioned = records.uncaptioned
    median, percentile_95 = np.percentile(lengths, [50, 95]).round().astype(int) if lengths else (0, 0)
    return Report(
        records=len(records),
        max_length=max_length,
        broken=broken,
        empty_answers=empty,
        median=int(median),
        percentile_95=int(percentile_95),
        longest=max(lengths, default=0),
        histogram=_histogram(lengths),
        truncated=truncated,
        answerless=answerless,
        supervised=supervised,
        images=len(seen),
        images_opened=images,
        missing=missing,
        unreadable=unreadable,
        uncaptioned=Faults(len(uncaptioned), uncaptioned[:_LISTED_FAULTS]),
    )


def _within(image: Picture, data: Path) -> Path | str:
    """The image's path within the data's folder, as its record has it; a path elsewhere is left whole."""
    if not isinstance(image, Path):
        return image.name
    folder = data if data.is_dir() else data.parent
    return image.relative_to(folder) if image.is_relative_to(folder) else image


def _histogram(lengths: array[int]) -> tuple[tuple[int, int, int], ...]:
    """Bins that double in width; the first and the last are not empty."""
    if not lengths:
        return ()
    # A length n lies in bin k if 2^(k-1) <= n < 2^k.
    counts = np.bincount(np.frexp(np.asarray(lengths, dtype=np.float64))[1])
    first = int(np.flatnonzero(counts)[0])
    return tuple((2**k // 2, 2**k - 1, int(counts[k])) for k in range(first, len(counts)))


def _bar_lines(histogram: Sequence[tuple[int, int, int]]) -> list[str]:
    most = max(count for _, _, count in histogram)
    width = len(f"{histogram[-1][1]:,}")
    lines = []
    for low, high, count in histogram:
        bar = "#" * max(round(_BAR_WIDTH * count / most), count > 0)
        lines.append(f"  {low:>{width},} to {high:>{width},} {bar:<{_BAR_WIDTH}} {count:,}")
    return lines


def _fault_lines(faults: Faults, problem: str) -> list[str]:
    if not faults.count:
        return []
    rest = faults.count - len(faults.first)
    return [
        f"{faults.count:,} {problem}:",
        *(f"  {fault}" for fault in faults.first),
        *[f"  and {rest:,} more"][: rest > 0],
    ]
