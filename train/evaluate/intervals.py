"""Figures with their 95 % intervals: Wilson's for shares, the bootstrap over items for everything else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
    """`transform` of all sums over all counts, such as losses over tokens; items are resampled whole."""
    table = np.array([sums, counts], dtype=float).T
    return resampled(table, lambda total: transform(total[0] / total[1]), seed)


def resampled(statistics: np.ndarray, value: Callable[[np.ndarray], float], seed: int) -> Figure:
    """value: of the summed statistics. statistics: [items, ...]; transformed after summing, as corpus BLEU is."""
    n = len(statistics)
    generator = np.random.default_rng(seed)
    values = [value(statistics[generator.integers(n, size=n)].sum(0)) for _ in range(RESAMPLES)]
    low, high = np.percentile(values, [2.5, 97.5])
    return Figure(float(value(statistics.sum(0))), float(low), float(high), n, "bootstrap")
