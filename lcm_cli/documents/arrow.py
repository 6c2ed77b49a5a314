"""Documents as Arrow tables: Parquet files and Arrow IPC streams, by lcm or the official LCM code.

Columns: id, lang, text (string); sentences (list of strings), paragraphs (list of int32), concepts
(list of fixed-size lists of float16 or float32); split (string); target_sentences, target_concepts,
plans and plan_concepts (typed like sentences and concepts); times (list of start and end in
seconds, of speech); fragility and target_fragility (lists of float32, read only by training). The
official LCM code names the sentences text_sentences and the concepts text_sentences_sonar_emb.
Where other programs write one vector a row, a list of numbers,
the row is a document of one concept.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfileobj
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lcm_cli.documents.document import (
    Concepts,
    Document,
    SpaceInfo,
    check_alignment,
    checked_part,
    plans_of,
    target_of,
)
from lcm_cli.documents.kinds import Source
from lcm_cli.errors import IntegrityError, LcmError

SENTENCES = ("sentences", "text_sentences")
CONCEPTS = ("concepts", "text_sentences_sonar_emb")
TARGET_SENTENCES = ("target_sentences",)
TARGET_CONCEPTS = ("target_concepts",)
PLANS = ("plans",)
PLAN_CONCEPTS = ("plan_concepts",)
TIMES = "times"
FRAGILITY = ("fragility", "target_fragility")
BATCH_BYTES = 16 << 20  # decoded from a Parquet file at a time
_DIM_DIGITS = 9  # of a space's number of dimensions, at most
_READ_BYTES = 16 << 20  # read from a stream at a time
# The end-of-stream marker of Arrow IPC: a continuation word, then metadata of length 0.
_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_FILE_MAGIC = b"ARROW1\x00\x00"  # an Arrow IPC file is this magic, a stream and a footer


def schema(info: SpaceInfo, dtype: str) -> pa.Schema:
    """Return the schema of the tables we write, with the space described in its metadata."""
    from lcm_cli.version import __version__

    number = {"float16": pa.float16(), "float32": pa.float32()}[dtype]
    vectors = pa.list_(pa.list_(number, info.dim))
    columns = {
        "id": pa.string(),
        "lang": pa.string(),
        "sentences": pa.list_(pa.string()),
        "paragraphs": pa.list_(pa.int32()),
        "concepts": vectors,
        "split": pa.string(),
        "target_sentences": pa.list_(pa.string()),
        "target_concepts": vectors,
        "plans": pa.list_(pa.string()),
        "plan_concepts": vectors,
        TIMES: pa.list_(pa.list_(pa.float64(), 2)),
        **dict.fromkeys(FRAGILITY, pa.list_(pa.float32())),
    }
    about = {
        "lcm.version": __version__,
        "lcm.space": info.name,
        "lcm.fingerprint": info.fingerprint,
        "lcm.dim": str(info.dim),
        "lcm.dtype": dtype,
    }
    return pa.schema(columns, about)


def record_batch(documents: Sequence[Document], layout: pa.Schema) -> pa.RecordBatch:
    """Return documents as rows of a table with the columns of `schema`; all must have concepts."""
    kind = layout.field("concepts").type
    targets = [document.target for document in documents]
    plans = [document.plans for document in documents]
    columns = [
        pa.array([document.id for document in documents], pa.string()),
        pa.array([document.lang for document in documents], pa.string()),
        pa.array([document.sentences or None for document in documents], pa.list_(pa.string())),
        pa.array([document.paragraphs or None for document in documents], pa.list_(pa.int32())),
        _vectors([document.concepts for document in documents], kind),
        pa.array([document.split or None for document in documents], pa.string()),
        *_part_columns(targets, kind),
        *_part_columns(plans, kind),
        pa.array([document.times or None for document in documents], layout.field(TIMES).type),
        *(_fragility_column(part) for part in (documents, targets)),
    ]
    return pa.record_batch(columns, schema=layout)


def _part_columns(parts: Sequence[Document | None], kind: pa.DataType) -> tuple[pa.Array, pa.Array]:
    """Return the sentences and the concepts of targets or plans, null where there are none."""
    sentences = [None if part is None else part.sentences or None for part in parts]
    concepts = [None if part is None else part.concepts for part in parts]
    return pa.array(sentences, pa.list_(pa.string())), _vectors(concepts, kind)


def _fragility_column(documents: Sequence[Document | None]) -> pa.Array:
    scores = [None if document is None else document.fragility for document in documents]
    return pa.array(scores, pa.list_(pa.float32()))


def _vectors(matrices: Sequence[Concepts | None], kind: pa.DataType) -> pa.Array:
    """Return each matrix (S, D) as a list of vectors, None as null."""
    number, width = kind.value_type.value_type, kind.value_type.list_size
    lengths = [0 if matrix is None else len(matrix) for matrix in matrices]
    offsets = pa.array(np.cumsum([0, *lengths], dtype=np.int32))
    present = [matrix for matrix in matrices if matrix is not None]
    dtype = number.to_pandas_dtype()
    # One flat buffer instead of nested Python lists; the empty matrix keeps the width and dtype
    # when every entry is null.
    flat = np.concatenate(
        [np.zeros((0, width), dtype), *present], dtype=dtype, casting="unsafe"
    ).reshape(-1)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat), width)
    missing = pa.array([matrix is None for matrix in matrices])
    return pa.ListArray.from_arrays(offsets, vectors, mask=missing)


def about(metadata: Mapping[bytes, bytes] | None) -> dict[str, str]:
    """Return the entries of a schema's metadata whose keys begin with "lcm.", as strings."""
    decoded = {
        key.decode("utf-8", "replace"): value.decode("utf-8", "replace")
        for key, value in (metadata or {}).items()
    }
    return {key: value for key, value in decoded.items() if key.startswith("lcm.")}


