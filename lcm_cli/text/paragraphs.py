"""Paragraphs in concept space (LPCM): each is preceded by its plan and followed by a break.

A model reads the sentences, plans and break of a document in the order that `order` returns.

Shapes: S sentences, P plans, W concepts read.
"""

from collections.abc import Sequence
from itertools import groupby, pairwise

import numpy as np
from numpy.typing import NDArray

MAX_SENTENCES = 9  # maximum number of sentences of a paragraph: the paper has fewer than ten

Ints = NDArray[np.int64]


def count(paragraphs: Sequence[int]) -> int:
    """Return the number of paragraphs, given the paragraph number of each sentence.

    A document without paragraph numbers is one paragraph.
    """
    return sum(1 for _ in groupby(paragraphs)) or 1


def parts(paragraphs: Sequence[int], sentences: int) -> list[tuple[int, int]]:
    """Return the (begin, end) sentences of each part that gets a plan and a break.

    A paragraph of a single sentence joins the previous one (the first joins the next), and a
    paragraph of ten or more sentences is split into parts of about equal length.
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
        pieces = -(-size // MAX_SENTENCES)
        cuts = [start + size * piece // pieces for piece in range(pieces + 1)]
        found += list(pairwise(cuts))
        start += size
    return found


def order(paragraphs: Sequence[int], sentences: int, plans: int = 0) -> Ints:
    """Return the rows of [sentences; plans; break] in the order in which they are read, (W,).

    Without plans, only breaks are inserted. The plan of a part is that of the paragraph from which
    most of its sentences come.
    """
    numbers = np.asarray(paragraphs or [0] * sentences)
    runs_S = np.cumsum(np.diff(numbers, prepend=numbers[:1]) != 0)
    rows: list[int] = []
    for begin, end in parts(paragraphs, sentences):
        if plans:
            rows.append(sentences + int(np.bincount(runs_S[begin:end]).argmax()))
        rows += [*range(begin, end), sentences + plans]
    return np.array(rows, dtype=np.int64)
