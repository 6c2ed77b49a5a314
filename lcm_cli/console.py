"""The one place where lcm writes: results to stdout, everything else to stderr.

Text that comes from files or names may hold control characters; whatever is shown to a person has
them spelled out (`\\x1b`), so that no file can drive the terminal. A pipe gets results unchanged.
"""

import json
import os
import re
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TextIO

from lcm_cli.errors import LcmError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

READER_GONE = 141  # what a shell reports for a program stopped by SIGPIPE
STATUS_EVERY = 0.2  # seconds
LINE_EVERY = 5.0  # seconds between progress lines where there is no terminal

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_CLEAR_LINE = "\r\x1b[K"
_status_at = 0.0  # when a status line was drawn; 0: there is none
_level = 0  # -1 quiet, 0 normal, 1 and more verbose


class Advance(Protocol):
    """Say that `n` more of a long job's items are done."""

    def __call__(self, n: int = 1) -> None: ...


def configure(quiet: bool = False, verbose: int = 0) -> None:
    """Choose what goes to stderr: errors only (`quiet`), or details too (`verbose` >= 1)."""
    global _level
    _level = -1 if quiet else verbose


def is_quiet() -> bool:
    """Return whether only errors are to be shown."""
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
        raise UsageError("binary data does not go to a terminal", "write to a file: -o FILE")
    try:
        sys.stdout.flush()
        for chunk in chunks:
            sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        _leave()


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table to stdout: drawn on a terminal, columns aligned with spaces elsewhere."""
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
    """Tell the person at the terminal something (stderr, not with -q)."""
    if _level >= 0:
        _note(message)


def warn(message: str) -> None:
    """Tell of something that may be wrong with the result (stderr, not with -q)."""
    info(f"warning: {message}")


def detail(message: str) -> None:
    """Tell how things are done (stderr, with -v only)."""
    if _level >= 1:
        _note(message)


def show_error(error: LcmError) -> None:
    """Write an error, and its hint if it has one, to stderr."""
    _note(f"error: {error.message}")
    if error.hint:
        _note(f"hint: {error.hint}")


@contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Advance]:
    """Show how far a long job is; yields `advance(n=1)`, to be called as it goes on.

    On a terminal a bar on stderr, elsewhere a line there every few seconds, with -q nothing.
    """
    if _level < 0:
        yield lambda n=1: None
    elif _can_draw(sys.stderr):
        with _bar(description, total) as advance:
            yield advance
    else:
        yield _lines(description, total)


def status(message: str) -> None:
    """Keep one line at the foot of a terminal up to date; elsewhere, and with -q, nothing."""
    global _status_at
    now = time.monotonic()
    if _level < 0 or not _can_draw(sys.stderr) or now - _status_at < STATUS_EVERY:
        return
    width = os.get_terminal_size(sys.stderr.fileno()).columns - 1
    print(_CLEAR_LINE + printable(message)[:width], end="", file=sys.stderr, flush=True)
    _status_at = now


def printable(text: str) -> str:
    """Spell out the control characters in `text`, all but newline and tab."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def size(count: float) -> str:
    """Return a number of bytes for people."""
    step = 0
    while count >= 1024 and step < len(_UNITS) - 1:
        count, step = count / 1024, step + 1
    return f"{count:.1f} {_UNITS[step]}" if step else f"{count} bytes"


def use_utf8() -> None:
    """Make both streams take any text, whatever the locale: results are UTF-8 wherever they go.

    What UTF-8 cannot hold (half of a surrogate pair) is spelled out, which in JSON is an escape.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where a test or a notebook put its own
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _write(line: str) -> None:
    try:
        print(line, flush=True)  # at once: the next program in a pipe may be waiting for it
    except BrokenPipeError:
        _leave()


def _leave() -> NoReturn:
    """End the program because the reader of stdout is gone."""
    # Python flushes stdout once more at its end; give it a place where that works.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(READER_GONE)


def _note(message: str) -> None:
    global _status_at
    if _status_at:
        print(_CLEAR_LINE, end="", file=sys.stderr)
        _status_at = 0.0
    # A line that a file's name breaks off must not pass for one of ours.
    print(printable(message).replace("\n", "\n  "), file=sys.stderr, flush=True)


def _can_draw(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _width(text: str) -> int:
    """Return how many columns `text` takes on a terminal."""
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
        drawn.add_row(*map(Text, row))  # as Text: square brackets in it are no markup
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
        redirect_stdout=sys.stdout.isatty(),  # else results would end up on stderr
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
