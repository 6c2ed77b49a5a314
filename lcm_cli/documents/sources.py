"""Expansion of paths (files, folders, globs, -) to the files and streams to read."""

import glob
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from lcm_cli.documents.encoding import STDIN
from lcm_cli.documents.kinds import HEAD, STREAM_HEAD, Kind, Source, sniff
from lcm_cli.documents.pages import fetch_page, is_address, page_id
from lcm_cli.errors import IntegrityError, LcmError, NotFoundError, UsageError
from lcm_cli.files import not_there

OnError = Callable[[LcmError], None]
_LISTED = 10  # files named in one message, at most


def expand_paths(
    paths: Sequence[str], report: OnError, kind: Kind | None = None
) -> Iterator[Source]:
    """Yield the sources that `paths` name, in order; those in a folder or glob are sorted by name.

    A path may be the address of a web page (http, https). `kind` is the format of all sources, None
    to detect each. Hidden files in folders are skipped. The first bytes of every file are examined
    here, so that unreadable files are known before anything is loaded or computed; problems go to
    `report`. Raises UsageError if - is named twice.
    """
    if list(paths).count("-") > 1:
        raise UsageError("- (standard input) is named twice", "it can be read only once")
    for path in paths:
        try:
            for source in _expand(path, report, kind):
                yield source if kind is None else replace(source, kind=kind)
        except LcmError as error:
            report(error)


def identify(paths: Sequence[str]) -> list[list[str | int]]:
    """Return name, size and modification time (ns) of each file in `paths`, to detect changes."""
    sources = expand_paths(paths, lambda error: None)
    files = [(source.name, source.path.stat()) for source in sources if source.path is not None]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in files]


@contextmanager
def opened(source: Source, stdin: BinaryIO | None = None) -> Iterator[tuple[BinaryIO, Kind]]:
    """Open a source; the context is its bytes from the beginning, and their format."""
    if source.kind is not None and source.path is not None:
        with _open(source.path) as file:
            yield file, source.kind
        return
    with ExitStack() as stack:
        if source.url:
            data, kind = fetch_page(source.url)
            yield io.BytesIO(data), source.kind or kind
            return
        if source.path is None:
            stream = stdin or sys.stdin.buffer
        else:
            stream = stack.enter_context(_open(source.path))
        head = stream.read(STREAM_HEAD)
        if head.startswith(b"PK\x03\x04"):  # the members, which identify the format, come later
            head += stream.read()
        kind = source.kind or sniff(head[:HEAD], source.name)
        yield io.BufferedReader(_Rejoined(head, stream)), kind


class _Rejoined(io.RawIOBase):
    """A stream with the bytes that were read from its head put back."""

    def __init__(self, head: bytes, stream: BinaryIO) -> None:
        self._head = head
        self._stream = stream
        # read1 returns what has arrived; read would wait until the buffer is full.
        self._read = getattr(stream, "read1", stream.read)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._head[: len(buffer)] or self._read(len(buffer))
        self._head = self._head[len(data) :]
        buffer[: len(data)] = data
        return len(data)


def _expand(path: str, report: OnError, kind: Kind | None) -> Iterator[Source]:
    if path == "-":
        yield Source(STDIN, STDIN)
    elif is_address(path):
        yield Source(path, page_id(path), url=path)
    elif os.path.isdir(path):  # noqa: PTH112 (a glob may not be a valid path)
        yield from _folder_sources(Path(path), report, kind)
    elif os.path.exists(path):  # noqa: PTH110
        yield _file_source(Path(path), Path(path).name, kind)
    elif glob.has_magic(path):  # tried last: a name may look like a glob
        yield from _glob_sources(path, report, kind)
    else:
        raise not_there(Path(path))


