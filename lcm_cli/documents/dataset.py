"""A data set: a folder of Parquet shards, and the manifest.json that says which ones count.

Shards are only added, never changed; the manifest is replaced in one step when all of them are
there. So a reader sees the whole of the last version, whatever a writer is doing or died doing.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lcm_cli.documents.document import SpaceInfo, check_space
from lcm_cli.errors import IntegrityError, LcmError, NotFoundError, UsageError
from lcm_cli.files import atomic_path

MANIFEST = "manifest.json"
VERSION = 1
_SHARD_NAME = re.compile(r"part-(\d{5,})\.parquet")
_LOCK = ".lock"


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
            f"write it again with -o {folder} --force, or name its shards: {folder}/part-*.parquet",
        )


def unlisted(folder: Path, manifest: Manifest) -> list[str]:
    """Return the shards that do not count: left by a writer that was stopped, or is at work."""
    listed = {shard.file for shard in manifest.shards}
    return [path.name for path in _shard_files(folder) if path.name not in listed]


def _shard_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("part-*.parquet") if _SHARD_NAME.match(path.name))


def _is_ours(path: Path) -> bool:
    """Tell our shards from files that another program named alike."""
    from lcm_cli.documents.tables import parquet_metadata

    try:
        return "lcm.version" in parquet_metadata(path)
    except LcmError:
        return False


class Draft:
    """A data set that is being written: hands out names for new shards, and puts them in force.

    `keep` (the old shards stay, the new ones are added) or `force` (they replace the old ones) is
    needed if there is a data set already.
    """

    def __init__(self, folder: Path, info: SpaceInfo, dtype: str, force: bool, keep: bool) -> None:
        self.folder = folder
        self._info = info
        self._dtype = dtype
        old = refuse_overwrite(folder, force=force, keep=keep)
        if keep and old is not None:
            _check_same(folder, old, info, dtype)
        self._kept = old.shards if keep and old is not None else []
        self._shards: list[Shard] = []
        numbers = [int(_SHARD_NAME.fullmatch(path.name)[1]) for path in _shard_files(folder)]  # type: ignore[index]
        self._next = max(numbers, default=-1) + 1

    def next_path(self) -> Path:
        """Return the path of the next shard: a name that no file has had, finished or not."""
        self._next += 1
        return self.folder / shard_name(self._next - 1)

    def add(self, shard: Shard) -> None:
        """Take a finished shard into the manifest to be."""
        self._shards.append(shard)

    def discard(self) -> None:
        """Remove the new shards; what was there before stays as it was."""
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
        with atomic_path(self.folder / MANIFEST, force=True) as path:
            path.write_text(json.dumps(asdict(manifest), indent=1) + "\n", encoding="utf-8")
        for name in unlisted(self.folder, manifest):
            (self.folder / name).unlink(missing_ok=True)


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
    folder: Path, info: SpaceInfo, dtype: str, *, force: bool = False, keep: bool = False
) -> Iterator[Draft]:
    """Make `folder` if need be and hold it alone while its data set is written.

    The new manifest is in force when this ends without an error. Raises UsageError if the folder
    holds anything and neither `force` nor `keep` allows that, LcmError if it is being written to.
    """
    from filelock import FileLock, Timeout

    if not folder.parent.is_dir():
        raise NotFoundError(f"no such folder: {folder.parent}", f"mkdir -p {folder.parent}")
    folder.mkdir(exist_ok=True)
    try:
        with FileLock(folder / _LOCK, blocking=False):
            draft = Draft(folder, info, dtype, force, keep)
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
