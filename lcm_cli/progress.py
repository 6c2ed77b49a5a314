"""How long work reports what it has done: one type of callback for the whole package."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Progress = Callable[[int], object]  # takes the number of items done since the last call
# Takes a description and the total (None if unknown), and opens a job that reports its progress.
StartJob = Callable[[str, int | None], AbstractContextManager[Progress]]


def ignore(_: object) -> None:
    """Report nothing."""


def no_progress(description: str, total: int | None) -> AbstractContextManager[Progress]:
    """Start a job whose progress nobody watches."""
    return nullcontext(ignore)
