"""A data set: a folder of Parquet shards, and the manifest.json that says which ones count.

Shards are only added, never changed; the manifest is replaced in one step when all of them are
there. So a reader sees the whole of the last version, whatever a writer is doing or died doing.

A writer that can go on after it was stopped keeps a journal of the shards that are done, beside
them, until the manifest is there; and of the open shard, now and then, the documents it has so far.
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

MANIFEST = "manifest.json"
VERSION = 1
_SHARD_NAME = re.compile(r"part-(\d{5,})\.parquet")
_LOCK = ".lock"
_JOURNAL = ".unfinished.json"
_SAVED = ".saved-"


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a data set, and what is in it."""

    file: str
    documents: int
    concepts: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says: the space and number format of the concepts, and the shards."""

    kind: str
    version: int
    lcm_version: str
    space: SpaceInfo
    dtype: str
    documents: int  # of all shards
    concepts: int
    shards: list[Shard] = field(default_factory=list)


@dataclass(frozen=True)
class Journal:
    """What an unfinished data set is made of, and which shards of it are done.

    `run` says which documents it is made of, and how; `saved` are files with the documents of the
    open shard; `last` is the id of the last document done.
    """

    run: dict[str, Any]
    space: SpaceInfo
    dtype: str
    shards: list[Shard] = field(default_factory=list)
    saved: list[Shard] = field(default_factory=list)
    last: str = ""

    @property
    def documents(self) -> int:
        """Number of documents done."""
        return sum(shard.documents for shard in [*self.shards, *self.saved])


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"part-{number:05d}.parquet"


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of the data set in `folder`; None if the folder is not a data set.

    Raises IntegrityError if it is damaged or was made by a later version.
    """
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise IntegrityError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(data, dict) or data.get("kind") != "dataset":
        return None  # somebody else's manifest
    if data.get("version") != VERSION:
        raise IntegrityError(
            f"{path} has version {data.get('version')!r}, and this lcm reads {VERSION}",
            "update lcm",
        )
    from lcm_cli.schema import parse

    return parse(Manifest, data, str(path))


def check_shards(folder: Path, manifest: Manifest) -> list[Path]:
    """Return the paths of the shards, in order. Raises IntegrityError if one has another size."""
    for shard in manifest.shards:
        path = folder / shard.file
        if not path.is_file():
            raise IntegrityError(
                f"{folder} lacks {shard.file}, which its {MANIFEST} lists", _AGAIN.format(folder)
            )
        if path.stat().st_size != shard.bytes:
            raise IntegrityError(
                f"{path} has {path.stat().st_size} bytes, and {MANIFEST} says {shard.bytes}",
                _AGAIN.format(folder),
            )
    return [folder / shard.file for shard in manifest.shards]


_AGAIN = "copy the data set again from where it came, or write it again with -o {} --force"


def refuse_unfinished(folder: Path) -> None:
    """Raise IntegrityError if `folder` holds shards whose data set was never finished."""
    if any(_is_ours(path) for path in _shard_files(folder)):
        raise IntegrityError(
            f"{folder} has shards but no {MANIFEST}: writing it was cut off",
            f"finish it with the command that began it, write it again with -o {folder} --force,"
            f" or name its shards: {folder}/part-*.parquet",
        )


def unlisted(folder: Path, manifest: Manifest) -> list[str]:
    """Return the shards that do not count: left by a writer that was stopped, or is at work."""
    listed = {shard.file for shard in manifest.shards}
    return [path.name for path in _shard_files(folder) if path.name not in listed]


def _shard_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("part-*.parquet") if _SHARD_NAME.match(path.name))


def _is_ours(path: Path) -> bool:
    """Tell our shards from files that another program named alike."""
    from lcm_cli.documents.arrow import parquet_metadata

    try:
        return "lcm.version" in parquet_metadata(path)
    except LcmError:
        return False


