"""One column of a table: CSV, TSV, a JSON array of objects, or JSON Lines.

Everything else in the file is copied byte for byte: the other columns, the delimiter, quotes, the
formatting of JSON. A cell is plain text, with its own paragraphs and lists.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from lcm_cli.documents.encoding import decode_text
from lcm_cli.documents.formats import plain
from lcm_cli.documents.formats.skeleton import Pair, Spliced
from lcm_cli.documents.kinds import Kind
from lcm_cli.errors import IntegrityError, UsageError
from lcm_cli.schema import json_value

_EXAMPLE = "name the column with the text: --column NAME"
_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{}:,]')


@dataclass(frozen=True)
class Cell:
    """A cell [start, end) of a table; `row` counts from 1, without the header.

    `write` returns a text in the syntax of the table.
    """

    row: int
    start: int
    end: int
    text: str
    write: Callable[[str], str]


class Table:
    """The skeleton of a table; `cells` holds the cells with text in the chosen column."""

    is_text = True

    def __init__(self, source: str, cells: Sequence[Cell], suffix: str) -> None:
        self._source = source
        self.suffix = suffix
        self.cells = [cell for cell in cells if any(map(str.isalnum, cell.text))]
        self._texts: list[Spliced] = [plain.read(cell.text) for cell in self.cells]
        found = (
            replace(passage, place=f"row {cell.row}")
            for cell, text in zip(self.cells, self._texts, strict=True)
            for passage in text.passages
        )
        self.passages = [replace(passage, paragraph=n) for n, passage in enumerate(found)]

    def render(self, sentences: Sequence[Sequence[Pair]], lang: str) -> bytes:
        """Return the file with the text of the column replaced."""
        rest = iter(sentences)
        parts, at = [], 0
        for cell, text in zip(self.cells, self._texts, strict=True):
            new = text.spliced(list(islice(rest, len(text.passages))), lang)
            parts += [self._source[at : cell.start], cell.write(new)]
            at = cell.end
        return "".join([*parts, self._source[at:]]).encode()


def read(source: str, name: str, kind: Kind, suffix: str, column: str | None) -> Table:
    """Return the skeleton of the table called `name`, whose format is `kind`.

    Raises UsageError if no column is named or the column does not exist, IntegrityError for a file
    that is not a table.
    """
    readers = {"json": _json, "jsonl": _jsonl}
    if kind in readers:
        return Table(source, readers[kind](source, name, column), suffix)
    return Table(source, _delimited(source, name, kind, column), suffix)


def read_delimited(data: bytes, name: str, kind: Kind) -> list[dict[str, str]]:
    """Return the rows of a CSV or TSV file as dicts. Raises IntegrityError as `read` does."""
    source = decode_text(data, name)
    header, *rows = _rows(source, name, _delimiter(source, kind))
    names = [cell.text for cell in header]
    return [dict(zip(names, (cell.text for cell in row), strict=False)) for row in rows]


def _delimited(source: str, name: str, kind: Kind, column: str | None) -> list[Cell]:
    header, *rows = _rows(source, name, _delimiter(source, kind))
    at = _column(column, [cell.text for cell in header], name)
    return [row[at] for row in rows if len(row) > at]


def _delimiter(source: str, kind: Kind) -> str:
    if kind == "tsv":
        return "\t"
    first = re.sub(r'"[^"]*"', "", source.split("\n", 1)[0])
    return max(",;\t|", key=first.count)


def _rows(source: str, name: str, delimiter: str) -> list[list[Cell]]:
    """Return the cells of each row, the header first; an empty line is a row without cells.

    Raises IntegrityError for an empty file and for quotes that do not match.
    """
    field = re.compile(
        rf'(?:"(?P<quoted>(?:[^"]++|"")*+)"|(?P<bare>[^"{delimiter}\r\n][^{delimiter}\r\n]*|))'
        rf"(?P<after>{re.escape(delimiter)}|\r\n|\n|\r|\Z)"
    )
    rows: list[list[Cell]] = [[]]
    at = 0
    while at < len(source) or rows[-1]:  # a delimiter at the end is followed by an empty cell
        found = field.match(source, at)
        if found is None:
            line = source.count("\n", 0, at) + 1
            raise IntegrityError(
                f"{name} is not a table: the quotes in line {line} do not match",
                "check its quotes, or name its format: --format",
            )
        if rows[-1] or found["after"] == delimiter or found.start() < found.start("after"):
            rows[-1].append(_cell(found, len(rows) - 1, delimiter))
        at = found.end()
        if found["after"] != delimiter:
            rows.append([])
    del rows[-1]
    if not rows:
        raise IntegrityError(f"{name} is empty")
    return rows


def _cell(found: re.Match[str], row: int, delimiter: str) -> Cell:
    quoted = found["quoted"]

    def write(text: str) -> str:
        text = text.replace("\n", "\r\n") if "\r\n" in (quoted or "") else text
        special = (
            quoted is not None or text.startswith('"') or re.search(f"[{delimiter}\r\n]", text)
        )
        doubled = text.replace('"', '""')
        return f'"{doubled}"' if special else text

    text = found["bare"] if quoted is None else quoted.replace('""', '"')
    text = text.replace("\r\n", "\n")
    return Cell(row, found.start(), found.start("after"), text, write)


def _json(source: str, name: str, column: str | None) -> list[Cell]:
    records = json_value(source, name)
    if not isinstance(records, list) or not all(isinstance(each, dict) for each in records):
        what = "an array of objects"
        raise IntegrityError(
            f"{name} is not {what}", "for one object per line use the suffix .jsonl"
        )
    _check(dict(enumerate(records, start=1)), name, column)
    return _strings(source, 0, 1, str(column), depth=2)


def _jsonl(source: str, name: str, column: str | None) -> list[Cell]:
    records: dict[int, Any] = {}
    cells: list[Cell] = []
    start = 0
    for number, line in enumerate(source.split("\n"), start=1):
        if line.strip():
            records[number] = json_value(line, f"{name} line {number}")
            cells += _strings(line, start, number, str(column), depth=1)
        start += len(line) + 1
    for number, each in records.items():
        if not isinstance(each, dict):
            raise IntegrityError(f"{name} line {number} is not an object")
    _check(records, name, column)
    return cells


def _check(records: dict[int, dict[str, Any]], name: str, column: str | None) -> None:
    """Raise UsageError for a column that does not exist, IntegrityError for one without text."""
    _column(column, list(dict.fromkeys(key for each in records.values() for key in each)), name)
    for number, record in records.items():
        value = record.get(str(column))
        if value is not None and not isinstance(value, str):
            raise IntegrityError(
                f"{name} row {number}: {column!r} is {type(value).__name__}, not text",
                "name another column",
            )


def _strings(source: str, offset: int, row: int, column: str, depth: int) -> list[Cell]:
    """Return the string values of a key in valid JSON, in the objects at a depth of nesting."""
    found: dict[int, Cell] = {}  # the last of several equal keys counts
    level, before, key = 0, "", ""
    escaped = source.isascii() and "\\u" in source

    def write(text: str) -> str:
        return json.dumps(text, ensure_ascii=escaped)

    for token in _JSON_TOKEN.finditer(source):
        text = token[0]
        if text in "{[":
            level += 1
        elif text in "}]":
            level -= 1
            row += text == "}" and level == depth - 1
        elif text == ":":
            key = before
        elif text[0] == '"' and level == depth and key and json.loads(key) == column:
            start, end = token.span()
            found[row] = Cell(row, offset + start, offset + end, json.loads(text), write)
        key = key if text == ":" else ""
        before = text
    return list(found.values())


def _column(column: str | None, header: Sequence[str], name: str) -> int:
    names = ", ".join(header[:20])
    if column is None:
        raise UsageError(f"{name} is a table with the columns {names}", _EXAMPLE)
    if header.count(column) != 1:
        what = "no column" if column not in header else "more than one column"
        raise UsageError(f"{name} has {what} {column!r}", f"its columns are: {names}")
    return header.index(column)
