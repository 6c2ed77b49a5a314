"""Examples to evaluate on, each from one row of a file: a source text with its references.

Files are JSON Lines, CSV, TSV, Parquet or Arrow, or data sets of the Hub (see example_sources.py).
Columns are recognized by their names or given; text is split into sentences if it is not yet.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from lcm_cli.documents import Document
from lcm_cli.documents.encoding import check_text, decode_text
from lcm_cli.documents.formats.tables import read_delimited
from lcm_cli.documents.kinds import Source
from lcm_cli.documents.sources import OnError, expand_paths, opened
from lcm_cli.documents.text import Line, one_per_line
from lcm_cli.errors import IntegrityError, LcmError, UsageError
from lcm_cli.pipeline import prepare_documents
from lcm_cli.schema import nearest
from lcm_cli.text.languages import SONAR, find_language

# Names of columns, in order of preference.
SOURCES = ("document", "article", "text", "sentences", "source", "dialogue", "content")
TARGETS = ("summary", "highlights", "target", "reference", "abstract", "translation")
LANGS = ("lang", "language")
AUDIO = "audio"


@dataclass(frozen=True)
class Example:
    """A source text with its references; `number` is its row in the data, from 1.

    `source` and `target`, the reference, are split into sentences; `target` is empty if there is
    none. `parallel` holds the source's text in several languages, by code. `paragraphs` holds the
    number of the paragraph of each source sentence, and is empty if unknown. `audio` is the path of
    a recording of the source, "" if there is none.
    """

    number: int
    id: str
    lang: str
    source: tuple[str, ...]
    target: tuple[str, ...] = ()
    target_lang: str = ""
    parallel: Mapping[str, str] = field(default_factory=dict)
    paragraphs: tuple[int, ...] = ()
    audio: str = ""


@dataclass(frozen=True)
class Columns:
    """The names of the columns; `target` and `lang` are empty if there is no such column."""

    source: str
    target: str
    lang: str
    parallel: tuple[str, ...]


def read_examples(
    path: str,
    languages: Sequence[str],
    space: str,
    *,
    source_column: str = "",
    target_column: str = "",
    lang: str = "auto",
    limit: int | None = None,
    on_error: OnError | None = None,
) -> list[Example]:
    """Read the examples in the first `limit` valid rows of a file.

    `languages` are those of the space called `space`; `lang` applies to rows that name no language.
    A broken row is passed to `on_error` with its number, and reading continues; without `on_error`
    it is raised. Raises UsageError, listing the columns, if a given column does not exist or none
    is recognized, and IntegrityError if no row is valid.
    """
    report = on_error or _raise
    examples = list(
        islice(_examples(path, languages, space, source_column, target_column, lang, report), limit)
    )
    if not examples:
        raise IntegrityError(f"{path} has no row to evaluate on")
    return examples


def swapped(example: Example) -> Example | None:
    """Return the example with source and target exchanged, as the task expand needs it.

    None if it has no target.
    """
    if not example.target:
        return None
    return Example(
        example.number,
        example.id,
        example.target_lang,
        example.target,
        example.source,
        example.lang,
    )


def choose_columns(names: Sequence[str], source: str, target: str, path: str) -> Columns:
    """Return the columns to read; `source` and `target`, unless empty, are given by the user.

    Raises UsageError, listing the columns `names`, if one does not exist or none is recognized as
    the source.
    """
    for given in filter(None, (source, target)):
        if given not in names:
            near = nearest(given, names)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise UsageError(f"{path} has no column {given!r}", hint + _listed(names))
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


def read_rows(path: str) -> Iterator[tuple[int, dict[str, Any] | LcmError]]:
    """Yield the rows of a file or folder, numbered from 1, with an error in place of a broken one.

    Raises UsageError for a file in another format, IntegrityError for a damaged one.
    """
    before = 0  # rows in the earlier files of a folder
    for source in expand_paths([path], _raise):
        number = 0
        with opened(source) as (file, kind):
            if kind not in ("jsonl", "csv", "tsv", "parquet", "arrow"):
                raise UsageError(
                    f"{source.name} is not a table (JSON Lines, CSV, TSV, Parquet or Arrow)",
                    'a line is an object such as {"text": "One. Two.", "summary": "One."}',
                )
            rows: Iterator[tuple[int, dict[str, Any] | LcmError]]
            if kind == "jsonl":
                rows = _json_lines(file, source)
            elif kind in ("csv", "tsv"):
                rows = enumerate(read_delimited(file.read(), source.name, kind), start=1)
            else:
                rows = _table(file, source, kind)
            for number, row in rows:
                yield before + number, row
        before += number


def _examples(
    path: str,
    languages: Sequence[str],
    space: str,
    source_column: str,
    target_column: str,
    lang: str,
    report: OnError,
) -> Iterator[Example]:
    columns = None
    for number, row in read_rows(path):
        if isinstance(row, LcmError):
            report(row)
            continue
        if columns is None:  # the first valid row decides
            columns = choose_columns(list(row), source_column, target_column, path)
        try:
            found = _example(row, number, columns, f"{path} row {number}", languages, space, lang)
            yield replace(found, audio=_audio(row, path, f"{path} row {number}"))
        except LcmError as error:
            report(error)


def _example(
    row: Mapping[str, Any],
    number: int,
    columns: Columns,
    label: str,
    languages: Sequence[str],
    space: str,
    lang: str,
) -> Example:
    id = row.get("id")
    id = str(number) if id is None else str(id)
    document = Document(id, origin=label, lang=_lang(row, columns, label))
    _fill(document, _text(row, columns.source, label))
    if not document.text.strip() and not document.sentences:
        raise IntegrityError(f"{label}: {columns.source!r} is empty")
    prepared = prepare_documents(document, languages, space, lang).document
    target: tuple[str, ...] = ()
    target_lang = prepared.lang
    if columns.target:
        target_lang = str(row.get("target_lang") or prepared.lang)
        target = _sentences(_text(row, columns.target, label), target_lang, languages, space)
    parallel = {
        find_language(name, languages, space).code: str(row[name])
        for name in columns.parallel
        if row.get(name) and name in languages
    }
    source = tuple(prepared.sentences)
    paragraphs = tuple(prepared.paragraphs or _paragraphs(row, len(source)))
    return Example(
        number, id, prepared.lang, source, tuple(target), target_lang, parallel, paragraphs
    )


def _audio(row: Mapping[str, Any], path: str, label: str) -> str:
    """Return the path of a row's recording, which is relative to the file of the data."""
    value = row.get(AUDIO) or ""
    if not isinstance(value, str):
        raise IntegrityError(f"{label}: {AUDIO!r} is {_shown(value)}, not the path of a file")
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    return str(folder / value) if value else ""


