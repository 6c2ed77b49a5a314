"""Approximate nearest neighbours in a graph (HNSW, Malkov and Yashunin 2018), with faiss.

The graph only proposes candidates; their scores are computed from the index's own vectors.
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
LINKS = 16  # per vector; twice as many in the lowest layer
WIDTH_BUILDING = 128
WIDTH_SEARCHING = 256
CANDIDATES = 2  # candidates to score exactly, per neighbour requested
_STEP = 8192


def build(blocks: Iterable[Vectors], width: int, path: Path, progress: Progress) -> None:
    """Write the graph of unit vectors (N, width) float16 to `path`.

    `progress` receives the number of vectors added. Raises LcmError if faiss is not installed.
    """
    faiss = require_faiss()
    kind = faiss.ScalarQuantizer.QT_fp16
    graph = faiss.IndexHNSWSQ(width, kind, LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = WIDTH_BUILDING
    graph.is_trained = True  # float16 has nothing to train
    for block in blocks:
        for start in range(0, len(block), _STEP):
            part = block[start : start + _STEP].astype(np.float32)
            graph.add(part)
            progress(len(part))
    faiss.write_index(graph, str(path))


def require_faiss() -> Any:
    """Return the module faiss. Raises LcmError if it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise LcmError(
            "approximate search needs faiss, which is not installed",
            "pip install 'lcm-cli[index]', or search exactly: --exact",
        ) from error
    return faiss


class Graph:
    """A graph in a file, mapped into memory."""

    def __init__(self, path: Path, rows: int, width: int) -> None:
        """Raise LcmError without faiss, IntegrityError if the file does not fit the vectors."""
        faiss = require_faiss()
        try:
            self._graph = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise _damaged(path, str(error).splitlines()[-1]) from error
        if (self._graph.ntotal, self._graph.d) != (rows, width):
            raise _damaged(path, f"it does not hold {rows} vectors of {width} dimensions")

    def candidates(self, queries_QD: Vectors, k: int) -> list[NDArray[np.int64]]:
        """Return the positions of candidates for the `k` nearest vectors of each query."""
        count = min(CANDIDATES * k, self._graph.ntotal)
        self._graph.hnsw.efSearch = max(WIDTH_SEARCHING, 2 * count)
        _, places_QC = self._graph.search(np.ascontiguousarray(queries_QD, np.float32), count)
        return [places_C[places_C >= 0] for places_C in places_QC]


def _damaged(path: Path, reason: str) -> IntegrityError:
    return IntegrityError(
        f"{path} is damaged: {reason}", "rebuild the index, or search without the graph: --exact"
    )
