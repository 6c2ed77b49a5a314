"""Paragraphs in concept space (LPCM): a break after each, and before each the plan of it.

What a model reads of a document is `order` of its sentences, its plans and the break concept.

Shapes: S sentences, P plans, W concepts that are read.
"""

from collections.abc import Sequence
from itertools import groupby, pairwise

import numpy as np
from numpy.typing import NDArray

MOST = 9  # sentences of a paragraph: the paper has fewer than ten

Ints = NDArray[np.int64]


def count(paragraphs: Sequence[int]) -> int:
    """Return how many paragraphs there are; `paragraphs` is the number of each sentence's.

    A document that does not say is one paragraph.
    """
    return sum(1 for _ in groupby(paragraphs)) or 1


def parts(paragraphs: Sequence[int], sentences: int) -> list[tuple[int, int]]:
    """Return where each paragraph begins and ends, as they are planned.

    One of a single sentence joins the one before it (the first: the one behind it), and one of ten
    or more sentences is cut into parts of about equal length.
    """
    joined: list[int] = []
    for _, run in groupby(paragraphs or [0] * sentences):
        size = sum(1 for _ in run)
        if joined and 1 in (size, joined[-1]):
            joined[-1] += size
        else:
            joined.append(size)
    found, start = [], 0
    for size in joined:
        pieces = -(-size // MOST)
        cuts = [start + size * piece // pieces for piece in range(pieces + 1)]
        found += list(pairwise(cuts))
        start += size
    return found


def order(paragraphs: Sequence[int], sentences: int, plans: int = 0) -> Ints:
    """Return the rows of [sentences; plans; break] in the order in which they are read, (W,).

    Without plans there are only breaks. A part's plan is that of the paragraph which most of it is
    from.
    """
    numbers = np.asarray(paragraphs or [0] * sentences)
    runs_S = np.cumsum(np.diff(numbers, prepend=numbers[:1]) != 0)
    rows: list[int] = []
    for begin, end in parts(paragraphs, sentences):
        if plans:
            rows.append(sentences + int(np.bincount(runs_S[begin:end]).argmax()))
        rows += [*range(begin, end), sentences + plans]
    return np.array(rows, dtype=np.int64)
