"""Approximate nearest neighbours in a graph (HNSW, Malkov and Yashunin 2018), with usearch.

The graph only proposes candidates; their scores are computed from the float16 vectors.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lcm_cli.errors import IntegrityError, LcmError
from lcm_cli.progress import Progress
from lcm_cli.search.exact import Vectors

# Chosen by measurement: the tables in docs/search.md.
CONNECTIVITY = 16
WIDTH_BUILDING = 128
WIDTH_SEARCHING = 128
CANDIDATES = 4  # times as many as are asked for, then scored exactly
_STEP = 8192


def build(blocks: Iterable[Vectors], width: int, path: Path, progress: Progress) -> str:
    """Write the graph of unit vectors (N, width) float16 to `path`; return usearch's version.

    `progress` receives the number of vectors added.
    """
    index = _usearch().index.Index(
        ndim=width,
        metric="ip",
        dtype="f16",
        connectivity=CONNECTIVITY,
        expansion_add=WIDTH_BUILDING,
    )
    count = 0
    for block in blocks:
        for start in range(0, len(block), _STEP):
            part = np.ascontiguousarray(block[start : start + _STEP])
            index.add(np.arange(count, count + len(part)), part)
            count += len(part)
            progress(len(part))
    index.save(str(path))
    return version()


def version() -> str:
    """Return the version of usearch. Raises LcmError if it is not installed."""
    return str(_usearch().__version__)


class Graph:
    """A graph in a file, mapped into memory."""

    def __init__(self, path: Path, rows: int, width: int) -> None:
        """Raise LcmError without usearch, IntegrityError if the file does not fit the vectors."""
        library = _usearch()
        try:
            self._index: Any = library.index.Index.restore(str(path), view=True)
        except Exception as error:  # usearch raises RuntimeError and others
            raise _damaged(path, str(error)) from error
        if self._index is None or (len(self._index), self._index.ndim) != (rows, width):
            raise _damaged(path, f"it does not hold {rows} vectors of {width} dimensions")

    def candidates(self, queries_QD: Vectors, k: int) -> list[NDArray[np.int64]]:
        """Return the positions of candidates for the `k` nearest vectors of each query."""
        count = min(CANDIDATES * k, len(self._index))
        self._index.expansion_search = max(WIDTH_SEARCHING, 2 * count)
        found = self._index.search(queries_QD.astype(np.float16), count)
        matches = [found] if len(queries_QD) == 1 else list(found)
        return [np.asarray(each.keys, dtype=np.int64).reshape(-1) for each in matches]


def _damaged(path: Path, reason: str) -> IntegrityError:
    return IntegrityError(
        f"{path} is damaged: {reason}", "make the index again, or search without it: --exact"
    )


def _usearch() -> Any:
    try:
        import usearch.index
    except ImportError as error:
        raise LcmError(
            "approximate search needs usearch, which is not installed",
            "pip install 'lcm-cli[index]', or search exactly: --exact",
        ) from error
    return usearch
