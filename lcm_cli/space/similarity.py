"""Cosine similarity of concepts.

Shapes: A and B concepts, S pairs of concepts, D concept dim.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


def cosines(left_AD: Floats, right_BD: Floats) -> Floats:
    """Return the cosine of each left concept to each right one, (A, B); 0 for zero vectors."""
    return unit_length(left_AD) @ unit_length(right_BD).T


def row_cosines(left_SD: Floats, right_SD: Floats) -> Floats:
    """Return the cosine of each left concept to the right one of its row, (S,)."""
    products: Floats = (unit_length(left_SD) * unit_length(right_SD)).sum(axis=1)
    return products


def unit_length(concepts_AD: Floats) -> Floats:
    """Return the concepts scaled to length 1; zero vectors stay zero."""
    lengths_A1 = np.linalg.norm(concepts_AD, axis=1, keepdims=True)
    zeros_AD = np.zeros_like(concepts_AD)
    return np.divide(concepts_AD, lengths_A1, out=zeros_AD, where=lengths_A1 > 0)