def read_space_info(metadata: Mapping[str, str], name: str) -> SpaceInfo | None:
    """Return the space that `metadata` describes, None if it describes none.

    Raises IntegrityError, naming the file `name`, if the width is not a number.
    """
    if not {"lcm.space", "lcm.fingerprint", "lcm.dim"} <= metadata.keys():
        return None
    dim = metadata["lcm.dim"]
    if not dim.isdecimal() or len(dim) > _DIM_DIGITS:
        raise IntegrityError(f"{name}: lcm.dim = {dim[:40]!r} is not the number of dimensions")
    return SpaceInfo(metadata["lcm.space"], metadata["lcm.fingerprint"], int(dim))


def parquet_metadata(path: Path) -> dict[str, str]:
    """Return the entries under lcm's keys in the metadata of a Parquet file."""
    with intact(str(path)):
        return about(pq.read_schema(path).metadata)


def read_parquet(
    file: BinaryIO, source: Source, concepts: bool, batch_bytes: int = BATCH_BYTES
) -> Iterator[Document | LcmError]:
    """Yield the rows of a Parquet file as documents, decoding about `batch_bytes` at a time.

    The columns of concepts are read only with `concepts`. A row that is broken is yielded as its
    error. Raises IntegrityError if the file cannot be read or has the wrong columns.
    """
    with tempfile.TemporaryFile() as spool, intact(source.name):
        where: Any = source.path
        if not file.seekable():  # the footer, which locates everything else, comes last
            copyfileobj(file, spool)
            where = spool
        # Read through a small buffer: a row group may be larger than memory.
        table = pq.ParquetFile(
            where, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True
        )
        rows = _RowReader(table.schema_arrow, source, concepts)
        size = _rows_per_batch(table.metadata, batch_bytes)
        for batch in table.iter_batches(size, columns=rows.columns, use_threads=False):
            yield from rows.documents(batch)


