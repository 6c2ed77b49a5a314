"""Saved states of a run: one file or folder each, written atomically; the last few are kept."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from lcm_cli.errors import IntegrityError, UsageError
from lcm_cli.files import atomic_path, disk_error
from lcm_cli.training.parallel import World, save_sharded

_NAME = re.compile(r"state-\d+(\.pt)?")
REST = "rest.pt"  # the part of a state that is not sharded, in the state's folder


def states(folder: Path) -> list[Path]:
    """Return the states in a run's folder, oldest first."""
    return sorted(path for path in folder.glob("state-*") if _NAME.fullmatch(path.name))


def save_state(
    folder: Path,
    step: int,
    state: dict[str, Any],
    keep: int,
    world: World | None = None,
    shards: dict[str, Any] | None = None,
) -> None:
    """Write the state after `step` steps, then remove all but the last `keep`.

    The first process of `world` writes a file. With `shards` the state is a folder, to which each
    process writes its own shard. Raises LcmError if the disk is full; earlier states are kept.
    """
    world = world or World()
    name = f"state-{step:09d}"
    if shards is not None:
        _save_parts(folder / name, state, shards, world)
    elif world.leads:
        _save_file(folder / f"{name}.pt", state)
    if world.leads:
        for old in states(folder)[:-keep]:
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    world.wait()


def _save_file(path: Path, state: dict[str, Any]) -> None:
    # Write through a Python file, whose errors have an errno; torch's own errors have none.
    with (
        disk_errors(path),
        atomic_path(path, force=True) as temporary,
        temporary.open("wb") as file,
    ):
        torch.save(state, file)


def _save_parts(path: Path, state: dict[str, Any], shards: dict[str, Any], world: World) -> None:
    """Write a folder under a temporary name, and rename it when every process is done."""
    part = path.with_name(f".{path.name}.part")
    if world.leads:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
    world.wait()
    with disk_errors(path):
        save_sharded(shards, part)
    if world.leads:
        _save_file(part / REST, state)
        shutil.rmtree(path, ignore_errors=True)
        part.replace(path)
    world.wait()


def read_state(folder: Path) -> tuple[dict[str, Any], Path | None]:
    """Read the last state; return it and, if it is sharded, the folder of its shards.

    Raises UsageError if there is none, IntegrityError if it is damaged.
    """
    found = states(folder)
    if not found:
        raise UsageError(f"nothing to resume: no state in {folder}", "run without --resume")
    shards = found[-1] if found[-1].is_dir() else None
    try:
        state: dict[str, Any] = torch.load(
            found[-1] / REST if shards else found[-1], weights_only=True, map_location="cpu"
        )
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, UnpicklingError) as error:
        again = f"remove it to resume from {found[-2].name}" if len(found) > 1 else ""
        # The other errors of torch say nothing: "101" for text, "" for an empty file.
        told = isinstance(error, (RuntimeError, OSError))
        reason = error if told else "it is not a file that torch wrote"
        raise IntegrityError(f"{found[-1]} is damaged: {reason}", again) from error
    return state, shards


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn failures to write, also those of torch and safetensors, into LcmErrors."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else _os_error(error)
        if number is None:
            raise
        known = disk_error(OSError(number, os.strerror(number)), path)
        known.message += "; earlier states are intact"
        known.hint = "free some space, then continue with --resume"
        raise known from error


def _os_error(error: BaseException) -> int | None:
    """Return the errno of the system error that caused another one."""
    behind = error.__cause__ or error.__context__
    if isinstance(behind, OSError):
        return behind.errno
    # safetensors is written in Rust, whose messages end like this.
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None
