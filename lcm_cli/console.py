"""Output of the commands: results to stdout, everything else to stderr.

Text from files or names may contain control characters. They are escaped (`\\x1b`) in messages and
on terminals, so that no file can control the terminal; results in pipes stay unchanged.
"""

import json
import os
import re
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from lcm_cli.errors import LcmError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

READER_GONE = 141  # a shell's exit code for a program stopped by SIGPIPE
STATUS_EVERY = 0.2  # seconds
LINE_EVERY = 5.0  # seconds between progress lines without a terminal

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_BYTE = re.compile("[\udc80-\udcff]")  # of a file's name that is not UTF-8
_CLEAR_LINE = "\r\x1b[K"
_status_at = 0.0  # time of the status line on the screen; 0 for none
_level = 0  # -1 is quiet, 0 normal, 1 or more verbose


class Advance(Protocol):
    """A callback that reports `n` more finished items of a long job."""

    def __call__(self, n: int = 1) -> None: ...


def configure(quiet: bool = False, verbose: int = 0) -> None:
    """Choose what goes to stderr: only errors (`quiet`), or details as well (`verbose` >= 1)."""
    global _level
    _level = -1 if quiet else verbose


def is_quiet() -> bool:
    """Return whether only errors are shown."""
    return _level < 0


def out(text: str) -> None:
    """Write a line of the result to stdout."""
    _write(printable(text) if sys.stdout.isatty() else text)


def emit(obj: Any) -> None:
    """Write `obj` to stdout as one line of JSON."""
    line = json.dumps(obj, ensure_ascii=False)
    _write(_CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", line))


def out_bytes(chunks: Iterable[bytes]) -> None:
    """Write binary data to stdout. Raises UsageError if stdout is a terminal."""
    if sys.stdout.isatty():
        raise UsageError("binary data is not written to a terminal", "write to a file: -o FILE")
    with _writing():
        sys.stdout.flush()
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table to stdout: drawn on terminals, with space-aligned columns elsewhere."""
    cells = [[printable(str(cell)).replace("\n", " ") for cell in row] for row in rows]
    if os.environ.get("FORCE_COLOR") or _can_draw(sys.stdout):
        _draw(title, columns, cells)
        return
    lines = [list(columns), *cells]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = (c + " " * (w - _width(c)) for c, w in zip(line, widths, strict=True))
        _write("  ".join(padded).rstrip())


def info(message: str) -> None:
    """Write a message to stderr, unless quiet."""
    if _level >= 0:
        _note(message)


def warn(message: str) -> None:
    """Write a warning to stderr, unless quiet."""
    info(f"warning: {message}")


def detail(message: str) -> None:
    """Write a message to stderr if verbose."""
    if _level >= 1:
        _note(message)


def show_error(error: LcmError) -> None:
    """Write an error, and its hint if it has one, to stderr."""
    _note(f"error: {error.message}")
    if error.hint:
        _note(f"hint: {error.hint}")


@contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Advance]:
    """Show the progress of a long job on stderr; yield `advance(n=1)`, to call as items finish.

    Draws a bar on terminals, prints a line every few seconds elsewhere, and nothing if quiet.
    """
    if _level < 0:
        yield lambda n=1: None
    elif _can_draw(sys.stderr):
        with _bar(description, total) as advance:
            yield advance
    else:
        yield _lines(description, total)


def status(message: str) -> None:
    """Update the status line at the bottom of a terminal; do nothing elsewhere or if quiet."""
    global _status_at
    now = time.monotonic()
    if _level < 0 or not _can_draw(sys.stderr) or now - _status_at < STATUS_EVERY:
        return
    width = os.get_terminal_size(sys.stderr.fileno()).columns - 1
    _say(_CLEAR_LINE + printable(message)[:width])
    _status_at = now


def printable(text: str) -> str:
    """Return `text` with control characters and bytes of names escaped, but no newline or tab."""
    text = _BYTE.sub(lambda match: f"\\x{ord(match[0]) - 0xDC00:02x}", text)
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def size(count: float) -> str:
    """Return a number of bytes with a unit, for people."""
    step = 0
    while count >= 1024 and step < len(_UNITS) - 1:
        count, step = count / 1024, step + 1
    return f"{count:.1f} {_UNITS[step]}" if step else f"{count} bytes"


def prepare_streams() -> None:
    """Make stdout and stderr UTF-8, whatever the locale, and open standard streams that are closed.

    Lone surrogates, which UTF-8 cannot encode, are written as escapes, which JSON can read.
    """
    # In the order of the descriptors, so that each gets its own: open takes the lowest free one.
    # Reading gives the end of the file, writing results an error, and messages are dropped.
    for name, flags in (("stdin", os.O_RDONLY), ("stdout", os.O_RDONLY), ("stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, os.fdopen(os.open(os.devnull, flags), mode))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # absent if a test or a notebook replaced the stream
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def stdout_error(error: OSError) -> LcmError:
    """Return the error for an OSError from writing to stdout."""
    _discard(sys.stdout)
    return LcmError(f"cannot write to standard output: {error.strerror or error}")


@contextmanager
def _writing() -> Iterator[None]:
    """Exit if the reader of stdout is gone, and raise LcmError for other errors in writing."""
    try:
        yield
    except BrokenPipeError:
        _discard(sys.stdout)
        raise SystemExit(READER_GONE) from None
    except OSError as error:
        raise stdout_error(error) from error


def _discard(stream: TextIO) -> None:
    """Drop what a stream still holds: Python flushes it again at exit, which must not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _write(line: str) -> None:
    with _writing():
        print(line, flush=True)  # the next program in a pipe may be waiting for the line


def _note(message: str) -> None:
    global _status_at
    if _status_at:
        _say(_CLEAR_LINE)
        _status_at = 0.0
    # Indented, so that a newline in a file's name cannot start what looks like a new message.
    _say(printable(message).replace("\n", "\n  ") + "\n")


def _say(text: str) -> None:
    try:
        print(text, end="", file=sys.stderr, flush=True)
    except OSError:  # nobody is left to tell
        _discard(sys.stderr)


def _can_draw(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _width(text: str) -> int:
    """Return the number of terminal columns of `text`."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)


def _rich(stderr: bool) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def _draw(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=Text(title) if title else None, box=SIMPLE_HEAD, title_justify="left")
    for column in columns:
        drawn.add_column(Text(column), overflow="fold")
    for row in rows:
        drawn.add_row(*map(Text, row))  # Text, so that square brackets are not markup
    with _writing():
        _rich(stderr=False).print(drawn)


@contextmanager
def _bar(description: str, total: int | None) -> Iterator[Advance]:
    from rich import progress as bars
    from rich.markup import escape

    layout = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeRemainingColumn(),
    )
    drawn = bars.Progress(
        *layout,
        console=_rich(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # otherwise rich would send results to stderr
    )
    with drawn:
        task = drawn.add_task(escape(printable(description)), total=total)
        yield lambda n=1: drawn.advance(task, n)


def _lines(description: str, total: int | None) -> Advance:
    start = last = time.monotonic()
    done = 0

    def advance(n: int = 1) -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last >= LINE_EVERY:
            last = now
            info(f"{description}: {_pace(done, total, now - start)}")

    return advance


def _pace(done: int, total: int | None, seconds: float) -> str:
    rate = done / seconds
    if total is None:
        return f"{done}, {rate:.1f}/s"
    left = (total - done) / rate if rate else 0
    return f"{done}/{total}, {rate:.1f}/s, {left:.0f} s left"
