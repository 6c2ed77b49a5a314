"""Saved states of a run: each one file, written atomically, the last few of them kept."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lcm_cli.errors import IntegrityError, UsageError
from lcm_cli.files import atomic_path, disk_error

_PATTERN = "state-*.pt"


def states(folder: Path) -> list[Path]:
    """Return the states in a run's folder, the oldest first."""
    return sorted(folder.glob(_PATTERN))


def save_state(folder: Path, step: int, state: dict[str, Any], keep: int) -> None:
    """Write the state after `step` steps, then remove all but the last `keep`.

    Raises LcmError if the disk is full; the states before stay as they are.
    """
    path = folder / f"state-{step:09d}.pt"
    # Through a file of Python's, whose errors have numbers; torch's own have none.
    with (
        disk_errors(path),
        atomic_path(path, force=True) as temporary,
        temporary.open("wb") as file,
    ):
        torch.save(state, file)
    for old in states(folder)[:-keep]:
        old.unlink(missing_ok=True)


def read_state(folder: Path) -> dict[str, Any]:
    """Read the last state. Raises UsageError if there is none, IntegrityError if it is damaged."""
    found = states(folder)
    if not found:
        raise UsageError(f"nothing to resume: no state in {folder}", "run without --resume")
    try:
        state: dict[str, Any] = torch.load(found[-1], weights_only=True, map_location="cpu")
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        again = f"remove it to go on from {found[-2].name}" if len(found) > 1 else ""
        raise IntegrityError(f"{found[-1]} is damaged: {error}", again) from error
    return state


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Put failures to write into words: torch and safetensors have errors of their own for them."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else _os_error(error)
        if number is None:
            raise
        known = disk_error(OSError(number, os.strerror(number)), path)
        known.message += "; what was saved before is whole"
        known.hint = "make room for it, then go on with --resume"
        raise known from error


def _os_error(error: BaseException) -> int | None:
    """Return the number of the system's error that is behind another one."""
    behind = error.__cause__ or error.__context__
    if isinstance(behind, OSError):
        return behind.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None
