"""Where concepts are written to: what format a name asks for, and whether it may be written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lcm_cli.errors import NotFoundError, UsageError

_FORMATS: dict[str, Literal["parquet", "arrow", "jsonl", "safetensors"]] = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".jsonl": "jsonl",
    ".safetensors": "safetensors",
}


@dataclass(frozen=True)
class Target:
    """A place to write concepts to, and the format for it."""

    kind: Literal["parquet", "arrow", "jsonl", "safetensors", "dataset", "stdout"]
    path: Path


def find_target(path: str) -> Target:
    """Return what `path` asks for by its suffix. Raises UsageError if that is no format of ours."""
    if path == "-":
        return Target("stdout", Path("-"))
    place = Path(path)
    if place.is_dir() or path.endswith("/") or not place.suffix:
        if place.is_file():
            raise UsageError(f"{path} is a file", "give it a suffix: .parquet, or another")
        if place.exists() and not place.is_dir():  # a device, a pipe
            raise UsageError(f"{path} is not a folder", "choose another name; - is standard output")
        return Target("dataset", place)
    if place.suffix.lower() not in _FORMATS:
        raise UsageError(
            f"cannot write concepts to {path}: unknown suffix {place.suffix}",
            f"use {', '.join(_FORMATS)}, a folder name, or -",
        )
    return Target(_FORMATS[place.suffix.lower()], place)


def check_target(path: str, *, force: bool = False) -> None:
    """Raise now what `open_writer` would raise when the work is done and has to be written.

    UsageError for an unknown suffix or an existing file, NotFoundError for a missing folder (those
    above a data set are made).
    """
    target = find_target(path)
    if target.kind == "stdout":
        return
    if target.kind != "dataset" and not target.path.parent.is_dir():
        parent = target.path.parent
        raise NotFoundError(f"no such folder: {parent}", f"create it: mkdir -p {parent}")
    if target.kind == "dataset":
        from lcm_cli.documents.dataset import is_unfinished, refuse_overwrite

        # Whether it is this data set that was not finished is seen when it is opened.
        if target.path.is_dir() and not is_unfinished(target.path):
            refuse_overwrite(target.path, force=force)
    elif target.path.exists() and not force:
        raise UsageError(f"{path} exists already", "choose another name, or add --force")
