"""Cutting a stream of documents into windows that are worked on together."""

import os
import select
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

FIRST = 32  # sentences of the first window: something is soon to be seen


def windows(
    items: Iterable[T],
    size: Callable[[T], int],
    largest: int,
    *,
    pausing: Callable[[], bool] | None = None,
    ends: Callable[[T], bool] | None = None,
) -> Iterator[list[T]]:
    """Cut `items` into lists of about `FIRST` in total size, then twice that, up to `largest`.

    A list ends early when `pausing` says that the next item may take its time: what is here is not
    kept waiting for it. After an item that `ends` something, all begins as with the first.
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
    """Return whether standard input has nothing to read at this moment; false if unknown."""
    if os.name == "nt":
        return False  # select takes sockets only there
    try:
        return not select.select([sys.stdin.fileno()], [], [], 0)[0]
    except (OSError, ValueError):
        return False  # replaced by something that is no file
