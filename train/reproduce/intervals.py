"""Means with 95 % intervals, over training seeds and over test questions. Knows numbers only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_SHARE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean, and half the width of its 95 % interval; None where nothing was repeated."""

    mean: float
    half: float | None = None

    @property
    def low(self) -> float:
        return self.mean - (math.inf if self.half is None else self.half)

    @property
    def high(self) -> float:
        return self.mean + (math.inf if self.half is None else self.half)

    def exceeds(self, bound: float) -> bool | None:
        """Whether the true value is above `bound`; None if the interval allows both."""
        if self.low > bound:
            return True
        return False if self.high <= bound else None


def over_seeds(values: Sequence[float]) -> Interval:
    """The mean of one value a seed, by Student's t."""
    return _interval(statistics.fmean(values), [_variance_of_mean(values)] if len(values) > 1 else [])


def difference(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Interval:
    """The mean of `first` minus that of `second`; both are values by seed and question, of the same questions.

    Variances of the seeds, of each side (Welch), and of the questions, of which each is its own control, add up.
    What is deterministic has one seed.
    """
    by_question = [
        statistics.fmean(ours) - statistics.fmean(theirs)
        for ours, theirs in zip(zip(*first, strict=True), zip(*second, strict=True), strict=True)
    ]
    seeds = [[statistics.fmean(run) for run in side] for side in (first, second) if len(side) > 1]
    parts = [_variance_of_mean(values) for values in (*seeds, by_question) if len(values) > 1]
    return _interval(statistics.fmean(by_question), parts)


def ratio(first: Sequence[float], second: Sequence[float]) -> Interval:
    """The logarithm of the ratio of two positive values, one a seed (Welch)."""
    sides = [[math.log(value) for value in side] for side in (first, second)]
    mean = statistics.fmean(sides[0]) - statistics.fmean(sides[1])
    return _interval(mean, [_variance_of_mean(side) for side in sides if len(side) > 1])


def _variance_of_mean(values: Sequence[float]) -> tuple[float, int]:
    """And its degrees of freedom."""
    return statistics.variance(values) / len(values), len(values) - 1


def _interval(mean: float, parts: Sequence[tuple[float, int]]) -> Interval:
    """parts: variances of the mean that add up, each with its degrees of freedom."""
    from scipy.stats import t

    if not parts:
        return Interval(mean)
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return Interval(mean, 0.0)
    freedom = variance**2 / sum(part**2 / count for part, count in parts)  # Welch and Satterthwaite's
    return Interval(mean, float(t.ppf((1 + _SHARE) / 2, freedom)) * math.sqrt(variance))
