"""Atomic writing of files and folders: readers see the old content or the new, never a mixture."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from lcm_cli.errors import LcmError, NotFoundError, UsageError


@contextmanager
def atomic_path(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success, flush it to disk and rename it to `path`.

    Raises UsageError if `path` exists and `force` is false, NotFoundError if its folder does not
    exist, LcmError if the disk is full. On any error, `path` stays unchanged.
    """
    if not path.parent.is_dir():
        raise NotFoundError(f"no such folder: {path.parent}", f"create it: mkdir -p {path.parent}")
    if path.exists() and not force:
        raise UsageError(f"{path} exists already", "choose another name, or add --force")
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        # mkstemp creates private files; give the result the permissions of any new file.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_files(
    folder: Path, names: Sequence[str], *, force: bool = False
) -> Iterator[dict[str, Path]]:
    """Yield a temporary path for each of `names`; on success, rename them all in order.

    The last file can thus mark the others as complete. The folder is created if necessary, and then
    removed on an error. Raises as `make_folder` and `atomic_path` do.
    """
    made = not folder.exists()
    make_folder(folder)
    try:
        with ExitStack() as stack:
            # A stack unwinds in reverse: the first to enter is the last to be renamed.
            yield {
                name: stack.enter_context(atomic_path(folder / name, force=force))
                for name in reversed(names)
            }
    except BaseException:
        if made:
            with suppress(OSError):  # not empty
                folder.rmdir()
        raise


def make_folder(path: Path) -> None:
    """Create a folder and its parents, if necessary.

    Raises UsageError if one of them is not a folder or cannot be created, LcmError for a full disk.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        there = next(each for each in (path, *path.parents) if os.path.lexists(each))
        raise UsageError(f"{there} is not a folder", "choose another name") from error
    except OSError as error:
        raise disk_error(error, path) from error


def not_there(path: Path, what: str = "file") -> NotFoundError:
    """Return the error for a path that does not exist, with similar names in its hint."""
    from lcm_cli.schema import nearest

    folder = path.parent
    here = "" if path.is_absolute() else f"paths are relative to the current folder, {Path.cwd()}"
    if not folder.is_dir():
        return NotFoundError(f"no such {what}: {path} (there is no folder {folder})", here)
    near = nearest(path.name, (entry.name for entry in folder.iterdir() if entry.exists()))
    like = " or ".join(str(folder / name) for name in near)
    hint = f"did you mean {like}?" if near else here or f"see: ls {folder}"
    return NotFoundError(f"no such {what}: {path}", hint)


def disk_error(error: OSError, path: Path) -> LcmError:
    """Return the error for a failed write to `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return LcmError(f"no space left while writing {path}", "free some space and run it again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UsageError(f"cannot write {path}: {error.strerror}", "choose another folder")
    return LcmError(f"cannot write {path}: {error.strerror or error}")


def sha256(path: Path) -> str:
    """Return the hex SHA-256 digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_folder(new: Path, place: Path) -> None:
    """Move the folder `new` to `place`, replacing what is there."""
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
