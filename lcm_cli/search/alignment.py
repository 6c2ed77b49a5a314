"""Alignment of two versions of a document, sentence by sentence and in order.

The method is that of Vecalign (Thompson and Koehn 2019): dynamic programming over the ways to link
one sentence with one or two, or two with one, or to leave one out. The cost of a link is the
distance of its concepts relative to that of unrelated sentences,

    c(x, y) = (1 - cos(x, y)) n(x) n(y) / (mean of 1 - cos(x, Y) / 2 + mean of 1 - cos(X, y) / 2)

with n the number of sentences in each. The means are over all sentences of the other document,
where Vecalign takes a sample: the mean cosine is simply the product with the mean vector. Long
documents are first aligned in coarser versions, whose concepts are the means of two neighbours, and
then only near that path, so that time and memory are linear.

Shapes: X and Y sentences of the two documents, B cells of a row of the band, D concept dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lcm_cli.search.exact import Vectors
from lcm_cli.space.similarity import unit_length

# The cost of leaving out a sentence. Linking two unrelated sentences costs about 1; two sentences
# are left out rather than linked at more than twice SKIP. Chosen by measurement: docs/search.md.
SKIP = 0.42
_SMALL = 256  # sentences of the shorter document that are aligned without a band
_MARGIN = 12  # cells on either side of the coarse path

# Numbers of sentences of X and Y that a move consumes. The order breaks ties.
_LINKS = ((1, 1), (1, 2), (2, 1))
_LEAVE_X, _LEAVE_Y = (1, 0), (0, 1)
_MOVES = (*_LINKS, _LEAVE_X, _LEAVE_Y)

Row = NDArray[np.float64]


@dataclass(frozen=True)
class Link:
    """Sentences that translate each other: index of the first and count in each document.

    For a sentence without a counterpart, the count in the other document and `score` are 0; else
    `score` is the cosine.
    """

    score: float
    x: int
    x_count: int
    y: int
    y_count: int


@dataclass(frozen=True)
class Side:
    """The concepts of a document (X, D), and of its neighbouring pairs joined (X - 1, D)."""

    single: Vectors
    joined: Vectors

    @classmethod
    def of(cls, single_XD: Vectors, joined_XD: Vectors | None = None) -> "Side":
        """Return a side of unit vectors; by default, joined concepts are sums of neighbours."""
        single_XD = unit_length(np.asarray(single_XD, dtype=np.float64))
        joined_XD = single_XD[:-1] + single_XD[1:] if joined_XD is None else joined_XD
        return cls(single_XD, unit_length(np.asarray(joined_XD, dtype=np.float64)))

    def halved(self) -> "Side":
        """Return a coarser version, whose concepts are the means of two neighbours."""
        single = self.single
        even, odd = single[0::2], single[1::2]
        sums = even.copy()
        sums[: len(odd)] += odd
        return Side.of(sums)


def align(x: Side, y: Side, skip: float = SKIP) -> list[Link]:
    """Return the cheapest alignment, in order; every sentence is in one link."""
    links, i, j = [], 0, 0
    for a, b in _moves(x, y, _LINKS, skip):
        score = float(_vectors(x, a)[i] @ _vectors(y, b)[j]) if a and b else 0.0
        links.append(Link(score, i, a, j, b))
        i, j = i + a, j + b
    return links


def _vectors(side: Side, count: int) -> Vectors:
    return side.single if count == 1 else side.joined


def _moves(
    x: Side, y: Side, links: Sequence[tuple[int, int]], skip: float
) -> list[tuple[int, int]]:
    """Return the cheapest moves, near the path of the coarser versions if there are many cells."""
    x_count, y_count = len(x.single), len(y.single)
    if min(x_count, y_count) <= _SMALL:
        everywhere = np.zeros(x_count + 1, np.int64), np.full(x_count + 1, y_count)
        return _cheapest(x, y, links, skip, *everywhere)
    cells = [(0, 0)]
    for a, b in _moves(x.halved(), y.halved(), ((1, 1),), skip):
        cells.append((cells[-1][0] + a, cells[-1][1] + b))
    return _cheapest(x, y, links, skip, *_band_around(cells, x_count, y_count))


def _band_around(
    cells: Sequence[tuple[int, int]], x_count: int, y_count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first and the last column of each row near a path at half the resolution."""
    low = np.full(x_count + 1, y_count)
    high = np.zeros(x_count + 1, dtype=np.int64)
    for i, j in cells:
        rows = slice(max(0, 2 * i - 1 - _MARGIN), 2 * i + 2 + _MARGIN)
        low[rows] = np.minimum(low[rows], max(0, 2 * j - 1 - _MARGIN))
        high[rows] = np.maximum(high[rows], min(y_count, 2 * j + 1 + _MARGIN))
    high[-1] = y_count
    # A path never goes back; if the edges did, cells near them could not be reached.
    return np.minimum.accumulate(low[::-1])[::-1], np.maximum.accumulate(high)


