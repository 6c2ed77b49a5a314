"""Windows of documents that are processed together, cut from a stream."""

import os
import select
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

FIRST = 32  # size of the first window, small so that results appear early


def windows(
    items: Iterable[T],
    size: Callable[[T], int],
    largest: int,
    *,
    pausing: Callable[[], bool] | None = None,
    ends: Callable[[T], bool] | None = None,
) -> Iterator[list[T]]:
    """Yield lists of items whose total size starts at about `FIRST` and doubles up to `largest`.

    A list ends early if `pausing` reports that the next item is not available yet. It also ends
    after an item for which `ends` is true, and the sizes start over.
    """
    window: list[T] = []
    filled, room = 0, min(FIRST, largest)
    for item in items:
        window.append(item)
        filled += size(item)
        last = ends is not None and ends(item)
        if last or filled >= room or (pausing and pausing()):
            yield window
            window, filled, room = [], 0, min(FIRST if last else 2 * room, largest)
    if window:
        yield window


def stdin_pauses() -> bool:
    """Return whether standard input has nothing to read at the moment; False if unknown."""
    if os.name == "nt":
        return False  # select accepts only sockets there
    try:
        return not select.select([sys.stdin.fileno()], [], [], 0)[0]
    except (OSError, ValueError):
        return False  # replaced by an object that is not a file
