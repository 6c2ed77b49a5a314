"""A data set in shares: a folder with one data set for each process that embeds a part of it.

The documents are laid end to end, in order, and cut into shares of equal size in bytes. Reading the
shares one after the other therefore yields the documents in the order of an undivided data set.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

from lcm_cli.documents import dataset
from lcm_cli.documents.document import SpaceInfo
from lcm_cli.documents.kinds import Source
from lcm_cli.errors import IntegrityError, LcmError, UsageError
from lcm_cli.files import make_folder
from lcm_cli.schema import json_value, parse

VERSION = 1
PAGE_BYTES = 1 << 16  # assumed size of a web page, which is known only once it is fetched
LOCK_SECONDS = 30.0  # to wait for another process that writes SHARES
_LISTED = 10  # shares named in one message, at most


@dataclass(frozen=True)
class Share:
    """Share `index` (from 0) of the `count` into which the documents of a run are divided."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"share {self.index} of {self.count}"

    @classmethod
    def parse(cls, text: str, where: str = "--shard") -> Self:
        """Return the share that a text such as 3/16 names. Raises UsageError; `where` is for it."""
        match = re.fullmatch(r"(\d+)/(\d+)", text, re.ASCII)
        if match is None:
            raise UsageError(f"{where} {text} is not I/N", "for example, the first of 16: 0/16")
        index, count = map(int, match.groups())
        if index >= count:
            known = f"I goes from 0 to {count - 1}" if count else "N is 1 or more"
            raise UsageError(f"{where} {text} is out of range", known)
        return cls(index, count)

    @classmethod
    def of_process(cls, environment: Mapping[str, str]) -> "tuple[Self, str] | None":
        """Return the share of this process and the variables that name it; None if it is alone.

        Slurm numbers the tasks of an array from SLURM_ARRAY_TASK_MIN on, in steps; torchrun and
        similar launchers set RANK and WORLD_SIZE. Raises UsageError for numbers out of range.
        """
        value = environment.get
        if task := value("SLURM_ARRAY_TASK_ID"):
            where = "SLURM_ARRAY_TASK_ID/SLURM_ARRAY_TASK_COUNT"
            first, step = value("SLURM_ARRAY_TASK_MIN", "0"), value("SLURM_ARRAY_TASK_STEP", "1")
            count = value("SLURM_ARRAY_TASK_COUNT", "1")
            index = _position(task, first, step)
        else:
            where, index, count = "RANK/WORLD_SIZE", value("RANK", "0"), value("WORLD_SIZE", "1")
        if count == "1":
            return None
        return cls.parse(f"{index}/{count}", where), where


