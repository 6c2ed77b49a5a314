"""Rows to evaluate on: a text, what should come out, and the same in other languages.

They come from JSON Lines, Parquet or Arrow, or from a data set of the Hub (see sources.py). Columns
are recognized by their names, or named; text is split into sentences where it is not already.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, BinaryIO

from lcm_cli.documents import Document
from lcm_cli.documents.encoding import check_text, decode_text
from lcm_cli.documents.kinds import Source
from lcm_cli.documents.sources import OnError, expand_paths, opened
from lcm_cli.errors import IntegrityError, LcmError, UsageError
from lcm_cli.pipeline import prepare_documents
from lcm_cli.schema import nearest
from lcm_cli.text.languages import SONAR, find_language

SOURCES = ("document", "article", "text", "sentences", "source", "dialogue", "content")
TARGETS = ("summary", "highlights", "target", "reference", "abstract", "translation")
LANGS = ("lang", "language")


@dataclass(frozen=True)
class Row:
    """One row of the data; `number` is its place there, from 1.

    Texts are given by sentences; without a reference `target` is empty. `parallel` holds the same
    text in other languages, by code. `paragraphs` numbers the paragraph of each source sentence; it
    is empty if that is not known.
    """

    number: int
    id: str
    lang: str
    source: tuple[str, ...]
    target: tuple[str, ...] = ()
    target_lang: str = ""
    parallel: Mapping[str, str] = field(default_factory=dict)
    paragraphs: tuple[int, ...] = ()


@dataclass(frozen=True)
class Columns:
    """Which columns hold what; `target` is empty if none does."""

    source: str
    target: str
    lang: str
    parallel: tuple[str, ...]


def read_rows(
    path: str,
    languages: Sequence[str],
    where: str,
    *,
    source_column: str = "",
    target_column: str = "",
    lang: str = "auto",
    limit: int | None = None,
    on_error: OnError | None = None,
) -> list[Row]:
    """Read the first `limit` good rows of a file.

    `languages` are those of the space called `where`, `lang` that of rows which do not say. A
    broken row goes to `on_error` with its number, and reading continues; without `on_error` it is
    raised. Raises UsageError, listing the columns, if one is wrong or none is recognized, and
    IntegrityError if no row is good.
    """
    report = on_error or _raise
    rows = _rows(path, languages, where, source_column, target_column, lang, report)
    found = list(islice(rows, limit))
    if not found:
        raise IntegrityError(f"there is no row to evaluate on in {path}")
    return found


def swapped(row: Row) -> Row | None:
    """Return the row from reference to source, which is what `expand_paths` is asked for."""
    if not row.target:
        return None
    return Row(row.number, row.id, row.target_lang, row.target, row.source, row.lang)


def choose_columns(names: Sequence[str], source: str, target: str, path: str) -> Columns:
    """Return what the columns called `names` are for. Raises UsageError that lists them."""
    for wanted in filter(None, (source, target)):
        if wanted not in names:
            near = nearest(wanted, names)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise UsageError(f"{path} has no column {wanted!r}", hint + _listed(names))
    # Not by SONAR's list alone: a column may be named "eng_Latn" or by a shorter code.
    parallel = tuple(name for name in names if name in SONAR)
    source = source or next((name for name in SOURCES if name in names), "")
    source = source or next(iter(parallel), "")
    if not source:
        raise UsageError(
            f"no column of {path} is recognized as the text",
            f"name it with --source-column; {_listed(names)}",
        )
    others = [name for name in TARGETS if name in names and name != source]
    lang = next((name for name in LANGS if name in names), "")
    return Columns(source, target or next(iter(others), ""), lang, parallel)


def records(path: str) -> Iterator[tuple[int, dict[str, Any] | LcmError]]:
    """Yield the rows of a file with their numbers, and an error in place of each broken one."""
    before = 0  # rows in the files of a folder that were read already
    for source in expand_paths([path], _raise):
        number = 0
        with opened(source) as (file, kind):
            if kind not in ("jsonl", "parquet", "arrow"):
                raise UsageError(
                    f"{source.name} is not JSON Lines, Parquet or Arrow",
                    'a line is an object such as {"text": "One. Two.", "summary": "One."}',
                )
            lines = _json_lines(file, source) if kind == "jsonl" else _table(file, source, kind)
            for number, record in lines:
                yield before + number, record
        before += number


def _rows(
    path: str,
    languages: Sequence[str],
    where: str,
    source_column: str,
    target_column: str,
    lang: str,
    report: OnError,
) -> Iterator[Row]:
    columns = None
    for number, record in records(path):
        if isinstance(record, LcmError):
            report(record)
            continue
        if columns is None:
            columns = choose_columns(list(record), source_column, target_column, path)
        try:
            yield _row(record, number, columns, f"{path} row {number}", languages, where, lang)
        except LcmError as error:
            report(error)


def _row(
    record: Mapping[str, Any],
    number: int,
    columns: Columns,
    label: str,
    languages: Sequence[str],
    where: str,
    lang: str,
) -> Row:
    id = record.get("id")
    id = str(number) if id is None else str(id)
    document = Document(id, origin=label, lang=_lang(record, columns, label))
    _fill(document, _text(record, columns.source, label))
    if not document.text.strip() and not document.sentences:
        raise IntegrityError(f"{label}: {columns.source!r} is empty")
    done = prepare_documents(document, languages, where, lang).document
    target: tuple[str, ...] = ()
    target_lang = done.lang
    if columns.target:
        target_lang = str(record.get("target_lang") or done.lang)
        target = _sentences(_text(record, columns.target, label), target_lang, languages, where)
    parallel = {
        find_language(name, languages, where).code: str(record[name])
        for name in columns.parallel
        if record.get(name) and name in languages
    }
    source = tuple(done.sentences)
    paragraphs = tuple(done.paragraphs or _paragraphs(record, len(source)))
    return Row(number, id, done.lang, source, tuple(target), target_lang, parallel, paragraphs)


def _paragraphs(record: Mapping[str, Any], sentences: int) -> list[int]:
    """Return the column of a data set with the paragraph of each sentence, if it fits."""
    value = record.get("paragraphs")
    if not isinstance(value, list) or len(value) != sentences:
        return []
    return value if all(type(each) is int for each in value) else []


def _lang(record: Mapping[str, Any], columns: Columns, label: str) -> str:
    if columns.source in SONAR:  # a column of translations is in the language of its name
        return columns.source
    value = record.get(columns.lang) if columns.lang else None
    if value is not None and not isinstance(value, str):
        raise IntegrityError(f"{label}: {columns.lang!r} is {_shown(value)}, not a language")
    return value or ""


def _text(record: Mapping[str, Any], column: str, label: str) -> str | list[str]:
    """Return a text or its sentences; what is missing is empty."""
    value = record.get(column)
    if value is None:
        return ""
    several = isinstance(value, list) and all(isinstance(each, str) for each in value)
    if not isinstance(value, str) and not several:
        raise IntegrityError(f"{label}: {column!r} is {_shown(value)}, not text")
    for text in value if isinstance(value, list) else [value]:
        check_text(text, label)
    return value


def _fill(document: Document, text: str | list[str]) -> None:
    if isinstance(text, str):
        document.text = text
    else:
        document.sentences = [sentence for sentence in text if sentence.strip()]


def _sentences(
    text: str | list[str], lang: str, languages: Sequence[str], where: str
) -> tuple[str, ...]:
    document = Document("", lang=lang)
    _fill(document, text)
    if not document.text.strip() and not document.sentences:
        return ()
    return tuple(prepare_documents(document, languages, where).document.sentences)


def _json_lines(file: BinaryIO, source: Source) -> Iterator[tuple[int, dict[str, Any] | LcmError]]:
    offset = 0
    for number, data in enumerate(file, start=1):
        try:
            line = decode_text(data, source.name, offset, number)
        except LcmError as error:
            yield number, error
            line = ""
        offset += len(data)
        if line.strip():
            yield number, _object(line, f"{source.name} row {number}")


def _object(line: str, label: str) -> dict[str, Any] | LcmError:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return IntegrityError(f"{label} is not valid JSON: {error}")
    if not isinstance(record, dict):
        return IntegrityError(f"{label} is {type(record).__name__}, not an object")
    return record


def _table(
    file: BinaryIO, source: Source, kind: str
) -> Iterator[tuple[int, dict[str, Any] | LcmError]]:
    import pyarrow as pa

    try:
        number = 0
        for batch in _batches(file, kind):
            for record in batch.to_pylist():
                number += 1
                yield number, record
    except (pa.ArrowInvalid, OSError) as error:
        raise IntegrityError(
            f"{source.name} is damaged: {error}", "it may be cut short: copy it again"
        ) from error


def _batches(file: BinaryIO, kind: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if kind == "parquet":
        yield from pq.ParquetFile(file).iter_batches(batch_size=1024)
        return
    head = file.read(6)
    file.seek(0)
    if head == b"ARROW1":
        reader = pa.ipc.open_file(file)
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
        yield from pa.ipc.open_stream(file)


def _listed(names: Sequence[str]) -> str:
    return f"its columns are {', '.join(names) or 'none'}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _raise(error: LcmError) -> None:
    raise error
