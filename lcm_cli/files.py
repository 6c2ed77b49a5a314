"""Atomic writing of files and folders: readers see the old content or the new, never a mixture.

Also the reading of small text files, and the errors for missing files and failed writes.
"""

import codecs
import errno
import hashlib
import os
import re
import shlex
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeGuard

from lcm_cli.errors import IntegrityError, LcmError, NotFoundError, UsageError

# Open descriptors as files; a process substitution of the shell, >(command), is one.
_DESCRIPTOR = re.compile(r"(?:/dev/fd|/proc/self/fd)/(\d+)|/dev/(?:stdout|stderr)")
_STREAMS = {"stdout": 1, "stderr": 2}


@contextmanager
def atomic_path(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success, flush it to disk and rename it to `path`.

    A link stays and the file behind it is written. A replaced file keeps its mode, owner and
    extended attributes. A device, a pipe or a descriptor (/dev/fd/N) is opened at once and receives
    the content at the end, without `force` unless it is a disk.

    Raises UsageError if `path` exists and `force` is false, or if it is a folder; NotFoundError if
    its folder does not exist; LcmError if the disk is full. On any error, `path` stays unchanged.
    A file that appears at `path` in the meantime is not overwritten without `force`: the UsageError
    then says where the result was kept.
    """
    temporary = None
    try:
        target = _behind_links(path)
        if isinstance(target, Path) and target.is_block_device() and not force:
            raise UsageError(f"{path} is a disk", "choose another name, or add --force")
        writing = _replacing(target, path, force) if _is_ordinary(target) else _streaming(target)
        with writing as temporary:
            yield temporary
    except OSError as error:
        # Errors of other files, and those without a number, say themselves what is wrong.
        ours = (None, str(temporary), str(path))
        if temporary is not None and (error.errno is None or error.filename not in ours):
            raise
        raise disk_error(error, path) from error


@contextmanager
def _replacing(target: Path, path: Path, force: bool) -> Iterator[Path]:
    """Yield a temporary path beside `target` and rename it in the end; `path` is for messages."""
    folder = target.parent
    if not folder.is_dir():
        raise NotFoundError(f"no such folder: {folder}", f"create it: mkdir -p {folder}")
    if target.is_dir():
        raise UsageError(f"{path} is a folder", f"name a file, such as {path / 'NAME'}")
    if target.exists() and not force:
        raise UsageError(f"{path} exists already", "choose another name, or add --force")
    # A part of the name only: the whole one could become longer than file systems allow.
    handle, name = tempfile.mkstemp(dir=folder, prefix=f".{path.name[:40]}.", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _take_attributes(temporary, target)
        _sync(temporary)
        _place(temporary, target, path, force)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _streaming(target: Path | int) -> Iterator[Path]:
    """Open a device, a pipe or a descriptor, yield a temporary path, and copy its file there."""
    # Opened at once: a pipe's reader sees the end even if there is no result.
    flags = os.O_WRONLY | os.O_NOCTTY  # a terminal must not become the process's own
    opened = os.dup(target) if isinstance(target, int) else os.open(target, flags)
    with open(opened, "wb") as stream, tempfile.TemporaryDirectory() as folder:  # noqa: PTH123
        temporary = Path(folder) / "result"
        temporary.touch()
        yield temporary
        with temporary.open("rb") as file:
            shutil.copyfileobj(file, stream)
        stream.flush()


def _behind_links(path: Path) -> Path | int:
    """Return the file that a path names through links, or the number of an open descriptor.

    The file need not exist. Raises UsageError for links in a circle.
    """
    place = path
    for _ in range(40):  # as many as Linux follows
        if descriptor := _DESCRIPTOR.fullmatch(str(place)):
            return int(descriptor[1] or _STREAMS[place.name])
        if not place.is_symlink():
            return place
        place = place.parent / place.readlink()
    raise UsageError(f"{path} is a link that leads back to itself", f"remove it: rm {path}")


def _is_ordinary(target: Path | int) -> TypeGuard[Path]:
    """Return whether `target` is a file or a folder, or does not exist."""
    if isinstance(target, int):
        return False
    return target.is_file() or target.is_dir() or not target.exists()


def _take_attributes(temporary: Path, target: Path) -> None:
    """Give a new file the owner, mode and extended attributes of the one that it replaces."""
    if not target.is_file():
        # mkstemp creates private files; give the result the permissions of any new file.
        temporary.chmod(0o666 & ~umask())
        return
    old = target.stat()
    for user, group in ((old.st_uid, -1), (-1, old.st_gid)):
        with suppress(OSError):  # only root may give a file away
            os.chown(temporary, user, group)
    temporary.chmod(stat.S_IMODE(old.st_mode))
    with suppress(OSError):  # attributes that may not be read
        shutil.copystat(target, temporary)
    os.utime(temporary)  # now: copystat has copied the times as well


def _place(temporary: Path, target: Path, path: Path, force: bool) -> None:
    """Rename a finished file, or keep it under another name if its own is taken."""
    # In this order: a file may appear between the two tests.
    if force and (not os.path.lexists(target) or target.is_file()):
        temporary.replace(target)
        return
    try:
        _rename_to_new(temporary, target)
    except FileExistsError as error:
        kept = _renamed_beside(temporary, target)
        raise UsageError(
            f"{path} appeared while its content was computed, and was not overwritten",
            f"the result is in {kept}",
        ) from error


def _rename_to_new(temporary: Path, target: Path) -> None:
    """Rename a file unless `target` exists: then raise FileExistsError."""
    try:
        os.link(temporary, target)  # unlike a rename, never replaces a file
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        temporary.replace(target)


def _renamed_beside(temporary: Path, target: Path) -> Path:
    """Rename a file to the first free one of NAME.1.SUFFIX, NAME.2.SUFFIX...; return it."""
    number = 0
    while True:
        number += 1
        other = target.with_name(f"{target.stem}.{number}{target.suffix}")
        with suppress(FileExistsError):
            _rename_to_new(temporary, other)
            return other


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


def read_utf8(path: Path) -> str:
    """Return the text of a small file, without a byte order mark.

    Raises UsageError if it cannot be read, IntegrityError if it is not UTF-8.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", f"see: ls -l {path}") from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data[:4]:
        hint = f"convert it: iconv -f UTF-16 -t UTF-8 {shlex.quote(str(path))} > NEW"
        raise IntegrityError(f"{path} is UTF-16, not UTF-8", hint)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise IntegrityError(
            f"{path} is not UTF-8 at byte {error.start} (line {line})", "save it as UTF-8"
        ) from error


def disk_error(error: OSError, path: Path) -> LcmError:
    """Return the error for a failed write to `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return LcmError(f"no space left while writing {path}", "free some space and run it again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UsageError(f"cannot write {path}: {error.strerror}", "choose another folder")
    if error.errno == errno.ENAMETOOLONG:
        return UsageError(f"cannot write {path}: its name is too long", "choose a shorter name")
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


def umask() -> int:
    """Return the process's mask of the permissions of new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
