"""Figures with their 95 % intervals: Wilson's for shares, the bootstrap over items, Student's t over seeds."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, variance

import numpy as np

RESAMPLES = 1000
_Z = 1.959963984540054  # of 95 %


@dataclass(frozen=True)
class Figure:
    """A measured value, its 95 % interval, if known, how that was computed, and the number of items it is over."""

    value: float
    low: float | None
    high: float | None
    n: int
    interval: str  # Wilson, bootstrap, or another program's


def share(right: Sequence[bool]) -> Figure:
    """The share of true ones in percent, with Wilson's score interval."""
    n = len(right)
    p = sum(right) / n
    centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    # min and max: at 0 and 1 rounding would leave the value outside.
    return Figure(100 * p, 100 * min(p, centre - half), 100 * max(p, centre + half), n, "Wilson")


def mean(values: Sequence[float], seed: int, scale: float = 1.0) -> Figure:
    """The mean of a value of each item, times `scale`."""
    return ratio([scale * value for value in values], [1] * len(values), seed)


def ratio(
    sums: Sequence[float], counts: Sequence[int], seed: int, transform: Callable[[float], float] = float
) -> Figure:
    """`transform` of all sums over all counts, such as losses over tokens; items are resampled whole. What is too
    large for a number is infinite.
    """
    table, n = np.array([sums, counts], dtype=float).T, len(sums)
    generator = np.random.default_rng(seed)
    totals = [table.sum(0), *(table[generator.integers(n, size=n)].sum(0) for _ in range(RESAMPLES))]
    with np.errstate(over="ignore", invalid="ignore"):
        value, *values = [float(transform(total[0] / total[1])) for total in totals]
        low, high = np.percentile(values, [2.5, 97.5])
    if math.isclose(low, high, rel_tol=1e-5):  # all items are alike, which resampling cannot tell from certainty
        return Figure(value, None, None, n, "bootstrap")
    return Figure(value, float(low), float(high), n, "bootstrap")


# Over training seeds and test questions.


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
    return _welch(fmean(values), [values])


def difference(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Interval:
    """The mean of `first` minus that of `second`; both are values by seed and question, of the same questions.

    Variances of the seeds, of each side (Welch), and of the questions, of which each is its own control, add up.
    What is deterministic has one seed.
    """
    by_question = (np.mean(first, axis=0) - np.mean(second, axis=0)).tolist()
    return _welch(fmean(by_question), [*([fmean(run) for run in side] for side in (first, second)), by_question])


def _welch(mean: float, samples: Sequence[Sequence[float]]) -> Interval:
    """samples: the variances of their means add up; of one value there is none."""
    from scipy.stats import t

    parts = [(variance(values) / len(values), len(values) - 1) for values in samples if len(values) > 1]
    if not parts:
        return Interval(mean)
    total = sum(part for part, _ in parts)
    if total == 0:
        return Interval(mean, 0.0)
    freedom = total**2 / sum(part**2 / count for part, count in parts)  # Welch and Satterthwaite's
    return Interval(mean, float(t.ppf(0.975, freedom)) * math.sqrt(total))
