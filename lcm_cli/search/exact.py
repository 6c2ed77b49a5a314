"""Exact nearest neighbours by cosine, over vectors that arrive in blocks.

Shapes: Q queries, N vectors of a block, K nearest vectors, D concept dim, C candidates.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lcm_cli.errors import IntegrityError
from lcm_cli.space.similarity import unit_length

STEP = 65_536  # vectors scored at a time for few queries, an eighth of it for many
_CAST = 1 << 18  # numbers cast to float32 at a time with one thread, so that they stay in cache
_GROUP = 256  # queries scored at a time
_FEW = 2  # queries up to which products with float16 vectors beat casting them
# The error of coarse scores is at most that of rounding a query and a score to float16, 2^-11 each
# for unit vectors; it is far smaller in float32.
_TOLERANCE = 1e-3
_PAIRS = 8192  # pairs scored exactly at a time

Vectors = NDArray[np.floating[Any]]


class Nearest:
    """The `k` nearest of all vectors added so far, for each query.

    The result depends neither on the sizes of the blocks nor on the processor's kernels: a fast
    product selects candidates, with a margin for its rounding, and float64 decides. Equal scores
    are ordered by position.
    """

    def __init__(self, queries_QD: Vectors, k: int) -> None:
        self._exact_QD: NDArray[np.float64]
        self._exact_QD = unit_length(np.asarray(queries_QD, dtype=np.float64)).astype(np.float64)
        self._fast_QD = self._exact_QD.astype(np.float32)
        self.count = 0  # vectors added
        self._scores_QK = np.full((len(queries_QD), k), -np.inf)
        self._positions_QK = np.full((len(queries_QD), k), -1, dtype=np.int64)

    def add(self, vectors_ND: Vectors) -> None:
        """Search further vectors of unit length, in float16 or float32.

        Raises IntegrityError for NaN and infinity.
        """
        step = STEP if len(self._fast_QD) <= _FEW else STEP // 8
        for start in range(0, len(vectors_ND), step):
            block_ND = vectors_ND[start : start + step]
            for first in range(0, len(self._fast_QD), _GROUP):
                group = slice(first, first + _GROUP)
                coarse_NQ = _coarse(block_ND, self._fast_QD[group])
                if not np.isfinite(coarse_NQ.sum()):
                    raise IntegrityError(
                        f"NaN or infinity in the {len(block_ND)} vectors from number"
                        f" {self.count} on",
                        "rebuild the index: lcm index CONCEPTS -o NAME --force",
                    )
                self._take(block_ND, coarse_NQ, group)
            self.count += len(block_ND)

    def found(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return scores and positions, best first, (Q, K each).

        If fewer than K vectors were added, the rest is -inf and -1.
        """
        return self._scores_QK, self._positions_QK

    def _take(self, block_ND: Vectors, coarse_NQ: NDArray[np.float32], group: slice) -> None:
        """Merge the vectors of a block that may be among the nearest of some queries."""
        bar_Q = self._scores_QK[group, -1] - _TOLERANCE
        k = self._scores_QK.shape[1]
        if bar_Q.min() == -np.inf and len(coarse_NQ) > k:
            # The first block: raise the bar to the score that its own K best reach for certain.
            best_Q = np.partition(coarse_NQ, len(coarse_NQ) - k, axis=0)[len(coarse_NQ) - k]
            bar_Q = np.maximum(bar_Q, best_Q - 2 * _TOLERANCE)
        places, queries = _at_least(coarse_NQ, bar_Q)
        if len(places):
            scores = _exact_scores(block_ND, self._exact_QD[group], places, queries)
            self._merge(scores, places + self.count, queries, group)

    def _merge(
        self,
        scores_C: NDArray[np.float64],
        positions_C: NDArray[np.int64],
        queries_C: NDArray[np.int64],
        group: slice,
    ) -> None:
        old_scores, old_positions = self._scores_QK[group], self._positions_QK[group]
        count, k = old_scores.shape
        queries = np.concatenate([np.repeat(np.arange(count), k), queries_C])
        scores = np.concatenate([old_scores.ravel(), scores_C])
        positions = np.concatenate([old_positions.ravel(), positions_C])
        order = np.lexsort((positions, -scores, queries))
        # Every query has at least K entries, so its K best follow the start of its run.
        starts = np.searchsorted(queries[order], np.arange(count))
        best_QK = order[starts[:, None] + np.arange(k)]
        self._scores_QK[group], self._positions_QK[group] = scores[best_QK], positions[best_QK]


def rescored(
    queries_QD: Vectors, candidates: Iterator[tuple[Vectors, NDArray[np.int64]]], k: int
) -> list[tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """Return the exact scores and the positions of the `k` best candidates of each query.

    Each query has its own candidates: unit vectors (C, D) and their positions (C,).
    """
    best = []
    exact_QD = unit_length(np.asarray(queries_QD, dtype=np.float64))
    for query_D, (vectors_CD, positions_C) in zip(exact_QD, candidates, strict=True):
        scores_C = (vectors_CD.astype(np.float64) * query_D).sum(axis=1)
        order = np.lexsort((positions_C, -scores_C))[:k]
        best.append((scores_C[order], positions_C[order]))
    return best


def _coarse(vectors_ND: Vectors, queries_QD: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the cosines, (N, Q) float32, within the tolerance of the exact ones."""
    import torch

    halves = vectors_ND.dtype == np.float16
    if halves and len(queries_QD) <= _FEW:
        # Reads half the bytes of float32; torch sums in float32, then rounds.
        vectors = torch.from_numpy(vectors_ND)
        queries = torch.from_numpy(queries_QD).half()
        scores: NDArray[np.float32]
        scores = torch.stack([vectors @ query for query in queries], dim=1).float().numpy()
        return scores
    coarse_NQ = np.empty((len(vectors_ND), len(queries_QD)), np.float32)
    queries_DQ = np.ascontiguousarray(queries_QD.T)
    # Several threads wait for each other at every product: one large product is faster then.
    step = len(vectors_ND)
    if torch.get_num_threads() == 1:
        step = min(step, max(1, _CAST // vectors_ND.shape[1]))
    room = torch.empty(step, vectors_ND.shape[1])
    for start in range(0, len(vectors_ND), step):
        part_ND = vectors_ND[start : start + step]
        if halves:  # torch casts float16 about ten times as fast as numpy
            cast = room[: len(part_ND)].copy_(torch.from_numpy(part_ND))
            part_ND = cast.numpy()
        np.matmul(part_ND, queries_DQ, out=coarse_NQ[start : start + len(part_ND)])
    return coarse_NQ


def _at_least(
    scores_NQ: NDArray[np.float32], bar_Q: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows and columns of the scores that reach the bar of their column."""
    # Several times as fast as np.nonzero on the matrix when few are true.
    flat = np.flatnonzero((scores_NQ >= bar_Q.astype(np.float32)).ravel())
    return np.divmod(flat, scores_NQ.shape[1])


def _exact_scores(
    vectors_ND: Vectors,
    queries_QD: NDArray[np.float64],
    places_C: NDArray[np.int64],
    queries_C: NDArray[np.int64],
) -> NDArray[np.float64]:
    scores_C = np.empty(len(places_C))
    for start in range(0, len(places_C), _PAIRS):
        part = slice(start, start + _PAIRS)
        vectors_CD = vectors_ND[places_C[part]].astype(np.float64)
        # A sum over the last axis adds each row in the same order, however many there are; a matrix
        # product does not.
        scores_C[part] = (vectors_CD * queries_QD[queries_C[part]]).sum(axis=1)
    return scores_C