def _paragraphs(row: Mapping[str, Any], sentence_count: int) -> list[int]:
    """Return the column `paragraphs` if it has an integer for each sentence, else an empty list."""
    value = row.get("paragraphs")
    if not isinstance(value, list) or len(value) != sentence_count:
        return []
    return value if all(type(each) is int for each in value) else []


def _lang(row: Mapping[str, Any], columns: Columns, label: str) -> str:
    if columns.source in SONAR:  # a column of parallel text is named by its language
        return columns.source
    value = row.get(columns.lang) if columns.lang else None
    if value is not None and not isinstance(value, str):
        raise IntegrityError(f"{label}: {columns.lang!r} is {_shown(value)}, not a language")
    return value or ""


def _text(row: Mapping[str, Any], column: str, label: str) -> str | list[str]:
    """Return the text or the sentences in a column, "" if it is missing."""
    value = row.get(column)
    if value is None:
        return ""
    are_sentences = isinstance(value, list) and all(isinstance(each, str) for each in value)
    if not isinstance(value, str) and not are_sentences:
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
    text: str | list[str], lang: str, languages: Sequence[str], space: str
) -> tuple[str, ...]:
    document = Document("", lang=lang)
    _fill(document, text)
    if not document.text.strip() and not document.sentences:
        return ()
    return tuple(prepare_documents(document, languages, space).document.sentences)


def _json_lines(file: BinaryIO, source: Source) -> Iterator[tuple[int, dict[str, Any] | LcmError]]:
    for number, line in one_per_line(_lines(file, source.name), source.name):
        if isinstance(line, LcmError):
            yield number, line
        else:
            yield number, _object(line, f"{source.name} row {number}")


def _lines(file: BinaryIO, name: str) -> Iterator[Line]:
    offset = 0
    for number, data in enumerate(file, start=1):
        try:
            yield number, decode_text(data, name, offset, number)
        except LcmError as error:
            yield number, error
        offset += len(data)


def _object(line: str, label: str) -> dict[str, Any] | LcmError:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return IntegrityError(f"{label} is not valid JSON: {error}")
    if not isinstance(row, dict):
        return IntegrityError(f"{label} is {type(row).__name__}, not an object")
    return row


def _table(
    file: BinaryIO, source: Source, kind: str
) -> Iterator[tuple[int, dict[str, Any] | LcmError]]:
    import pyarrow as pa

    try:
        number = 0
        for batch in _batches(file, kind):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pa.ArrowInvalid, OSError) as error:
        raise IntegrityError(
            f"{source.name} is damaged: {error}", "it may be cut off: copy it again"
        ) from error


def _batches(file: BinaryIO, kind: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if kind == "parquet":
        yield from pq.ParquetFile(file).iter_batches(batch_size=1024)
        return
    head = file.read(6)
    file.seek(0)
    if head == b"ARROW1":  # the magic of an Arrow file; a stream has none
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