def read_whole(path: Path) -> Iterator[Document]:
    """Yield the documents of a Parquet file written by lcm, with their fragility scores."""
    with path.open("rb") as file, intact(str(path)):
        scores = pq.read_table(path, columns=list(FRAGILITY)).to_pydict()
        documents = read_parquet(file, Source(str(path), path.name, path), True)
        for number, document in enumerate(documents):
            if isinstance(document, LcmError):
                raise document
            for part, name in zip((document, document.target), FRAGILITY, strict=True):
                if part is not None and scores[name][number] is not None:
                    part.fragility = np.array(scores[name][number], np.float32)
            yield document


def read_arrow(file: BinaryIO, source: Source, concepts: bool) -> Iterator[Document | LcmError]:
    """Yield the rows of an Arrow IPC stream or file as documents, each batch as it arrives.

    A row that is broken is yielded as its error. Raises IntegrityError if the input is damaged, has
    the wrong columns, or lacks the end-of-stream marker.
    """
    stream_bytes = _StreamBytes(file)
    with intact(source.name):
        with pa.ipc.open_stream(stream_bytes) as stream:
            rows = _RowReader(stream.schema, source, concepts)
            for batch in stream:
                yield from rows.documents(batch)
        # Arrow takes an end of file between two batches for the end of the stream, so a writer
        # that died there goes unnoticed without this check.
        if stream_bytes.last != _END:
            raise IntegrityError(
                f"{source.name} was cut off after {rows.count} documents",
                "the program that wrote it failed or was stopped: see its message",
            )


@contextmanager
def intact(name: str) -> Iterator[None]:
    """Turn an error of Arrow's while reading the file `name` into IntegrityError."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise IntegrityError(
            f"{name} is damaged or cut off: {reason}", "copy or make the file again"
        ) from error


class _StreamBytes:
    """The bytes of an Arrow IPC stream or file, without a file's magic; keeps the last eight read.

    Implements what pyarrow asks of a Python file object that it only reads.
    """

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.last = file.read(len(_FILE_MAGIC))
        self._head = b"" if self.last == _FILE_MAGIC else self.last

    def read(self, size: int = -1) -> bytes:
        blocks = [self._head[:size]]
        self._head = self._head[size:]
        missing = size - len(blocks[0])
        # In blocks: Python reserves all of `size`, which in a damaged stream may be petabytes.
        while missing > 0 and (block := self._file.read(min(missing, _READ_BYTES))):
            blocks.append(block)
            missing -= len(block)
        data = blocks[1] if len(blocks) == 2 and not blocks[0] else b"".join(blocks)
        self.last = (self.last + data[-8:])[-8:]
        return data

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        """Do nothing: the caller closes the file."""


def _rows_per_batch(metadata: pq.FileMetaData, batch_bytes: int) -> int:
    """Return the number of rows, from 1 to 4096, that decode to about `batch_bytes`."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    # total_byte_size is uncompressed but still encoded (dictionaries, runs): an estimate.
    per_row = sum(group.total_byte_size for group in groups) / max(1, metadata.num_rows)
    return max(1, min(4096, int(batch_bytes / max(1.0, per_row))))


