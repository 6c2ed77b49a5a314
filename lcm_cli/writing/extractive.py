"""Extractive summaries: the most representative sentences of a document, without a model.

A greedy search adds, at each step, the sentence that brings the sum of the chosen concepts closest
to the direction of the document's centroid. A redundant sentence brings it no closer, so redundancy
needs no penalty. This is Gholipour Ghalandari (2017), "Revisiting the Centroid-based Method", with
concepts in place of bags of words; the centroid is that of Radev et al. (2004). The opening of a
document has more weight in it: PacSum (Zheng and Lapata 2019) favours earlier sentences, too.
docs/summarize.md compares the method with others.

Shapes: S sentences, D concept dim.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lcm_cli.space.similarity import unit_length

Array = NDArray[np.floating[Any]]
SentenceWeights = Sequence[float] | Array

METHOD = "centroid"
SAME = 1 - 1e-5  # cosine from which two sentences are duplicates

_OPENING, _FADING = 3.0, 10.0  # extra weight of the first sentence, and its decay over the document


def select(concepts: Array, count: int, weights: SentenceWeights | None = None) -> list[int]:
    """Return the `count` most representative sentences, in document order; all if there are fewer.

    `concepts` (S, D) are finite, `weights` (S,) non-negative (default: equal). Deterministic.
    """
    ranked = zip(range(count), rank_sentences(concepts, weights), strict=False)
    return sorted(sentence for _, sentence in ranked)


def rank_sentences(concepts: Array, weights: SentenceWeights | None = None) -> Iterator[int]:
    """Yield all sentences, each the best addition to those before it.

    A longer summary therefore contains every shorter one. Duplicates, sentences of weight 0 and
    zero concepts come last. Each step costs one product with `concepts`.
    """
    # In double precision, as the ties of `_best` need.
    units_SD = unit_length(concepts.astype(np.float64))
    weights_S = np.ones(len(units_SD)) if weights is None else np.asarray(weights, dtype=float)
    centroid_D = unit_length((weights_S @ units_SD)[None])[0]
    central_S = units_SD @ centroid_D
    left_S = np.ones(len(units_SD), dtype=bool)
    new_S = (weights_S > 0) & units_SD.any(axis=1)
    total_D = np.zeros_like(centroid_D)
    while left_S.any():
        new_S &= left_S
        if not new_S.any():
            yield from np.flatnonzero(left_S).tolist()
            return
        best = _best(central_S, units_SD @ total_D, total_D, centroid_D, new_S)
        yield best
        left_S[best] = False
        # Duplicates of a chosen sentence are left for the end.
        new_S &= units_SD @ units_SD[best] < SAME
        total_D += units_SD[best]


def opening_weights(count: int) -> Array:
    """Return weights (S,) for `count` sentences, falling from 4 to nearly 1 by the middle."""
    places_S = np.arange(count) / max(count, 1)
    return 1 + _OPENING * np.exp(-_FADING * places_S)


def _best(
    central_S: Array,
    along_S: Array,
    total_D: Array,
    centroid_D: Array,
    allowed_S: NDArray[np.bool_],
) -> int:
    """Return the allowed sentence that brings the sum of the chosen closest to the centroid.

    `central_S` and `along_S` are the products of each sentence with `centroid_D` and with the sum,
    `total_D`.
    """
    # |t + u|^2 = |t|^2 + 2 tu + 1, clamped because it is 0 where a sentence cancels the sum.
    lengths_S = np.sqrt(np.maximum(total_D @ total_D + 2 * along_S + 1, 1e-12))
    closeness_S = (total_D @ centroid_D + central_S) / lengths_S
    # Rounded so that equal sentences tie, whatever the processor's order of summation.
    return int(np.argmax(np.where(allowed_S, closeness_S.round(9), -np.inf)))
