"""Confidence intervals of means, and significance tests between systems; NaN is ignored.

Shapes: N texts, R resamples.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SAMPLES = 1000  # bootstrap resamples
LEVEL = 0.95  # confidence level
_BLOCK = 1 << 22  # random numbers drawn at a time, to bound memory


@dataclass(frozen=True)
class Interval:
    """A mean over `count` texts and its confidence interval, NaN where undefined."""

    mean: float
    low: float
    high: float
    count: int


def interval(
    values: Sequence[float], *, samples: int = SAMPLES, level: float = LEVEL, seed: int = 0
) -> Interval:
    """Return the mean with its percentile bootstrap interval (Efron 1979).

    The interval of a single value is NaN; without values the mean is NaN, too.
    """
    values_N = _without_nan(values)
    count = len(values_N)
    if count == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    mean = float(values_N.mean())
    if count == 1:
        return Interval(mean, np.nan, np.nan, 1)
    rng = np.random.default_rng(seed)
    means_R = np.concatenate(
        [
            values_N[rng.integers(count, size=(r, count))].mean(axis=1)
            for r in _blocks(samples, count)
        ]
    )
    low, high = np.quantile(means_R, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), count)


def paired(
    left: Sequence[float], right: Sequence[float], *, samples: int = 10_000, seed: int = 0
) -> float:
    """Return the two-sided p-value for equal means of two systems' scores of the same texts.

    Approximate randomization (Noreen 1989): the share of random exchanges within the pairs after
    which the means differ at least as much as observed. If there are at most `samples` exchanges
    (2^N), all of them are tried, and the p-value is exact. NaN if no text has both scores.
    """
    difference_N = _without_nan(np.asarray(left, dtype=float) - np.asarray(right, dtype=float))
    count = len(difference_N)
    if count == 0:
        return np.nan
    # The tolerance counts exchanges whose sum equals the observed one but for rounding.
    observed = abs(difference_N.sum()) - 1e-9 * np.abs(difference_N).sum()
    # Exchanging a pair changes the sign of its difference.
    if 2**count <= samples:
        signs = np.array(list(itertools.product((1, -1), repeat=count)))
        return float((np.abs(signs @ difference_N) >= observed).mean())
    rng = np.random.default_rng(seed)
    hits = 0
    for rows in _blocks(samples, count):
        signs = rng.integers(2, size=(rows, count)) * 2 - 1
        hits += int((np.abs(signs @ difference_N) >= observed).sum())
    # The observed assignment is one of the possible ones, so p is never 0.
    return (hits + 1) / (samples + 1)


def holm(probabilities: Sequence[float]) -> list[float]:
    """Return p-values corrected for the number of tests (Holm 1979); NaN stays NaN.

    The k-th smallest of n is multiplied by n - k + 1; the maximum keeps them in order.
    """
    order = sorted(
        (i for i, p in enumerate(probabilities) if p == p), key=lambda i: probabilities[i]
    )
    adjusted = list(probabilities)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * probabilities[i]))
        adjusted[i] = largest
    return adjusted


def _without_nan(values: Sequence[float] | np.ndarray) -> np.ndarray:
    numbers = np.asarray(values, dtype=float)
    kept: np.ndarray = numbers[~np.isnan(numbers)]
    return kept


def _blocks(samples: int, count: int) -> list[int]:
    """Return numbers of rows that add up to `samples`, for blocks of at most _BLOCK numbers."""
    size = max(1, _BLOCK // count)
    return [min(size, samples - start) for start in range(0, samples, size)]