class _RowReader:
    """Turns the rows of one table into documents; `columns` are the ones it needs.

    Raises IntegrityError if the table lacks a column of text or concepts, or if a column has the
    wrong type.
    """

    def __init__(self, layout: pa.Schema, source: Source, concepts: bool) -> None:
        self._source = source
        self._space = read_space_info(about(layout.metadata), source.name)
        self._sentences = _first(SENTENCES, layout.names)
        self._concepts = _first(CONCEPTS, layout.names) if concepts else None
        text = "text" if self._sentences is None and "text" in layout.names else None
        self._target = _first(TARGET_SENTENCES, layout.names)
        self._target_concepts = _first(TARGET_CONCEPTS, layout.names) if concepts else None
        self._plans = _first(PLANS, layout.names)
        self._plan_concepts = _first(PLAN_CONCEPTS, layout.names) if concepts else None
        wanted = (
            *("id", "lang", text, self._sentences, "paragraphs", self._concepts),
            *("split", self._target, self._target_concepts),
            *(self._plans, self._plan_concepts, TIMES),
        )
        self.columns: list[str] = [name for name in wanted if name and name in layout.names]
        self.count = 0  # rows read so far
        if not {text, self._sentences, self._concepts} - {None}:
            raise _no_column(layout.names, source.name, concepts)
        self._check_types(layout)

    def documents(self, batch: pa.RecordBatch) -> Iterator[Document | LcmError]:
        """Yield a document, or an error, for each row."""
        columns = {name: batch.column(name) for name in self.columns}
        for column in columns.values():
            # Arrow trusts lengths and offsets: wrong ones would end the process when a cell is
            # read. UTF-8 is checked later, so that a bad string only costs its own row.
            column.view(_undecoded(column.type)).validate(full=True)
        for index in range(batch.num_rows):
            row = {name: column[index] for name, column in columns.items()}
            try:
                yield self._document(row)
            except LcmError as error:
                yield error
            except UnicodeDecodeError as error:
                yield IntegrityError(f"{self._source.name} row {self.count}: not UTF-8: {error}")
            self.count += 1

    def _document(self, row: dict[str, Any]) -> Document:
        origin = f"{self._source.name} row {self.count}"
        # Concepts stay Arrow scalars: as_py would make a Python float of every number.
        vectors = (self._concepts, self._target_concepts, self._plan_concepts)
        cell = {name: scalar.as_py() for name, scalar in row.items() if name not in vectors}
        own_id = cell.get("id")
        document = Document(
            id=f"{self._source.id}:{self.count}" if own_id is None else str(own_id),
            lang=cell.get("lang") or "",
            text=cell.get("text") or "",
            origin=origin,
            space=self._space,
            split=cell.get("split") or "",
        )
        sentences = cell.get(self._sentences) if self._sentences else None
        document.sentences = _without_nulls(sentences, "sentences", document.label)
        document.paragraphs = _without_nulls(cell.get("paragraphs"), "paragraphs", document.label)
        document.concepts = self._vectors(row, self._concepts, document)
        times = _without_nulls(cell.get(TIMES), TIMES, document.label)
        document.times = [(start, end) for start, end in times]
        check_alignment(document, has_sentences=sentences is not None)
        known = document.id, document.lang, origin
        target, plans = target_of(*known), plans_of(*known)
        document.target = self._part(target, row, self._target, self._target_concepts)
        document.plans = self._part(plans, row, self._plans, self._plan_concepts)
        return document

    def _part(
        self, part: Document, row: dict[str, Any], sentences: str | None, concepts: str | None
    ) -> Document | None:
        """Fill in a target or plans from the columns of these names; None if both are empty."""
        values = row[sentences].as_py() if sentences else None
        part.sentences = _without_nulls(values, "sentences", part.label)
        part.concepts = self._vectors(row, concepts, part)
        return checked_part(part)

    def _vectors(
        self, row: dict[str, Any], name: str | None, document: Document
    ) -> Concepts | None:
        if name is None or not row[name].is_valid:
            return None
        hint = f"embed its sentences again: lcm embed {self._source.name} -o NEW.parquet"
        return _matrix(row[name].values, document.label, hint)

    def _check_types(self, layout: pa.Schema) -> None:
        for name in self.columns:
            kind = layout.field(name).type
            if not _EXPECTED.get(name, _EXPECTED["concepts"])(kind):
                raise IntegrityError(
                    f"{self._source.name}: the column {name!r} has the type {kind}",
                    "docs/formats.md lists the columns and their types",
                )


def _undecoded(kind: pa.DataType) -> pa.DataType:
    """Return a type with binary in place of string, also in lists."""
    if kind in _BINARY:
        return _BINARY[kind]
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_undecoded(kind.value_type), kind.list_size)
    if pa.types.is_large_list(kind):
        return pa.large_list(_undecoded(kind.value_type))
    return pa.list_(_undecoded(kind.value_type)) if pa.types.is_list(kind) else kind


