"""The concepts that a command searches: indexes, and files read in blocks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lcm_cli import console
from lcm_cli.documents import check_space, read_concepts
from lcm_cli.errors import LcmError, UsageError
from lcm_cli.progress import Progress
from lcm_cli.search.corpus import Hit, merged, search_documents
from lcm_cli.search.index import Index, is_index

from ._problems import Problems

if TYPE_CHECKING:
    import numpy as np

    from lcm_cli.space import Space

SEARCHING = "searching (sentences)"


class Corpora:
    """The indexes and files among some paths; they are opened, and checked, before any work."""

    def __init__(self, paths: Sequence[str]) -> None:
        """Raise IntegrityError if an index is damaged, or if there are no concepts."""
        self.problems = Problems()
        self._indexes = [Index(Path(path)) for path in paths if is_index(Path(path))]
        files = [path for path in paths if not is_index(Path(path))]
        self._spaces = [index.space for index in self._indexes]
        self._documents = None
        if files:
            try:
                info, self._documents = read_concepts(files, on_error=self.problems)
            except LcmError:
                self.problems.finish(any_done=False)  # the reason has already been shown
                raise
            self._spaces.append(info)

    def check(self, space: "Space") -> None:
        """Raise IntegrityError unless all concepts lie in `space`."""
        for info in self._spaces:
            check_space(info, space)

    def search(self, queries_QD: "np.ndarray", k: int, *, exact: bool) -> list[list[Hit]]:
        """Return the `k` nearest sentences of each query; `exact` avoids the graphs of indexes."""
        results = []
        for index in self._indexes:
            with _progress(len(index)) as advance:
                found = index.search(
                    queries_QD, k, exact=exact or not index.has_graph, progress=advance
                )
                results.append(found)
        if self._documents is not None:
            with _progress(None) as advance:
                results.append(search_documents(self._documents, queries_QD, k, advance))
        return merged(results, k)


@contextmanager
def _progress(total: int | None) -> Iterator[Progress]:
    with console.progress(SEARCHING, total) as advance:
        yield advance


def required(paths: Sequence[str] | None) -> Sequence[str]:
    """Return the paths after --in. Raises UsageError if there are none."""
    if not paths:
        raise UsageError(
            "no concepts to search", "name a file, a folder or an index: --in CONCEPTS"
        )
    return paths
