import errno
import os
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lcm_cli.errors import LcmError, NotFoundError, UsageError
from lcm_cli.files import atomic_path


def write(path: Path, text: str = "new", *, force: bool = False, appears: str = "") -> None:
    """Write a file atomically; with `appears`, another program writes that in the meantime."""
    with atomic_path(path, force=force) as temporary:
        temporary.write_text(text)
        if appears:
            path.write_text(appears)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in which no temporary file may be left."""
    yield tmp_path
    assert not list(tmp_path.rglob("*.part"))


def test_a_link_stays_and_its_file_is_written(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "real").write_text("old")
    (folder / "link").symlink_to("inner/real")
    (folder / "second").symlink_to(folder / "link")
    with pytest.raises(UsageError, match="second exists already"):
        write(folder / "second")
    write(folder / "second", force=True)
    assert (folder / "link").is_symlink()
    assert (folder / "second").is_symlink()
    assert (folder / "inner" / "real").read_text() == "new"


def test_the_file_behind_a_dangling_link_is_created(folder: Path) -> None:
    (folder / "link").symlink_to("later")
    write(folder / "link")
    assert (folder / "link").is_symlink()
    assert (folder / "later").read_text() == "new"
    (folder / "lost").symlink_to("nowhere/later")
    with pytest.raises(NotFoundError, match=r"no such folder: .*nowhere"):
        write(folder / "lost")


def test_links_in_a_circle_are_refused(folder: Path) -> None:
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    with pytest.raises(UsageError, match="a is a link that leads back to itself"):
        write(folder / "a", force=True)


def test_a_replaced_file_keeps_its_attributes_but_not_its_times(folder: Path) -> None:
    path = folder / "a"
    path.write_text("old")
    path.chmod(0o640)
    os.utime(path, (1, 1))
    try:
        os.setxattr(path, "user.note", b"mine")
    except OSError:  # a file system without them
        pytest.skip("no extended attributes")
    write(path, force=True)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.getxattr(path, "user.note") == b"mine"
    assert path.stat().st_mtime > 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_replaced_file_keeps_its_owner(folder: Path) -> None:
    path = folder / "a"
    path.write_text("old")
    os.chown(path, 1234, 4321)
    path.chmod(0o664)
    write(path, force=True)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)
    assert stat.S_IMODE(path.stat().st_mode) == 0o664


def test_a_new_file_has_the_usual_mode(folder: Path) -> None:
    mask = os.umask(0o027)
    try:
        write(folder / "a")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((folder / "a").stat().st_mode) == 0o640


@pytest.mark.parametrize("linking", [True, False], ids=["links", "no links"])
def test_a_file_that_appeared_stays_and_the_result_too(
    linking: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not linking:

        def refuse(*_: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    path = folder / "a.txt"
    (folder / "a.1.txt").write_text("taken")
    with pytest.raises(UsageError, match=r"a\.txt appeared while") as caught:
        write(path, appears="theirs")
    assert caught.value.hint == f"the result is in {folder / 'a.2.txt'}"
    texts = {each.name: each.read_text() for each in folder.iterdir()}
    assert texts == {"a.txt": "theirs", "a.1.txt": "taken", "a.2.txt": "new"}
    write(path, "forced", force=True, appears="theirs")
    assert path.read_text() == "forced"
    write(folder / "b", "alone")
    assert (folder / "b").read_text() == "alone"


@pytest.mark.slow
def test_with_force_writers_of_the_same_file_do_not_stop_each_other(folder: Path) -> None:
    errors: list[Exception] = []

    def write(path: Path, together: threading.Barrier) -> None:
        together.wait()
        try:
            with atomic_path(path, force=True) as temporary:
                temporary.write_text("x")
        except LcmError as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for number in range(200):
            together = threading.Barrier(4)
            path = folder / str(number)
            writers = [threading.Thread(target=write, args=(path, together)) for _ in range(4)]
            for writer in writers:
                writer.start()
            for writer in writers:
                writer.join()
    finally:
        sys.setswitchinterval(interval)
    assert not errors
    assert {path.name for path in folder.iterdir()} >= {str(number) for number in range(200)}


def test_a_folder_that_appeared_stays(folder: Path) -> None:
    with (
        pytest.raises(UsageError, match="a appeared while"),
        atomic_path(folder / "a", force=True) as temporary,
    ):
        temporary.write_text("new")
        (folder / "a").mkdir()
    assert (folder / "a").is_dir()
    assert (folder / "a.1").read_text() == "new"


@pytest.mark.parametrize("force", [True, False])
def test_a_named_pipe_receives_the_text_and_stays(force: bool, folder: Path) -> None:
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    (folder / "link").symlink_to("pipe")
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    write(folder / "link", force=force)
    reader.join()
    assert got == ["new"]
    assert pipe.is_fifo()


def test_the_reader_of_a_pipe_sees_the_end_after_an_error(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append((folder / "pipe").read_text()))
    reader.start()
    with pytest.raises(LcmError, match="broken"), atomic_path(folder / "pipe") as temporary:
        temporary.write_text("half")
        raise LcmError("broken")
    reader.join()
    assert got == [""]


def test_a_device_is_written_to_and_stays(folder: Path) -> None:
    write(Path(os.devnull))
    assert Path(os.devnull).is_char_device()
    with pytest.raises(LcmError, match="no space left while writing /dev/full"):
        write(Path("/dev/full"), force=True)
    assert Path("/dev/full").is_char_device()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make devices")
def test_a_disk_needs_force(folder: Path) -> None:
    try:
        os.mknod(folder / "disk", stat.S_IFBLK | 0o600, os.makedev(7, 12345))  # of no driver
    except OSError:
        pytest.skip("no devices here")
    with pytest.raises(UsageError, match="disk is a disk"):
        write(folder / "disk")
    assert (folder / "disk").is_block_device()


def test_a_socket_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        with pytest.raises(LcmError, match="cannot write socket"):
            write(Path("socket"), force=True)
    assert Path("socket").is_socket()


def test_an_open_descriptor_is_written_to_where_it_is(folder: Path) -> None:
    with (folder / "log").open("wb", buffering=0) as file:
        file.write(b"first\n")
        write(Path(f"/dev/fd/{file.fileno()}"))
        (folder / "link").symlink_to(f"/proc/self/fd/{file.fileno()}")
        write(folder / "link")
        file.write(b"\nlast\n")
    assert (folder / "log").read_text() == "first\nnewnew\nlast\n"
    with pytest.raises(LcmError, match="cannot write /dev/fd/99: Bad file descriptor"):
        write(Path("/dev/fd/99"))


@pytest.mark.parametrize("force", [True, False])
def test_a_folder_is_no_target(force: bool, folder: Path) -> None:
    (folder / "a").mkdir()
    with pytest.raises(UsageError, match="a is a folder"):
        write(folder / "a", force=force)


def test_long_names(folder: Path) -> None:
    write(folder / ("ä" * 127))
    with pytest.raises(UsageError, match="name is too long"):
        write(folder / ("a" * 256))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(folder: Path) -> None:
    folder.chmod(0o500)
    with pytest.raises(UsageError, match=r"cannot write .*Permission denied"):
        write(folder / "a")
    folder.chmod(0o700)


def test_errors_of_other_files_are_passed_on(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"), atomic_path(folder / "a"):
        (folder / "gone").read_text()
    with pytest.raises(OSError, match="no number"), atomic_path(folder / "a"):
        raise OSError("no number")
    with (
        pytest.raises(LcmError, match=r"no space left while writing .*a"),
        atomic_path(folder / "a"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(folder.iterdir())
