"""Writing files so that a reader sees the old one or the new one, never half of either."""

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
    """Yield a temporary path beside `path`; on success it is fsynced and renamed over `path`.

    Raises UsageError if `path` exists and `force` is false, NotFoundError if its folder does not
    exist, LcmError if the disk is full. On any error `path` stays as it was.
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
        # mkstemp makes private files; give the result the permissions of any new file.
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
    """Yield a temporary path for each of `names`; on success all are renamed, the last name last.

    So a file that means that the others are whole comes last. The folder is made if need be, and
    goes again on an error. Raises as `make_folder` and `atomic_path` do.
    """
    made = not folder.exists()
    make_folder(folder)
    try:
        with ExitStack() as stack:
            # A stack unwinds from its end: the first to enter is the last to be renamed.
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
    """Make a folder, and those above it, if need be.

    Raises UsageError if one of them is something else or cannot be made, LcmError for a full disk.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        there = next(each for each in (path, *path.parents) if os.path.lexists(each))
        raise UsageError(f"{there} is not a folder", "choose another name") from error
    except OSError as error:
        raise disk_error(error, path) from error


def not_there(path: Path, what: str = "file") -> NotFoundError:
    """Return the error of a path that leads nowhere; its hint has what is called like it there."""
    from lcm_cli.schema import nearest

    folder = path.parent
    here = "" if path.is_absolute() else f"paths are from the current folder, {Path.cwd()}"
    if not folder.is_dir():
        return NotFoundError(f"no such {what}: {path} (there is no folder {folder})", here)
    near = nearest(path.name, (entry.name for entry in folder.iterdir() if entry.exists()))
    like = " or ".join(str(folder / name) for name in near)
    hint = f"did you mean {like}?" if near else here or f"see: ls {folder}"
    return NotFoundError(f"no such {what}: {path}", hint)


def disk_error(error: OSError, path: Path) -> LcmError:
    """Put a failed write into words."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return LcmError(f"no space left while writing {path}", "free some space and run it again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UsageError(f"cannot write {path}: {error.strerror}", "choose another folder")
    return LcmError(f"cannot write {path}: {error.strerror or error}")


def sha256(path: Path) -> str:
    """Return the hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_folder(new: Path, place: Path) -> None:
    """Put a folder in its place; what was there is gone."""
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
