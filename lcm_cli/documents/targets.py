"""The target of writing concepts: the format that its name implies, and early checks."""

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
    """A path to write concepts to, with its format."""

    kind: Literal["parquet", "arrow", "jsonl", "safetensors", "dataset", "stdout"]
    path: Path


def find_target(path: str) -> Target:
    """Return the target that `path` names, with the format by its suffix.

    A folder, or a name without suffix, is a data set. Raises UsageError for an unknown suffix, or
    for a name without suffix that exists but is not a folder.
    """
    if path == "-":
        return Target("stdout", Path("-"))
    target = Path(path)
    if target.is_dir() or path.endswith("/") or not target.suffix:
        if target.is_file():
            raise UsageError(
                f"{path} is a file", f"choose a name with one of {', '.join(_FORMATS)}"
            )
        if target.exists() and not target.is_dir():  # a device, a pipe
            raise UsageError(f"{path} is not a folder", "choose another name; - is standard output")
        return Target("dataset", target)
    if target.suffix.lower() not in _FORMATS:
        raise UsageError(
            f"cannot write concepts to {path}: unknown suffix {target.suffix}",
            f"use {', '.join(_FORMATS)}, a folder name, or -",
        )
    return Target(_FORMATS[target.suffix.lower()], target)


def check_target(path: str, *, force: bool = False) -> None:
    """Raise early, before any work is done, what `open_writer` would raise for `path`.

    That is UsageError for an unknown suffix or an existing file, and NotFoundError for a missing
    folder, except above a data set, where folders are created.
    """
    target = find_target(path)
    if target.kind == "stdout":
        return
    if target.kind != "dataset" and not target.path.parent.is_dir():
        parent = target.path.parent
        raise NotFoundError(f"no such folder: {parent}", f"create it: mkdir -p {parent}")
    if target.kind == "dataset":
        from lcm_cli.documents.dataset import is_unfinished, refuse_overwrite

        # Whether an unfinished data set is of the same run is known only once it is opened.
        if target.path.is_dir() and not is_unfinished(target.path):
            refuse_overwrite(target.path, force=force)
    elif target.path.is_file() and not force:
        raise UsageError(f"{path} exists already", "choose another name, or add --force")
