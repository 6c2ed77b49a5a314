"""One column of a table: CSV, TSV, a JSON array of objects, or JSON Lines.

The other columns, their order, the delimiter and the form of the JSON stay as they are.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lcm_cli.documents.encoding import decode_text
from lcm_cli.documents.formats.layout import Pair, Passage
from lcm_cli.documents.kinds import Kind
from lcm_cli.errors import IntegrityError, UsageError
from lcm_cli.text.languages import gap

_EXAMPLE = "name the column with the text: --column NAME"


@dataclass
class Table:
    """The layout of a table: a passage for each cell of the column that has text.

    `rows` holds the row number of each passage, from 1 and without the header.
    """

    passages: list[Passage]
    rows: list[int]
    suffix: str
    dump: Callable[[dict[int, str]], str]  # the file, with new cells by row number
    is_text: bool = True

    def render(self, sentences: Sequence[Sequence[Pair]], lang: str) -> bytes:
        """Return the file with other text in the column."""
        texts = (gap(lang).join(new for _, new in pairs) for pairs in sentences)
        return self.dump(dict(zip(self.rows, texts, strict=True))).encode()


def read(source: str, name: str, suffix: str, column: str | None) -> Table:
    """Return the layout of the table called `name`; its suffix tells the format.

    Raises UsageError for a column that is not named or does not exist, IntegrityError for a file
    that is not a table.
    """
    readers = {".json": _json, ".jsonl": _jsonl, ".ndjson": _jsonl}
    return readers.get(suffix, _delimited)(source, name, suffix, column)


def read_delimited(data: bytes, name: str, kind: Kind) -> list[dict[str, str]]:
    """Return the rows of a CSV or TSV file as columns by name. Raises IntegrityError as `read`."""
    source = decode_text(data, name)
    header, *rows = _parsed_rows(source, name, _delimiter(source, f".{kind}"))
    return [dict(zip(header, row, strict=False)) for row in rows]


def _parsed_rows(source: str, name: str, delimiter: str) -> list[list[str]]:
    csv.field_size_limit(1 << 30)
    try:
        rows = list(csv.reader(io.StringIO(source, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise IntegrityError(f"{name} is not a table: {error}", "check its quotes") from error
    if not rows:
        raise IntegrityError(f"{name} is empty")
    return rows


def _delimited(source: str, name: str, suffix: str, column: str | None) -> Table:
    delimiter = _delimiter(source, suffix)
    rows = _parsed_rows(source, name, delimiter)
    at = _column(column, rows[0], name)

    def dump(cells: dict[int, str]) -> str:
        out = io.StringIO()
        end = "\r\n" if "\r\n" in source else "\n"
        writer = csv.writer(out, delimiter=delimiter, lineterminator=end)
        for number, row in enumerate(rows):
            new = cells.get(number)
            writer.writerow(row if new is None else [*row[:at], new, *row[at + 1 :]])
        return out.getvalue()

    texts = {number: row[at] for number, row in enumerate(rows) if number and len(row) > at}
    return _table(texts, suffix, dump)


def _delimiter(source: str, suffix: str) -> str:
    if suffix == ".tsv":
        return "\t"
    first = source.split("\n", 1)[0]
    return max(",;\t|", key=first.count)


def _json(source: str, name: str, suffix: str, column: str | None) -> Table:
    records = _parsed(source, name)
    if not isinstance(records, list) or not all(isinstance(each, dict) for each in records):
        what = "an array of objects"
        raise IntegrityError(
            f"{name} is not {what}", "for one object per line use the suffix .jsonl"
        )
    indent = 2 if "\n" in source.strip() else None

    def dump(cells: dict[int, str]) -> str:
        new = [_replaced(each, column, cells.get(n)) for n, each in enumerate(records, start=1)]
        return json.dumps(new, ensure_ascii=False, indent=indent) + "\n"

    return _table(_texts(records, name, column), suffix, dump)


def _jsonl(source: str, name: str, suffix: str, column: str | None) -> Table:
    lines = source.split("\n")
    records = [
        _parsed(line, f"{name} line {number}") if line.strip() else {}
        for number, line in enumerate(lines, start=1)
    ]
    for number, each in enumerate(records, start=1):
        if not isinstance(each, dict):
            raise IntegrityError(f"{name} line {number} is not an object")

    def dump(cells: dict[int, str]) -> str:
        new = [
            json.dumps(_replaced(each, column, cells[n]), ensure_ascii=False)
            if n in cells
            else line
            for n, (line, each) in enumerate(zip(lines, records, strict=True), start=1)
        ]
        return "\n".join(new)

    return _table(_texts(records, name, column), suffix, dump)


def _parsed(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{name} is not valid JSON: {error}") from error


def _texts(records: Sequence[dict[str, Any]], name: str, column: str | None) -> dict[int, str]:
    keys = list(dict.fromkeys(key for each in records for key in each))
    _column(column, keys, name)
    values = {number: each.get(str(column)) for number, each in enumerate(records, start=1)}
    for number, value in values.items():
        if value is not None and not isinstance(value, str):
            raise IntegrityError(
                f"{name} row {number}: {column!r} is {type(value).__name__}, not text",
                "name another column",
            )
    return {number: value for number, value in values.items() if value}


def _replaced(record: dict[str, Any], column: str | None, text: str | None) -> dict[str, Any]:
    return record if text is None else record | {str(column): text}


def _column(column: str | None, header: Sequence[str], name: str) -> int:
    names = ", ".join(header[:20])
    if column is None:
        raise UsageError(f"{name} is a table with the columns {names}", _EXAMPLE)
    if header.count(column) != 1:
        what = "no column" if column not in header else "more than one column"
        raise UsageError(f"{name} has {what} {column!r}", f"its columns are: {names}")
    return header.index(column)


def _table(texts: dict[int, str], suffix: str, dump: Callable[[dict[int, str]], str]) -> Table:
    found = dict(_filled(texts))
    passages = [Passage(text, n, f"row {n}") for n, text in found.items()]
    return Table(passages, list(found), suffix, dump)


def _filled(texts: dict[int, str]) -> Iterator[tuple[int, str]]:
    for number, text in texts.items():
        if any(map(str.isalnum, text)):
            yield number, text