def _file_source(path: Path, id: str, kind: Kind | None) -> Source:
    id = os.fsencode(id).decode("utf-8", "replace")  # a name may be any bytes, an id is text
    if not path.exists():
        raise not_there(path)
    if not path.is_file():
        return Source(str(path), id, path)  # a pipe such as <(command) can be read only once
    with _open(path) as file:
        head = file.read(HEAD)
    kind = kind or sniff(head, str(path), path.suffix)
    return Source(str(path), id, path, kind)


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise not_there(path) from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", f"see: ls -l {path}") from error


def _glob_sources(pattern: str, report: OnError, kind: Kind | None) -> Iterator[Source]:
    matches = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
    files = [Path(name) for name in matches if Path(name).is_file()]
    # ** also matches the files in each folder that it matches; * may match data set folders.
    folders = [] if "**" in pattern else [Path(name) for name in matches if Path(name).is_dir()]
    if not files and not folders:
        raise NotFoundError(f"no file matches {pattern}")
    if files:
        common = os.path.commonpath([path.parent for path in files])
        ids = {path: path.relative_to(common).as_posix() for path in files}
        yield from _file_sources(ids, Path(common), report, kind)
    for folder in folders:
        yield from _folder_sources(folder, report, kind)


def _folder_sources(folder: Path, report: OnError, kind: Kind | None) -> Iterator[Source]:
    """Yield the shards of the data sets at or below a folder, then every other file below it."""
    files: dict[Path, str] = {}
    shards: list[Source] = []
    for path, folders, names in _walk(folder):
        own_shards = _shards(path)
        if own_shards is not None:
            shards += own_shards
            folders.clear()  # nothing else in the folder of a data set is read
            continue
        files |= {path / name: (path / name).relative_to(folder).as_posix() for name in names}
    if not files and not shards:
        raise NotFoundError(f"no documents in the folder {folder}", "hidden files are not read")
    yield from shards
    yield from _file_sources(files, folder, report, kind)


def _walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    def fail(error: OSError) -> None:
        raise UsageError(f"cannot read {error.filename}: {error.strerror}") from error

    seen = set()
    for name, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        if (real := os.path.realpath(name)) in seen:  # a link may lead back to its own folder
            folders.clear()
            continue
        seen.add(real)
        # In place: os.walk descends into what is left in this very list.
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        yield Path(name), folders, sorted(each for each in files if not each.startswith("."))


def _shards(folder: Path) -> list[Source] | None:
    """Return the shards of the data set in `folder`, None if it does not hold one."""
    from lcm_cli.documents import dataset, shares

    if (division := shares.read_division(folder)) is not None:
        parts = shares.complete(folder, division)
        return [shard for part in parts for shard in _shards(part) or ()]
    manifest = dataset.read_manifest(folder)
    if manifest is None:
        dataset.refuse_unfinished(folder)
        return None
    paths = dataset.check_shards(folder, manifest)
    return [Source(str(path), path.name, path, "parquet") for path in paths]


def _file_sources(
    files: dict[Path, str], folder: Path, report: OnError, kind: Kind | None
) -> Iterator[Source]:
    """Yield the readable files (path to id) as sources, and report the others together."""
    sources, problems = [], []
    for path, id in files.items():
        try:
            source = _file_source(path, id, kind)
            if source.kind is None:  # reading from a pipe might never end
                raise IntegrityError(f"{path} is not a regular file")
            sources.append(source)
        except LcmError as error:
            problems.append(error)
    if problems:
        report(_combined(problems, len(files), folder))
    yield from sources


def _combined(problems: list[LcmError], file_count: int, folder: Path) -> LcmError:
    if len(problems) == 1:
        return problems[0]
    lines = [error.message for error in problems[:_LISTED]]
    if len(problems) > _LISTED:
        lines.append(f"and {len(problems) - _LISTED} more")
    return IntegrityError(
        f"{len(problems)} of {file_count} files in {folder} cannot be read:\n" + "\n".join(lines),
        f"move them elsewhere, or name only the documents, as in {folder / '*.txt'}",
    )
