"""How sure a mean is, and whether two systems differ by more than chance. NaN is left out.

Shapes: N texts, R resamples.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SAMPLES = 1000
LEVEL = 0.95
_BLOCK = 1 << 22  # numbers drawn at a time


@dataclass(frozen=True)
class Interval:
    """A mean over `count` texts and its confidence interval; NaN where there is none."""

    mean: float
    low: float
    high: float
    count: int


def interval(
    values: Sequence[float], *, samples: int = SAMPLES, level: float = LEVEL, seed: int = 0
) -> Interval:
    """Return the mean with its percentile bootstrap interval (Efron 1979)."""
    values_N = _present(values)
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
    """Return how likely a difference of the means as great as this is if the systems are alike.

    `left` and `right` are two systems' scores of the same texts. Approximate randomization (Noreen
    1989): each pair is exchanged at random; all 2^N ways are tried where they are fewer than
    `samples`. Two-sided. NaN if no text has both scores.
    """
    difference_N = _present(np.asarray(left, dtype=float) - np.asarray(right, dtype=float))
    count = len(difference_N)
    if count == 0:
        return np.nan
    observed = abs(difference_N.sum()) - 1e-9 * np.abs(difference_N).sum()
    if 2**count <= samples:
        signs = np.array(list(itertools.product((1, -1), repeat=count)))
        return float((np.abs(signs @ difference_N) >= observed).mean())
    rng = np.random.default_rng(seed)
    hits = 0
    for rows in _blocks(samples, count):
        signs = rng.integers(2, size=(rows, count)) * 2 - 1
        hits += int((np.abs(signs @ difference_N) >= observed).sum())
    return (hits + 1) / (samples + 1)


def holm(probabilities: Sequence[float]) -> list[float]:
    """Correct the results of several tests for their number (Holm 1979); NaN stays."""
    order = sorted(
        (i for i, p in enumerate(probabilities) if p == p), key=lambda i: probabilities[i]
    )
    adjusted = list(probabilities)
    least = 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * probabilities[i]))
        adjusted[i] = least
    return adjusted


def _present(values: Sequence[float] | np.ndarray) -> np.ndarray:
    numbers = np.asarray(values, dtype=float)
    present: np.ndarray = numbers[~np.isnan(numbers)]
    return present


def _blocks(samples: int, count: int) -> list[int]:
    """Cut `samples` rows of `count` numbers into blocks that fit into memory."""
    size = max(1, _BLOCK // count)
    return [min(size, samples - start) for start in range(0, samples, size)]