class Draft:
    """A data set that is being written: hands out names for new shards, and puts them in force.

    `keep` (the old shards stay, the new ones are added) or `force` (they replace the old ones) is
    needed if there is a data set already. With a `run`, an unfinished data set of the same run goes
    on: `done` documents, the `last` of which has this id, are in its shards or `saved`.
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
        found = None if force or run is None else _unfinished(folder, dict(run), info, dtype)
        old = read_manifest(folder)
        if found is None:
            old = refuse_overwrite(folder, force=force, keep=keep)
        if keep and old is not None:
            _check_same(folder, old, info, dtype)
        self._kept = old.shards if keep and old is not None else []
        self._shards = found.shards if found else []
        self.saved = found.saved if found else []
        self.done, self.last = (found.documents, found.last) if found else (0, "")
        if found is not None:
            _remove_rest(
                folder, {shard.file for shard in [*(old.shards if old else []), *self._shards]}
            )
        elif force:
            (folder / _JOURNAL).unlink(missing_ok=True)
        _remove_halves(folder)
        self._remove_saved(keep={each.file for each in self.saved})
        numbers = [int(_SHARD_NAME.fullmatch(path.name)[1]) for path in _shard_files(folder)]  # type: ignore[index]
        self._next = max(numbers, default=-1) + 1

    def next_path(self) -> Path:
        """Return the path of the next shard: a name that no file has had, finished or not."""
        self._next += 1
        return self.folder / shard_name(self._next - 1)

    @property
    def goes_on(self) -> bool:
        """Whether the same run can go on with this after it was stopped."""
        return self._run is not None

    def saved_path(self) -> Path:
        """Return the path of the next file for documents of the open shard."""
        return self.folder / f"{_SAVED}{len(self.saved):05d}.parquet"

    def save(self, file: Shard, last: str) -> None:
        """Note a file with documents of the open shard, up to `last`."""
        self.saved.append(file)
        self._note(last)

    def add(self, shard: Shard, last: str) -> None:
        """Take a finished shard into the manifest to be; `last` is its last document."""
        self._shards.append(shard)
        self.saved = []
        self._note(last)
        self._remove_saved()  # after the journal has the shard that they are in

    def _note(self, last: str) -> None:
        if self._run is not None:
            about = dict(self._run), self._info, self._dtype
            journal = Journal(*about, self._shards, self.saved, last)
            _write_json(self.folder / _JOURNAL, asdict(journal))

    def _remove_saved(self, keep: Collection[str] = ()) -> None:
        for path in self.folder.glob(f"{_SAVED}*.parquet"):
            if path.name not in keep:
                path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove the new shards; what was there before stays as it was. A run keeps them."""
        if self._run is not None:
            return
        for shard in self._shards:
            (self.folder / shard.file).unlink(missing_ok=True)

    def finish(self) -> None:
        """Replace the manifest, then remove the shards that it does not list."""
        from lcm_cli import __version__

        shards = [*self._kept, *self._shards]
        documents = sum(shard.documents for shard in shards)
        concepts = sum(shard.concepts for shard in shards)
        manifest = Manifest(
            "dataset", VERSION, __version__, self._info, self._dtype, documents, concepts, shards
        )
        _write_json(self.folder / MANIFEST, asdict(manifest))
        (self.folder / _JOURNAL).unlink(missing_ok=True)
        for name in unlisted(self.folder, manifest):
            (self.folder / name).unlink(missing_ok=True)


def is_unfinished(folder: Path) -> bool:
    """Return whether `folder` holds a data set that the command that began it can finish."""
    return (folder / _JOURNAL).is_file()


def _unfinished(folder: Path, run: dict[str, Any], info: SpaceInfo, dtype: str) -> Journal | None:
    """Return the journal of the same run. Raises UsageError if there is that of another."""
    from lcm_cli.schema import parse

    path = folder / _JOURNAL
    if not path.is_file():
        return None
    again = f"start anew: -o {folder} --force"
    try:
        journal = parse(Journal, json.loads(path.read_text(encoding="utf-8")), str(path))
    except ValueError as error:
        raise IntegrityError(f"{path} is not valid JSON: {error}", again) from error
    if (journal.run, journal.space, journal.dtype) != (json.loads(json.dumps(run)), info, dtype):
        raise UsageError(
            f"{folder} holds an unfinished data set of other documents or options",
            f"finish it with the command that began it, or {again}",
        )
    for shard in [*journal.shards, *journal.saved]:
        file = folder / shard.file
        if not file.is_file() or file.stat().st_size != shard.bytes:
            raise IntegrityError(f"{file} is not as its writer left it", again)
    return journal


def _remove_rest(folder: Path, counted: set[str]) -> None:
    """Remove shards that a killed writer finished and did not note."""
    for path in _shard_files(folder):
        if path.name not in counted:
            path.unlink(missing_ok=True)


def _remove_halves(folder: Path) -> None:
    """Remove the halves of files that killed writers left. There is no other writer now."""
    for path in folder.glob(".*.part"):
        path.unlink(missing_ok=True)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    with atomic_path(path, force=True) as temporary:
        temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def refuse_overwrite(folder: Path, *, force: bool = False, keep: bool = False) -> Manifest | None:
    """Return the manifest that is there. Raises UsageError unless the folder may be written to."""
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
        what = "exists already" if old else "holds what is left of a data set that was cut off"
        raise UsageError(f"{folder} {what}", "choose another name, or add --force")
    return old


def _check_same(folder: Path, old: Manifest, info: SpaceInfo, dtype: str) -> None:
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
    """Make `folder`, and those above it, if need be; hold it alone while its data set is written.

    The new manifest is in force when this ends without an error. Raises UsageError if this is not a
    folder, or holds anything and neither `force` nor `keep` allows that nor the same `run` was
    stopped, LcmError if it is being written to.
    """
    from filelock import FileLock, Timeout

    make_folder(folder)
    try:
        with FileLock(folder / _LOCK, blocking=False):
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
