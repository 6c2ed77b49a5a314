"""Saved states of a run: each one file, written atomically, the last few of them kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lcm_cli.errors import IntegrityError, LcmError, UsageError
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
    with disk_errors(path), atomic_path(path, force=True) as temporary:
        torch.save(state, temporary)
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
    except OSError as error:
        raise disk_error(error, path) from error
    except (RuntimeError, SafetensorError) as error:
        if isinstance(error.__context__, OSError):
            raise disk_error(error.__context__, path) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = "is the disk full? what was saved before is whole: free some space and --resume"
        raise LcmError(f"cannot write {path}: {reason}", hint) from error