_BINARY = {
    pa.string(): pa.binary(),
    pa.large_string(): pa.large_binary(),
    pa.string_view(): pa.binary_view(),
}


def _is_string(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _is_list(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(kind)
        or pa.types.is_large_list(kind)
        or (pa.types.is_fixed_size_list(kind) and kind.list_size > 0)
    )


def _is_strings(kind: pa.DataType) -> bool:
    return _is_list(kind) and _is_string(kind.value_type)


def _is_vectors(kind: pa.DataType) -> bool:
    """Return whether a cell holds vectors, or a single vector."""
    inner = kind.value_type if _is_list(kind) else kind
    number = inner.value_type if _is_list(inner) else inner
    return _is_list(kind) and bool(pa.types.is_floating(number))


def _is_times(kind: pa.DataType) -> bool:
    return bool(kind == pa.list_(pa.list_(pa.float64(), 2)))


_EXPECTED = {
    "id": lambda kind: _is_string(kind) or pa.types.is_integer(kind),
    "lang": _is_string,
    "text": _is_string,
    "paragraphs": lambda kind: _is_list(kind) and pa.types.is_integer(kind.value_type),
    "concepts": _is_vectors,
    TIMES: _is_times,
    "split": _is_string,
} | dict.fromkeys((*SENTENCES, *TARGET_SENTENCES, *PLANS), _is_strings)


def _first(names: Iterable[str], among: Sequence[str]) -> str | None:
    return next((name for name in names if name in among), None)


def _no_column(names: Sequence[str], file: str, concepts: bool) -> IntegrityError:
    held = _first(CONCEPTS, names)
    if held is not None and not concepts:
        return IntegrityError(
            f"{file} holds concepts and no text", f"decode it: lcm decode {file} --to LANG"
        )
    return IntegrityError(
        f"{file} has no column named text, sentences or concepts; it has {', '.join(names)}",
        "rename the column that holds the text or the sentences",
    )


def _without_nulls(values: list[Any] | None, what: str, label: str) -> list[Any]:
    """Return the list in a cell, empty if the cell is null. Raises IntegrityError for a null."""
    if values is None:
        return []
    if None in values:
        raise IntegrityError(
            f"{label}: {what[:-1]} {values.index(None)} is missing (null)",
            "fill it in, or remove the sentence with its paragraph number and concept",
        )
    return values


def _matrix(vectors: pa.Array, label: str, hint: str) -> Concepts:
    """Return the concepts of one row as a writable array (S, D), float16 or float32.

    A list of numbers is a single concept. Raises IntegrityError with `hint` if a vector or a value
    is null, or the widths differ.
    """
    if pa.types.is_floating(vectors.type) and len(vectors):
        vectors = pa.ListArray.from_arrays([0, len(vectors)], vectors)
    if vectors.null_count:
        missing = f"{vectors.null_count} of its {len(vectors)} concepts are missing (null)"
        raise IntegrityError(f"{label}: {missing}", hint)
    width = _width(vectors, label, hint)
    flat = vectors.flatten()  # unlike .values, only the numbers of this row
    if flat.null_count:
        raise IntegrityError(f"{label}: {flat.null_count} values in its concepts are null", hint)
    values = flat.to_numpy(zero_copy_only=False).reshape(len(vectors), width)
    return np.array(values, dtype=np.float32 if values.dtype == np.float64 else values.dtype)


def _width(vectors: pa.Array, label: str, hint: str) -> int:
    if pa.types.is_fixed_size_list(vectors.type):
        return int(vectors.type.list_size)
    widths = sorted(set(vectors.value_lengths().to_pylist()))
    if len(widths) > 1:
        raise IntegrityError(f"{label}: its concepts have several widths: {widths}", hint)
    return int(widths[0]) if widths else 0
