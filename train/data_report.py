"""What training data would do before it is trained on: what is broken, how long it is, what would be cut. Knows
records and their token ids; knows nothing of models.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from adapter.errors import AdapterError, BadInput
from adapter.method.vision import open_image
from train.data import IGNORED
from train.formats.records import Record

_NAMED = 10  # of each fault
_BAR = 40  # characters
Tokenise = Callable[[Record], tuple[Sequence[int], Sequence[int]]]


@dataclass(frozen=True)
class Faults:
    """How many there are, and the first of them."""

    count: int = 0
    first: tuple[str, ...] = ()

    def __add__(self, fault: str) -> Faults:
        return Faults(self.count + 1, self.first if self.count >= _NAMED else (*self.first, fault))


@dataclass(frozen=True)
class Report:
    """The figures of a data set; `str(report)` is the text for people. Lengths are in tokens, before any cut.

    truncated: records longer than max_length; answerless: those of them whose answers lie wholly beyond it;
    supervised: tokens with loss, after the cut; images: different files named; histogram: (from, to, records);
    uncaptioned: pictures that are no record.
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
        """Whether every record can be learned from."""
        return not (self.broken.count or self.missing.count or self.unreadable.count or self.answerless)

    def __str__(self) -> str:
        lines = [f"{self.records:,} records", *_named(self.broken, "cannot be read")]
        if self.histogram:
            lines += [
                f"tokens: median {self.median:,}, 95 % up to {self.percentile_95:,}, longest {self.longest:,}",
                *_bars(self.histogram),
                f"at max_length {self.max_length:,}: {self.supervised:,} supervised tokens, {self.truncated:,} "
                f"records truncated, {self.answerless:,} of them lose their whole answer",
            ]
        if self.empty_answers:
            lines.append(f"{self.empty_answers:,} records with an empty answer: they teach to say nothing")
        if self.images:
            opened = "all opened" if self.images_opened else "not opened"
            lines += [f"{self.images:,} images, {opened}", *_named(self.missing, "missing")]
            lines += _named(self.unreadable, "are no pictures")
        lines += _named(self.uncaptioned, "without a caption, and passed over")
        return "\n".join(lines)


def check(
    records: Sequence[Record],
    tokenise: Tokenise,
    max_length: int,
    images: bool = True,
    uncaptioned: Sequence[str] = (),
) -> Report:
    """Read every record, count its tokens, and open every image once unless `images` is False.

    tokenise: a record's (ids, labels), uncut, labels -100 where there is no loss; an AdapterError of its counts
    as a broken record. uncaptioned: as Records has it. Shows progress on a terminal.
    """
    broken, missing, unreadable = Faults(), Faults(), Faults()
    lengths = array("I")
    empty = truncated = answerless = supervised = 0
    seen: set[Path] = set()
    for i in tqdm(range(len(records)), desc="check", unit="record", disable=None, leave=False):
        try:
            record = records[i]
            ids, labels = tokenise(record)
        except AdapterError as error:
            broken += str(error)
            continue
        lengths.append(len(ids))
        empty += not record.messages[-1].text.strip()
        kept = sum(label != IGNORED for label in labels[:max_length])
        supervised += kept
        truncated += len(ids) > max_length
        answerless += len(ids) > max_length and not kept
        if record.image is None or record.image in seen:
            continue
        seen.add(record.image)
        if not os.path.isfile(record.image):  # which raises for no name, however odd
            missing += f"{record.image} ({record.where})"
        elif images:
            try:
                open_image(record.image)
            except BadInput as error:
                unreadable += f"{record.image} ({record.where}): {error}"
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
        uncaptioned=Faults(len(uncaptioned), tuple(uncaptioned[:_NAMED])),
    )


def _histogram(lengths: array[int]) -> tuple[tuple[int, int, int], ...]:
    """Bins that double, since lengths are spread about evenly over those; none of them empty at either end."""
    if not lengths:
        return ()
    # A length n lies in bin k if 2^(k-1) <= n < 2^k.
    counts = np.bincount(np.frexp(np.asarray(lengths, dtype=np.float64))[1])
    first = int(np.flatnonzero(counts)[0])
    return tuple((2**k // 2, 2**k - 1, int(counts[k])) for k in range(first, len(counts)))


def _bars(histogram: Sequence[tuple[int, int, int]]) -> list[str]:
    most = max(count for _, _, count in histogram)
    width = len(f"{histogram[-1][1]:,}")
    lines = []
    for low, high, count in histogram:
        bar = "#" * max(round(_BAR * count / most), count > 0)
        lines.append(f"  {low:>{width},} to {high:>{width},} {bar:<{_BAR}} {count:,}")
    return lines


def _named(faults: Faults, what: str) -> list[str]:
    if not faults.count:
        return []
    rest = faults.count - len(faults.first)
    return [
        f"{faults.count:,} {what}:",
        *(f"  {fault}" for fault in faults.first),
        *[f"  and {rest:,} more"][: rest > 0],
    ]