def _cheapest(
    x: Side,
    y: Side,
    links: Sequence[tuple[int, int]],
    skip: float,
    low: NDArray[np.int64],
    high: NDArray[np.int64],
) -> list[tuple[int, int]]:
    """Return the cheapest moves through the cells from `low` to `high` of each row, in order."""
    far_x = {n: _distances(_vectors(x, n), y) for n in (1, 2)}
    far_y = {n: _distances(_vectors(y, n), x) for n in (1, 2)}
    rows: list[Row] = []  # the costs of the last two rows: no move reaches further back
    chosen: list[NDArray[np.uint8]] = []
    for i in range(len(low)):
        columns = np.arange(low[i], high[i] + 1)
        best_B = np.full(len(columns), 0.0 if i == 0 else np.inf)
        best_B[1:] = np.inf
        move_B = np.zeros(len(columns), dtype=np.uint8)
        for a, b in (*links, _LEAVE_X):
            if i < a:
                continue
            cost_B = _shifted(rows[-a], low[i - a], columns - b)
            if b == 0:
                cost_B += skip
            else:
                cost_B += _link_costs(x, y, i - a, a, b, columns - b, far_x[a], far_y[b])
            better_B = cost_B < best_B
            best_B[better_B] = cost_B[better_B]
            move_B[better_B] = _MOVES.index((a, b))
        _leave_out(best_B, move_B, skip)
        rows = [*rows[-1:], best_B]
        chosen.append(move_B)
    return _back(chosen, low, len(y.single))


def _leave_out(best_B: Row, move_B: NDArray[np.uint8], skip: float) -> None:
    """Let the cells of a row be reached from their left, by leaving out sentences of Y."""
    # best[j] = min(best[j], best[j - 1] + skip) is a running minimum of best[j] - skip * j.
    slope_B = skip * np.arange(len(best_B))
    running_B = np.minimum.accumulate(best_B - slope_B)
    left_B = np.zeros(len(best_B), dtype=bool)
    left_B[1:] = running_B[:-1] + slope_B[1:] < best_B[1:]
    best_B[left_B] = running_B[left_B] + slope_B[left_B]
    move_B[left_B] = _MOVES.index(_LEAVE_Y)


def _back(
    chosen: Sequence[NDArray[np.uint8]], low: NDArray[np.int64], y_count: int
) -> list[tuple[int, int]]:
    """Return the moves that lead to the last cell, in order."""
    moves = []
    i, j = len(chosen) - 1, y_count
    while i or j:
        move = _MOVES[int(chosen[i][j - low[i]])]
        moves.append(move)
        i, j = i - move[0], j - move[1]
    return moves[::-1]


def _shifted(row: Row, start: int, columns: NDArray[np.int64]) -> Row:
    """Return cells of a row that begins at column `start`, infinite outside it."""
    places = columns - start
    inside = (places >= 0) & (places < len(row))
    cells = np.full(len(columns), np.inf)
    cells[inside] = row[places[inside]]
    return cells


def _distances(vectors_XD: Vectors, other: Side) -> Row:
    """Return the mean distance of each vector to the sentences of the other document, (X,)."""
    distances: Row = 1 - vectors_XD @ other.single.mean(axis=0)
    return distances


def _link_costs(
    x: Side,
    y: Side,
    at: int,
    a: int,
    b: int,
    columns: NDArray[np.int64],
    far_x: Row,
    far_y: Row,
) -> Row:
    """Return the costs of linking the `a` sentences from `at` with the `b` from each column."""
    of_x, of_y = _vectors(x, a), _vectors(y, b)
    costs = np.full(len(columns), np.inf)
    inside = (columns >= 0) & (columns < len(of_y))
    first, last = columns[0], columns[-1]
    near = of_y[max(0, first) : max(0, last + 1)] @ of_x[at]
    apart = np.maximum((far_x[at] + far_y[columns[inside]]) / 2, 1e-6)
    costs[inside] = (1 - near) * (a * b) / apart
    return costs