def _position(task: str, first: str, step: str) -> str:
    """Return the position of a Slurm task in its array, as text."""
    if not all(number.isdecimal() for number in (task, first, step)) or int(step) < 1:
        return task
    return str((int(task) - int(first)) // int(step))


@dataclass(frozen=True)
class Division:
    """The content of the file SHARES: the number of shares, and what they have in common."""

    version: int
    count: int
    run: dict[str, Any]
    space: SpaceInfo
    dtype: str


class Tally(NamedTuple):
    """The shares of a data set by their state."""

    finished: list[int]
    unfinished: list[int]  # begun, and not finished
    missing: list[int]


def folder_of(folder: Path, index: int) -> Path:
    """Return the folder of a share."""
    return folder / f"share-{index:05d}"


def deal(sources: Sequence[Source], share: Share, *, by_lines: bool = True) -> list[Source]:
    """Return the sources of a share, in order.

    JSON Lines are cut between lines if `by_lines`: a line belongs to the share that contains its
    first byte. Any other source belongs to the share that contains its middle. Raises UsageError
    for a stream, which only one process can read.
    """
    sizes = [_size(source) for source in sources]
    total, start = sum(sizes), 0
    first = total * share.index // share.count
    last = total * (share.index + 1) // share.count
    dealt = []
    for source, size in zip(sources, sizes, strict=True):
        if source.kind == "jsonl" and by_lines:
            span = max(first - start, 0), min(last - start, size)
            if span[0] < span[1]:
                dealt.append(source if span == (0, size) else replace(source, span=span))
        elif first <= start + size // 2 < last:
            dealt.append(source)
        start += size
    return dealt


def _size(source: Source) -> int:
    if source.url:
        return PAGE_BYTES
    if source.path is None or not source.path.is_file():
        raise UsageError(
            f"{source.name} is a stream, which cannot be divided into shares",
            "save it to a file first",
        )
    return source.path.stat().st_size


def read_division(folder: Path) -> Division | None:
    """Return the division of the data set in `folder`; None if it is not in shares.

    Raises IntegrityError if its file is damaged or has another version than VERSION.
    """
    path = folder / dataset.SHARES
    try:
        data = json_value(path.read_bytes(), str(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not isinstance(data, dict) or data.get("version") != VERSION:
        raise IntegrityError(f"{path} is not version {VERSION} of this file", "update lcm")
    return parse(Division, data, str(path))


def check_division(folder: Path, count: int) -> Division | None:
    """Raise UsageError unless a data set in `count` shares can be written to `folder`.

    Returns its division if it has been begun.
    """
    if (division := read_division(folder)) is not None:
        if division.count != count:
            raise UsageError(
                f"{folder} is divided into {division.count} shares, not {count}",
                f"name one of these: --shard I/{division.count}, or choose another folder",
            )
        return division
    if folder.is_dir():
        _refuse_undivided(folder)
    return None


def _refuse_undivided(folder: Path) -> None:
    """Raise UsageError for a folder in which something other than shares was written."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if dataset.is_unfinished(folder) or dataset.read_manifest(folder) is not None:
        raise UsageError(
            f"{folder} holds a data set that is not divided into shares",
            "choose another folder, or delete it",
        )
    if names:
        raise UsageError(
            f"{folder} is not a data set: it has {names[0]} in it", "choose another folder"
        )


def join(folder: Path, share: Share, run: Mapping[str, Any], info: SpaceInfo, dtype: str) -> Path:
    """Take part in a divided data set, begun here if necessary; return the folder of the share.

    `run` is JSON data that identifies the documents and the options. Raises UsageError if other
    shares have another number, `run`, space or dtype, LcmError if another process writes there.
    """
    from filelock import FileLock, Timeout

    make_folder(folder)
    # The run goes through JSON, where tuples become lists: so does the one in the file.
    own = Division(VERSION, share.count, json.loads(json.dumps(run)), info, dtype)
    try:
        with FileLock(folder / dataset.LOCK, timeout=LOCK_SECONDS):
            known = check_division(folder, share.count)
            if known is None:
                dataset.write_json(folder / dataset.SHARES, asdict(own))
    except Timeout as error:
        raise LcmError(
            f"{folder} is being written by another process", "wait for it, or choose another name"
        ) from error
    if known not in (None, own):
        raise UsageError(
            f"the shares of {folder} were made from other documents or options",
            "repeat the command of the other shares, or choose another folder",
        )
    return folder_of(folder, share.index)


def is_finished(folder: Path, index: int) -> bool:
    """Return whether a share is complete."""
    return dataset.read_manifest(folder_of(folder, index)) is not None


def tally(folder: Path, count: int) -> Tally:
    """Return which of the shares in `folder` are finished, unfinished and missing."""
    found = Tally([], [], [])
    for index in range(count):
        if is_finished(folder, index):
            found.finished.append(index)
        else:
            begun = folder_of(folder, index).is_dir()
            (found.unfinished if begun else found.missing).append(index)
    return found


def complete(folder: Path, division: Division) -> list[Path]:
    """Return the folders of all shares. Raises IntegrityError if one of them is not finished."""
    if (error := incomplete(folder, tally(folder, division.count))) is not None:
        raise error
    return [folder_of(folder, index) for index in range(division.count)]


def incomplete(folder: Path, found: Tally) -> IntegrityError | None:
    """Return the error for a data set that lacks shares, None if it has all."""
    parts = [
        f"{what} {_listed(indices)}"
        for what, indices in (("unfinished", found.unfinished), ("missing", found.missing))
        if indices
    ]
    if not parts:
        return None
    count = sum(map(len, found))
    hint = f"repeat the command that writes it for each of them: --shard I/{count}"
    if found.finished:
        hint += f"; a finished share can be read alone: {folder_of(folder, found.finished[0])}"
    return IntegrityError(f"{folder} lacks some of its {count} shares: {'; '.join(parts)}", hint)


def _listed(indices: Sequence[int]) -> str:
    more = f" and {len(indices) - _LISTED} more" if len(indices) > _LISTED else ""
    return ", ".join(map(str, indices[:_LISTED])) + more
