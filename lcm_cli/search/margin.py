"""The ratio margin of Artetxe and Schwenk (2019) between concepts of two corpora.

    margin(x, y) = cos(x, y) / (mean of cos(x, NN_k(x)) / 2 + mean of cos(y, NN_k(y)) / 2)

NN_k are the k nearest neighbours in the other corpus. Relating a cosine to those of the neighbours
makes sentences that are near to everything comparable with those that are near to nothing.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS = 4  # k

Floats = NDArray[np.floating[Any]]


def ratio_margin(cosines: Floats, near_x: Floats, near_y: Floats) -> Floats:
    """Return the margins of pairs from their cosines and the mean cosines of their neighbours.

    The arrays are broadcast. A pair whose neighbours have no positive mean cosine has the margin 0.
    """
    near = (near_x + near_y) / 2
    margins: Floats = np.divide(cosines, near, out=np.zeros_like(cosines), where=near > 0)
    return margins
