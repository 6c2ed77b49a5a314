"""A summary made of a document's own sentences, chosen by their concepts. It needs no weights.

The sentences are chosen one by one so that those chosen, taken together, point where the whole
document points: each step adds the one that brings the sum of the chosen closest to the centroid.
What was said already brings it no closer, so redundancy needs no penalty. This is Gholipour
Ghalandari (2017), "Revisiting the Centroid-based Method", with concepts for his bags of words; the
centroid is that of Radev et al. (2004). In it the opening counts more, as sentences before others
do in PacSum (Zheng and Lapata 2019). docs/summarize.md compares it with other methods.

Shapes: S sentences, D concept dim.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
SentenceWeights = Sequence[float] | Array

METHOD = "centroid"
SAME = 1 - 1e-5  # cosine from which two sentences say the same

_OPENING, _FADING = 3.0, 10.0  # how much more the first sentence counts, and how soon that ends


def select(concepts: Array, count: int, weights: SentenceWeights | None = None) -> list[int]:
    """Return the `count` sentences that stand best for the document, in its order.

    `concepts` (S, D), finite. `weights` (S,): how much each sentence counts, none of them negative;
    all alike by default. Fewer than `count` only if there are no more. Deterministic.
    """
    ranked = zip(range(count), rank_sentences(concepts, weights), strict=False)
    return sorted(sentence for _, sentence in ranked)


def rank_sentences(concepts: Array, weights: SentenceWeights | None = None) -> Iterator[int]:
    """Yield all sentences, each the best addition to those before it.

    A longer summary so contains the shorter one. Sentences that say nothing new (repeated, of
    weight 0, without direction) come last. Each costs one product with `concepts`.
    """
    units_SD = _unit(concepts)
    weights_S = np.ones(len(units_SD)) if weights is None else np.asarray(weights, dtype=float)
    centroid_D = _unit((weights_S @ units_SD)[None])[0]
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
        new_S &= units_SD @ units_SD[best] < SAME
        total_D += units_SD[best]


def opening_weights(count: int) -> Array:
    """Return weights (S,) for `count` sentences: about 4 for the first, 1 from the middle on."""
    places_S = np.arange(count) / max(count, 1)
    return 1 + _OPENING * np.exp(-_FADING * places_S)


def _best(
    central_S: Array,
    along_S: Array,
    total_D: Array,
    centroid_D: Array,
    allowed_S: NDArray[np.bool_],
) -> int:
    """Return the sentence that brings the sum of the chosen, `total_D`, closest to the centroid.

    `central_S` and `along_S` are its products with the centroid and with the sum.
    """
    # |t + u|^2 = |t|^2 + 2 tu + 1; next to nothing where a sentence undoes the sum.
    lengths_S = np.sqrt(np.maximum(total_D @ total_D + 2 * along_S + 1, 1e-12))
    closeness_S = (total_D @ centroid_D + central_S) / lengths_S
    # Rounded: equal sentences must tie, whatever the order in which the processor adds.
    return int(np.argmax(np.where(allowed_S, closeness_S.round(9), -np.inf)))


def _unit(rows: Array) -> Array:
    rows = rows.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    units: Array = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return units
