"""A data set: a folder of Parquet shards and a manifest.json that lists them.

Shards are added, never changed, and the manifest is replaced atomically once all of them are
written. A reader therefore always sees the complete last version, even while a writer is at work or
after it has died.

A writer that can be resumed keeps a journal of the finished shards beside them until the manifest
is written, and periodically saves the documents of the open shard to files of their own.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lcm_cli.documents.document import SpaceInfo, check_space
from lcm_cli.errors import IntegrityError, LcmError, UsageError
from lcm_cli.files import atomic_path, make_folder
from lcm_cli.schema import json_value, parse

MANIFEST = "manifest.json"
SHARES = "shares.json"  # in the folder of a data set in shares (see documents.shares)
VERSION = 1
_SHARD_NAME = re.compile(r"part-(\d{5,})\.parquet")
# Readers skip hidden files, so none of these is taken for a shard or another document.
LOCK = ".lock"
_JOURNAL = ".unfinished.json"
_SAVED = ".saved-"


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a data set, with its counts, its size in bytes and its checksum."""

    file: str
    documents: int
    concepts: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json: the space and dtype of the concepts, and the shards."""

    kind: str
    version: int
    lcm_version: str
    space: SpaceInfo
    dtype: str
    documents: int  # in all shards
    concepts: int  # in all shards, without those of targets and plans
    shards: list[Shard] = field(default_factory=list)


@dataclass(frozen=True)
class Journal:
    """The state of an unfinished data set.

    `run` identifies the input documents and the options, `saved` lists the files with documents of
    the open shard, and `last` is the id of the last document written.
    """

    run: dict[str, Any]
    space: SpaceInfo
    dtype: str
    shards: list[Shard] = field(default_factory=list)
    saved: list[Shard] = field(default_factory=list)
    last: str = ""

    @property
    def documents(self) -> int:
        """The number of documents written."""
        return sum(shard.documents for shard in [*self.shards, *self.saved])


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"part-{number:05d}.parquet"


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of the data set in `folder`; None if the folder is not a data set.

    Raises IntegrityError if the manifest is damaged or has another version than VERSION.
    """
    path = folder / MANIFEST
    try:
        data = json_value(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None
    if not isinstance(data, dict) or data.get("kind") != "dataset":
        return None  # another program's manifest
    if data.get("version") != VERSION:
        raise IntegrityError(
            f"{path} has version {data.get('version')!r}, but this lcm reads version {VERSION}",
            "update lcm",
        )
    return parse(Manifest, data, str(path))


def check_shards(folder: Path, manifest: Manifest) -> list[Path]:
    """Return the paths of the shards, in order.

    Raises IntegrityError if one is missing or has another size than the manifest lists.
    """
    for shard in manifest.shards:
        path = folder / shard.file
        if not path.is_file():
            raise IntegrityError(
                f"{folder} lacks {shard.file}, which its {MANIFEST} lists", _AGAIN.format(folder)
            )
        if path.stat().st_size != shard.bytes:
            raise IntegrityError(
                f"{path} has {path.stat().st_size} bytes, but {MANIFEST} lists {shard.bytes}",
                _AGAIN.format(folder),
            )
    return [folder / shard.file for shard in manifest.shards]


_AGAIN = "copy the data set again from its source, or write it again with -o {} --force"


def refuse_unfinished(folder: Path) -> None:
    """Raise IntegrityError if `folder` holds shards whose data set was never finished."""
    if any(_is_by_lcm(path) for path in _shard_files(folder)):
        raise IntegrityError(
            f"{folder} has shards but no {MANIFEST}: its writer was cut off",
            f"repeat the command that was writing it, write it again with -o {folder} --force,"
            f" or name its shards: {folder}/part-*.parquet",
        )


def unlisted(folder: Path, manifest: Manifest) -> list[str]:
    """Return the shards that the manifest does not list: from a stopped or a running writer."""
    listed = {shard.file for shard in manifest.shards}
    return [path.name for path in _shard_files(folder) if path.name not in listed]


def _shard_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("part-*.parquet") if _SHARD_NAME.match(path.name))


