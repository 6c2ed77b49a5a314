"""The commands on documents as processes: pipes, signals, full disks."""

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import pytest
from processes import ForkServer, Process

pytest.importorskip("resource", reason="signals and limits of POSIX")

FULL = Path("/dev/full")


Start = Callable[..., Process]


@pytest.fixture
def start(forks: ForkServer, surroundings: dict[str, str], random_space: Path) -> Iterator[Start]:
    """Start `lcm` as a process, by default with pipes; it ends with the test."""
    with ExitStack() as stack:

        def run(*arguments: str | Path, **options: Any) -> Process:
            pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
            env = surroundings | {"LCM_SPACE": str(random_space)}
            process = forks.start(*arguments, env=env, **pipes | options)
            stack.callback(process.close)
            return process

        yield run


def _outputs(process: Process) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdout and process.stderr
    return process.stdout, process.stderr


def test_embed_into_decode(
    start: Start, road: Callable[..., Any], story: Path, tmp_path: Path
) -> None:
    embed = start("embed", story, "-o", "-", stdin=subprocess.DEVNULL)
    decode = start("decode", "-", "--to", "nld", "--max-tokens", "8", stdin=embed.stdout)
    assert embed.stdout
    embed.stdout.close()  # now the other process has it
    output, errors = decode.communicate()
    assert (embed.wait(), decode.returncode) == (0, 0), errors
    road("embed", story, "-o", tmp_path / "a.parquet")
    by_file = road("decode", tmp_path / "a.parquet", "--to", "nld", "--max-tokens", "8")
    assert output.decode("utf-8") == by_file.stdout
    assert len(output.split(b"\n\n")) == 4  # paragraphs


def test_documents_are_worked_on_as_they_come_and_ctrl_c_ends_it(start: Start) -> None:
    embed = start("embed", "-", "-o", "-", "--from", "en")
    decode = start("decode", "-", "--to", "fr", "--max-tokens", "4", "--json", stdin=embed.stdout)
    source, (texts, errors) = embed.stdin, _outputs(decode)
    assert source
    for name in ("a", "b"):
        source.write(json.dumps({"id": name, "text": "The hen ran."}).encode() + b"\n")
        source.flush()
        assert json.loads(texts.readline())["id"] == name  # while the input is still open
    for process in (decode, embed):
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=300) == 130
    assert b"Traceback" not in errors.read()


def test_ctrl_c_leaves_no_half_file(start: Start, tmp_path: Path) -> None:
    embed = start("embed", "-", "-o", tmp_path / "a.arrow", "--from", "en")
    assert embed.stdin and embed.stderr
    embed.stdin.write(b'{"text": "The hen ran."}\n' * 200)
    embed.stdin.flush()
    while not any(part.stat().st_size for part in tmp_path.iterdir()):
        assert embed.poll() is None, embed.stderr.read()
        time.sleep(0.05)
    embed.send_signal(signal.SIGINT)
    assert embed.wait(timeout=300) == 130
    assert list(tmp_path.iterdir()) == []
    assert b"Traceback" not in embed.stderr.read()


@pytest.mark.parametrize("command", [["translate", "--to", "fr"], ["embed", "-o", "-"]], ids=str)
def test_a_reader_that_leaves(start: Start, tmp_path: Path, command: list[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"sentences": ["The hen ran."], "lang": "en"}\n' * 2000)
    process = start(*command, path, "-q", stdin=subprocess.DEVNULL)
    output, errors = _outputs(process)
    output.read(10)
    output.close()
    assert process.wait(timeout=300) == 141
    assert errors.read() == b""


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
@pytest.mark.parametrize("command", [["translate", "--to", "fr"], ["embed", "-o", "-"]], ids=str)
def test_full_disk_behind_stdout(start: Start, story: Path, command: list[str]) -> None:
    with FULL.open("wb") as full:
        process = start(*command, story, stdin=subprocess.DEVNULL, stdout=full)
        _, errors = process.communicate()
    assert process.returncode == 1
    assert b"error:" in errors and b"no space left" in errors.lower()
    assert b"Traceback" not in errors


@pytest.mark.parametrize(
    "command", [["translate", "--to", "all", "--json"], ["embed", "--dtype", "float32"]], ids=str
)
def test_full_disk_behind_a_file(
    start: Start, tmp_path: Path, story: Path, command: list[str]
) -> None:
    rest = ("--from", "en", "-o", tmp_path / "a.jsonl")
    process = start(*command, story, *rest, stdin=subprocess.DEVNULL, limit=1000)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert b"cannot write" in errors and b"a.jsonl" in errors
    assert list(tmp_path.iterdir()) == []
