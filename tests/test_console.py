import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from lcm_cli import console
from lcm_cli.errors import LcmError, UsageError

ESCAPE = "\x1b[31mred\x07\x9b"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def normal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("FORCE_COLOR", "NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    console.configure()
    yield
    console.configure()


def _on_a_terminal(patch: pytest.MonkeyPatch, stdout: bool = True) -> None:
    """Make the streams report that they are terminals; pytest replaces them after its fixtures."""
    patch.setattr(sys.stdout, "isatty", lambda: stdout)
    patch.setattr(sys.stderr, "isatty", lambda: True)


def test_results_go_to_stdout_unchanged(capsys: Capture) -> None:
    console.out(f"über {ESCAPE}")
    assert capsys.readouterr() == (f"über {ESCAPE}\n", "")


def test_a_terminal_gets_no_control_characters(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _on_a_terminal(monkeypatch)
    console.out(f"a\tb\n{ESCAPE}")
    console.table("", ("name",), [[ESCAPE]])
    shown = capsys.readouterr().out
    assert shown.startswith("a\tb\n\\x1b[31mred\\x07\\x9b\n")
    assert "\\x1b[31mred" in shown.partition("name")[2]
    assert "\x1b[31m" not in shown
    assert not set(shown) & {"\x07", "\x9b"}


def test_emit_is_one_line_of_plain_json(capsys: Capture) -> None:
    console.emit({"text": f"日本 {ESCAPE}\n"})
    written = capsys.readouterr().out
    assert json.loads(written) == {"text": f"日本 {ESCAPE}\n"}
    assert "日本" in written
    assert written.count("\n") == 1
    assert "\x9b" not in written


def test_bytes_go_to_a_pipe_only(
    capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    console.out_bytes([b"\x00\xff", b"z"])
    assert capsysbinary.readouterr().out == b"\x00\xffz"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(UsageError, match="terminal"):
        console.out_bytes([b"x"])


def test_table_in_a_pipe_is_aligned_by_width(capsys: Capture) -> None:
    console.table("ignored", ("code", "name"), [("jpn", "日本語"), ("long code", 3), ("x", "a\nb")])
    assert capsys.readouterr().out == (
        "code       name\njpn        日本語\nlong code  3\nx          a b\n"
    )


def test_table_on_a_terminal_keeps_brackets(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _on_a_terminal(monkeypatch)
    console.table("Title", ("name",), [["[bold]x[/nope]"]])
    shown = capsys.readouterr().out
    assert "Title" in shown
    assert "[bold]x[/nope]" in shown


def test_a_dumb_terminal_gets_plain_tables(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _on_a_terminal(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    console.table("", ("name",), [["x"]])
    assert capsys.readouterr().out == "name\nx\n"


@pytest.mark.parametrize(
    ("quiet", "verbose", "expected"),
    [
        (False, 0, "info\nwarning: warn\n"),
        (False, 1, "info\nwarning: warn\ndetail\n"),
        (True, 1, ""),
    ],
)
def test_verbosity(quiet: bool, verbose: int, expected: str, capsys: Capture) -> None:
    console.configure(quiet, verbose)
    console.info("info")
    console.warn("warn")
    console.detail("detail")
    assert capsys.readouterr() == ("", expected)


def test_errors_are_shown_with_their_hints_even_when_quiet(
    capsys: Capture,
) -> None:
    console.configure(quiet=True)
    console.show_error(LcmError(f"bad {ESCAPE}\nhint: a file said this", "do that"))
    console.show_error(LcmError("no hint"))
    assert capsys.readouterr() == (
        "",
        "error: bad \\x1b[31mred\\x07\\x9b\n  hint: a file said this\nhint: do that\n"
        "error: no hint\n",
    )


def test_progress_without_a_terminal_is_a_line_every_few_seconds(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1.0, 6.0, 7.0, 20.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress("encoding", total=100) as advance:
        for _ in range(4):
            advance(10)
    assert capsys.readouterr() == (
        "",
        "encoding: 20/100, 3.3/s, 24 s left\nencoding: 40/100, 2.0/s, 30 s left\n",
    )


def test_progress_of_unknown_length(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress("reading") as advance:
        advance()
    assert capsys.readouterr().err == "reading: 1, 0.1/s\n"


def test_progress_when_quiet_is_nothing(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    _on_a_terminal(monkeypatch)
    console.configure(quiet=True)
    with console.progress("encoding", total=2) as advance:
        advance(2)
    assert capsys.readouterr() == ("", "")


def test_progress_on_a_terminal_is_a_bar_on_stderr(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _on_a_terminal(monkeypatch, stdout=False)
    with console.progress("encoding [a]", total=2) as advance:
        advance(2)
        console.out("the result")
    result, shown = capsys.readouterr()
    assert "encoding [a]" in shown
    assert "2/2" in shown
    assert result == "the result\n"


def test_closed_pipe_ends_the_program_quietly() -> None:
    code = "from lcm_cli import console\nwhile True: console.out('x' * 100)"
    running = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with running:
        assert running.stdout and running.stderr
        running.stdout.readline()
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == console.READER_GONE


def test_any_text_can_be_written_whatever_the_locale() -> None:
    code = "from lcm_cli import console; console.prepare_streams(); console.emit('日本 \\ud800')"
    written = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    ).stdout
    assert json.loads(written.decode("utf-8")) == "日本 \ud800"


def test_bytes_of_names_are_shown_as_in_a_shell() -> None:
    name = os.fsdecode(b"caf\xe9\x1b.txt")  # not UTF-8
    assert console.printable(f"{name}\t\n") == "caf\\xe9\\x1b.txt\t\n"
