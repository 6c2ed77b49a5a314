"""How similar concepts are.

Shapes: A and B concepts, D concept dim.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


def cosines(left_AD: Floats, right_BD: Floats) -> Floats:
    """Return the cosine of each concept on the left to each on the right, (A, B); 0 for zeros."""
    return unit_length(left_AD) @ unit_length(right_BD).T


def unit_length(concepts_AD: Floats) -> Floats:
    """Return concepts of length 1; zeros stay zeros."""
    lengths_A1 = np.linalg.norm(concepts_AD, axis=1, keepdims=True)
    zeros_AD = np.zeros_like(concepts_AD)
    return np.divide(concepts_AD, lengths_A1, out=zeros_AD, where=lengths_A1 > 0)
