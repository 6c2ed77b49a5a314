"""Mining of translations: pairs of sentences in two corpora, chosen by their margin.

Shapes: X and Y sentences of the two corpora, K neighbours, D concept dim, P pairs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lcm_cli.progress import Progress, ignore
from lcm_cli.search.exact import STEP, Nearest, Vectors
from lcm_cli.search.margin import NEIGHBOURS, ratio_margin
from lcm_cli.space.similarity import unit_length

# The least margin of a pair by default; docs/search.md reports how it was chosen.
THRESHOLD = 1.18


@dataclass(frozen=True)
class Pair:
    """The positions of two sentences in their corpora, and their margin."""

    score: float
    x: int
    y: int


def mine(
    x_XD: Vectors, y_YD: Vectors, *, threshold: float = THRESHOLD, progress: Progress = ignore
) -> list[Pair]:
    """Return the translations in two corpora of concepts, best first; no sentence occurs twice.

    Equal concepts count once: each would be among the nearest neighbours of the other's translation
    and lower its margin. The position is that of the first.
    Candidates are the best of the nearest neighbours of each sentence, in both directions; pairs
    are taken greedily by margin ("max" in Artetxe and Schwenk 2019). Equal margins are ordered by
    position. Memory grows with X + Y, not with X * Y. `progress` receives the number of sentences
    compared with the whole other corpus, X + Y in all.
    """
    if not len(x_XD) or not len(y_YD):
        return []
    firsts = [_firsts(pile) for pile in (x_XD, y_YD)]
    x_XD, y_YD = (
        unit_length(pile[first].astype(np.float32))
        for pile, first in zip((x_XD, y_YD), firsts, strict=True)
    )
    cosines_XK, places_XK = _neighbours(x_XD, y_YD, progress)
    cosines_YK, places_YK = _neighbours(y_YD, x_XD, progress)
    near_X, near_Y = cosines_XK.mean(axis=1), cosines_YK.mean(axis=1)
    forward_XK = ratio_margin(cosines_XK, near_X[:, None], near_Y[places_XK])
    backward_YK = ratio_margin(cosines_YK, near_Y[:, None], near_X[places_YK])
    own_X, own_Y = np.arange(len(x_XD)), np.arange(len(y_YD))
    best_X, best_Y = forward_XK.argmax(axis=1), backward_YK.argmax(axis=1)
    scores_P = np.concatenate([forward_XK[own_X, best_X], backward_YK[own_Y, best_Y]])
    x_P = np.concatenate([own_X, places_YK[own_Y, best_Y]])
    y_P = np.concatenate([places_XK[own_X, best_X], own_Y])
    return _one_to_one(scores_P, firsts[0][x_P], firsts[1][y_P], threshold)


def _firsts(pile: Vectors) -> NDArray[np.int64]:
    """Return the position of the first occurrence of each distinct row."""
    found: dict[bytes, int] = {}
    for position, row in enumerate(pile):
        found.setdefault(row.tobytes(), position)
    return np.fromiter(found.values(), dtype=np.int64)


def _neighbours(
    queries_XD: Vectors, vectors_YD: Vectors, progress: Progress
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return cosines and positions of the nearest vectors of each query, (X, K) each."""
    scores, places = [], []
    k = min(NEIGHBOURS, len(vectors_YD))
    for start in range(0, len(queries_XD), STEP):
        nearest = Nearest(queries_XD[start : start + STEP], k)
        nearest.add(vectors_YD)
        cosines_XK, places_XK = nearest.found()
        scores.append(cosines_XK)
        places.append(places_XK)
        progress(len(cosines_XK))
    return np.concatenate(scores), np.concatenate(places)


def _one_to_one(
    scores_P: NDArray[np.float64],
    x_P: NDArray[np.int64],
    y_P: NDArray[np.int64],
    threshold: float,
) -> list[Pair]:
    taken_x: set[int] = set()
    taken_y: set[int] = set()
    pairs = []
    for place in np.lexsort((y_P, x_P, -scores_P)).tolist():
        score, x, y = float(scores_P[place]), int(x_P[place]), int(y_P[place])
        if score < threshold:
            break
        if x not in taken_x and y not in taken_y:
            taken_x.add(x)
            taken_y.add(y)
            pairs.append(Pair(score, x, y))
    return pairs