def _is_by_lcm(path: Path) -> bool:
    """Return whether lcm wrote this file: other programs use the same names for shards."""
    from lcm_cli.documents.arrow import parquet_metadata

    try:
        return "lcm.version" in parquet_metadata(path)
    except LcmError:
        return False


class Draft:
    """A data set being written: names its new shards, and lists them in the manifest at the end.

    If the folder holds a data set, `keep` adds the new shards to it and `force` replaces it; one of
    them is required. With a `run`, an unfinished data set of the same run is resumed: its shards
    and its `saved` files hold `done` documents, the last of which has the id `last`.
    """

    def __init__(
        self,
        folder: Path,
        info: SpaceInfo,
        dtype: str,
        force: bool,
        keep: bool,
        run: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self._info = info
        self._dtype = dtype
        self._run = run
        journal = None if force or run is None else _read_journal(folder, dict(run), info, dtype)
        old = read_manifest(folder)
        if journal is None:
            old = refuse_overwrite(folder, force=force, keep=keep)
        if keep and old is not None:
            _check_compatible(folder, old, info, dtype)
        self._kept = old.shards if keep and old is not None else []
        self._shards = journal.shards if journal else []
        self.saved = journal.saved if journal else []
        self.done, self.last = (journal.documents, journal.last) if journal else (0, "")
        if journal is not None:
            _remove_unrecorded(
                folder, {shard.file for shard in [*(old.shards if old else []), *self._shards]}
            )
        elif force:
            (folder / _JOURNAL).unlink(missing_ok=True)
        _remove_partial_files(folder)
        self._remove_saved(keep={file.file for file in self.saved})
        numbers = [int(_SHARD_NAME.fullmatch(path.name)[1]) for path in _shard_files(folder)]  # type: ignore[index]
        self._next = max(numbers, default=-1) + 1

    def next_path(self) -> Path:
        """Return the path of the next shard, numbered after every shard in the folder."""
        self._next += 1
        return self.folder / shard_name(self._next - 1)

    @property
    def resumable(self) -> bool:
        """Whether the same run can resume this data set after it was stopped."""
        return self._run is not None

    def saved_path(self) -> Path:
        """Return the path of the next file for documents of the open shard."""
        return self.folder / f"{_SAVED}{len(self.saved):05d}.parquet"

    def save(self, file: Shard, last: str) -> None:
        """Record a file with documents of the open shard; the id of its last one is `last`."""
        self.saved.append(file)
        self._write_journal(last)

    def add(self, shard: Shard, last: str) -> None:
        """Record a finished shard; the id of its last document is `last`."""
        self._shards.append(shard)
        self.saved = []
        self._write_journal(last)
        # Only now: a kill before the journal lists the shard would lose the saved documents.
        self._remove_saved()

    def _write_journal(self, last: str) -> None:
        if self._run is not None:
            origin = dict(self._run), self._info, self._dtype
            journal = Journal(*origin, self._shards, self.saved, last)
            write_json(self.folder / _JOURNAL, asdict(journal))

    def _remove_saved(self, keep: Collection[str] = ()) -> None:
        for path in self.folder.glob(f"{_SAVED}*.parquet"):
            if path.name not in keep:
                path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove the new shards, unless a run can resume with them; older ones stay."""
        if self._run is not None:
            return
        for shard in self._shards:
            (self.folder / shard.file).unlink(missing_ok=True)

    def finish(self) -> None:
        """Replace the manifest, then remove the journal and the shards that it does not list."""
        from lcm_cli.version import __version__

        shards = [*self._kept, *self._shards]
        documents = sum(shard.documents for shard in shards)
        concepts = sum(shard.concepts for shard in shards)
        manifest = Manifest(
            "dataset", VERSION, __version__, self._info, self._dtype, documents, concepts, shards
        )
        write_json(self.folder / MANIFEST, asdict(manifest))
        (self.folder / _JOURNAL).unlink(missing_ok=True)
        for name in unlisted(self.folder, manifest):
            (self.folder / name).unlink(missing_ok=True)


def is_unfinished(folder: Path) -> bool:
    """Return whether `folder` holds an unfinished data set that its command can resume."""
    return (folder / _JOURNAL).is_file()


def _read_journal(folder: Path, run: dict[str, Any], info: SpaceInfo, dtype: str) -> Journal | None:
    """Return the journal in `folder`, None if there is none.

    Raises UsageError if it belongs to another run, IntegrityError if one of its files has changed.
    """
    path = folder / _JOURNAL
    if not path.is_file():
        return None
    start_over = f"start over: -o {folder} --force"
    journal = parse(Journal, json_value(path.read_bytes(), str(path), start_over), str(path))
    # The journal's run went through JSON, where tuples became lists; so must the one to compare.
    if (journal.run, journal.space, journal.dtype) != (json.loads(json.dumps(run)), info, dtype):
        raise UsageError(
            f"{folder} holds an unfinished data set made from other documents or options",
            f"finish it by repeating the command that was writing it, or {start_over}",
        )
    for shard in [*journal.shards, *journal.saved]:
        file = folder / shard.file
        if not file.is_file() or file.stat().st_size != shard.bytes:
            raise IntegrityError(
                f"{file} is missing or has changed since it was written", start_over
            )
    return journal


def _remove_unrecorded(folder: Path, recorded: set[str]) -> None:
    """Remove shards that a killed writer had finished but not yet recorded."""
    for path in _shard_files(folder):
        if path.name not in recorded:
            path.unlink(missing_ok=True)


def _remove_partial_files(folder: Path) -> None:
    """Remove partial files left by killed writers; call it only while holding the lock."""
    for path in folder.glob(".*.part"):
        path.unlink(missing_ok=True)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write `data` to a file as JSON, replacing it."""
    with atomic_path(path, force=True) as temporary:
        temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def refuse_overwrite(folder: Path, *, force: bool = False, keep: bool = False) -> Manifest | None:
    """Return the manifest in `folder`, if any. Raises UsageError unless writing there is allowed.

    A folder with files of other programs is refused even with `force`.
    """
    if (folder / SHARES).is_file():
        raise UsageError(
            f"{folder} holds a data set in shares",
            "to write one of them, add --shard I/N; or choose another folder, or delete it",
        )
    old = read_manifest(folder)
    if old is None:
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        foreign = sorted(name for name in names if not _SHARD_NAME.fullmatch(name))
        if foreign:
            raise UsageError(
                f"{folder} is not a data set: it has {foreign[0]} in it", "choose another folder"
            )
        if not names:
            return None
    if not (force or (keep and old is not None)):
        what = "exists already" if old else "holds shards of a data set that was cut off"
        raise UsageError(f"{folder} {what}", "choose another name, or add --force")
    return old


def _check_compatible(folder: Path, old: Manifest, info: SpaceInfo, dtype: str) -> None:
    check_space(old.space, info)
    if old.dtype != dtype:
        raise UsageError(
            f"{folder} holds {old.dtype} concepts, not {dtype}", f"add --dtype {old.dtype}"
        )


@contextmanager
def writing(
    folder: Path,
    info: SpaceInfo,
    dtype: str,
    *,
    force: bool = False,
    keep: bool = False,
    run: Mapping[str, Any] | None = None,
) -> Iterator[Draft]:
    """Lock `folder` while a data set is written to it; missing folders are created.

    The new manifest takes effect when the context ends without an error. Raises UsageError if
    `folder` is a file, or if it is not empty and neither `force`, `keep` nor resuming the same
    `run` permits writing there; LcmError if another process is writing to it.
    """
    from filelock import FileLock, Timeout

    make_folder(folder)
    try:
        with FileLock(folder / LOCK, blocking=False):
            draft = Draft(folder, info, dtype, force, keep, run)
            try:
                yield draft
                draft.finish()
            except BaseException:
                draft.discard()
                raise
    except Timeout as error:
        raise LcmError(
            f"{folder} is being written by another process", "wait for it, or choose another name"
        ) from error
