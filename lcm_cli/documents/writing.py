"""Writing of documents with their concepts, to every supported format."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lcm_cli.documents import dataset
from lcm_cli.documents.arrow import about, read_whole, record_batch, schema
from lcm_cli.documents.checks import check_concepts, finite_rows
from lcm_cli.documents.document import Document, SpaceInfo, check_alignment
from lcm_cli.documents.encoding import check_text
from lcm_cli.documents.targets import find_target
from lcm_cli.documents.tensors import write_document
from lcm_cli.documents.text import to_json
from lcm_cli.errors import IntegrityError, UsageError
from lcm_cli.files import atomic_path, disk_error, sha256

Dtype = Literal["float16", "float32"]
Write = Callable[[Document], None]

GROUP_BYTES = 16 << 20  # of documents in a Parquet row group, which readers hold at a time
SHARD_BYTES = 256 << 20  # of documents in a shard of a data set
SAVE_SECONDS = 120.0  # least time between two saves of the open shard


class ConceptWriter:
    """Writes documents with concepts of one space, and refuses those that no reader would accept.

    A stopped run that is resumed has written `done` documents, the last with the id `last`; the
    last `open` of them belong to the unfinished shard. `fills`, called for each document in order
    from the first one in that shard on, returns whether the document will fill its shard.
    """

    def __init__(self, info: SpaceInfo, dtype: Dtype, write: "Write | _ShardWriter") -> None:
        self.info = info
        self.dtype = dtype
        self.count = 0  # documents written by this run
        self.done, self.open, self.last = 0, 0, ""
        self.fills: Callable[[Document], bool] = lambda document: False
        self._save: Callable[[], None] = lambda: None
        if isinstance(write, _ShardWriter):
            self.done, self.last = write.draft.done, write.draft.last
            self.fills = write.shard_filling()
            self.open, self._save = write.restored, write.save
            write = write.write
        self._write = write

    def write(self, document: Document) -> None:
        """Write a document with concepts (S, D), one for each sentence if it has sentences.

        Raises IntegrityError if concepts are missing, not finite, of another width or number than
        expected, or too large for float16; LcmError if the disk is full.
        """
        self._write(as_written(document, self.info, self.dtype))
        self.count += 1

    def save(self) -> None:
        """Save the documents of the open shard, so that a killed run can resume after them.

        Saves at most once per `save_seconds`, and only data sets opened with a `run`. Call it
        between documents where a resumed run may begin. Raises LcmError if the disk is full.
        """
        self._save()


@contextmanager
def open_writer(
    path: str,
    info: SpaceInfo,
    *,
    dtype: Dtype = "float16",
    force: bool = False,
    extend: bool = False,
    stdout: BinaryIO | None = None,
    shard_bytes: int = SHARD_BYTES,
    save_seconds: float = SAVE_SECONDS,
    run: Mapping[str, Any] | None = None,
    allow_empty: bool = False,
) -> Iterator[ConceptWriter]:
    """Open `path` for documents whose concepts lie in the space `info`.

    The name determines the format: .parquet, .arrow (IPC stream), .jsonl, .safetensors (one
    document), a folder or a name without suffix (a data set: shards of about `shard_bytes` and a
    manifest), - (Arrow IPC stream to `stdout`, flushed after each document). `force` replaces
    existing files; `extend` adds to a data set. With a `run` (JSON data that identifies the
    documents and the options), an unfinished data set is kept when writing stops, and the same run
    resumes it after its last finished shard or its last `save`, whichever is later.

    Files appear, complete, when the context ends without an error; an interrupted stream lacks its
    end-of-stream marker. Raises UsageError for an unknown suffix, an existing file, a terminal, or,
    unless `allow_empty`, if no document was written; NotFoundError if the folder is missing;
    LcmError for a full disk.
    """
    target, layout = find_target(path), schema(info, dtype)
    if extend and target.kind != "dataset":
        raise UsageError(f"{path} cannot be extended", "only a data set (a folder) can")
    opened: AbstractContextManager[Write | _ShardWriter]
    if target.kind == "dataset":
        draft = dataset.writing(target.path, info, dtype, force=force, keep=extend, run=run)
        opened = _dataset(draft, layout, shard_bytes, save_seconds)
    elif target.kind == "stdout":
        opened = _stdout(stdout or sys.stdout.buffer, layout)
    else:
        opened = _FILES[target.kind](target.path, layout, force)
    with opened as write:
        writer = ConceptWriter(info, dtype, write)
        yield writer
        if not (allow_empty or writer.count + writer.done):
            raise UsageError(f"nothing was written to {path}: there were no documents")


def as_written(document: Document, info: SpaceInfo, dtype: Dtype) -> Document:
    """Return a checked copy of a document as it is written: in the space `info`, as `dtype`.

    Raises IntegrityError for concepts that no reader would accept (see `ConceptWriter.write`).
    """
    own = replace(document, space=info)
    check_concepts(own)
    check_alignment(own)
    for text in (own.id, own.split, *own.sentences):
        check_text(text, own.label)
    assert own.concepts is not None  # by check_concepts
    with np.errstate(over="ignore"):  # an overflow to infinity is reported below
        own.concepts = np.ascontiguousarray(own.concepts, dtype=dtype)
    if not finite_rows(own.concepts).all():
        raise IntegrityError(
            f"{own.label}: its concepts have values beyond the range of float16 (65504)",
            "write them as float32: --dtype float32",
        )
    if own.target is not None:
        own.target = as_written(own.target, info, dtype)
    if own.plans is not None:
        own.plans = as_written(own.plans, info, dtype)
    return own


@contextmanager
def _parquet(path: Path, layout: pa.Schema, force: bool) -> Iterator[Write]:
    with (
        atomic_path(path, force=force) as temporary,
        pq.ParquetWriter(
            temporary,
            layout,
            compression="zstd",
            use_dictionary=["lang"],
            write_statistics=False,
            write_page_checksum=True,
        ) as table,
    ):
        groups = _RowGroupWriter(table, layout)
        yield groups.write
        groups.flush()


class _RowGroupWriter:
    """Collects documents and writes them as row groups of about GROUP_BYTES."""

    def __init__(self, table: pq.ParquetWriter, layout: pa.Schema) -> None:
        self._table = table
        self._layout = layout
        self._concept_bytes = _concept_bytes(layout)
        self._pending: list[Document] = []
        self._size = 0

    def write(self, document: Document) -> None:
        self._pending.append(document)
        self._size += _document_bytes(document, self._concept_bytes)
        if self._size >= GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._pending:
            self._table.write_batch(record_batch(self._pending, self._layout))
        self._pending, self._size = [], 0


def _document_bytes(document: Document, concept_bytes: int) -> int:
    """Return the approximate size of a document before compression.

    The result is the same before and after the sentences are encoded: resuming relies on it to find
    the ends of shards (see `_ShardWriter.shard_filling`).
    """
    units = document.sentences if document.concepts is None else document.concepts
    own = concept_bytes * len(units) + sum(map(len, document.sentences)) + len(document.id)
    parts = (part for part in (document.target, document.plans) if part)
    return own + sum(_document_bytes(part, concept_bytes) for part in parts)


def _concept_bytes(layout: pa.Schema) -> int:
    vector = layout.field("concepts").type.value_type
    return int(vector.list_size * vector.value_type.bit_width // 8)


@contextmanager
def _arrow(path: Path, layout: pa.Schema, force: bool) -> Iterator[Write]:
    with atomic_path(path, force=force) as temporary, temporary.open("wb") as file:
        stream = pa.ipc.new_stream(file, layout)
        yield lambda document: stream.write_batch(record_batch([document], layout))
        stream.close()


@contextmanager
def _stdout(file: BinaryIO, layout: pa.Schema) -> Iterator[Write]:
    if file.isatty():
        raise UsageError(
            "binary data is not written to a terminal", "write to a file: -o FILE, or add --json"
        )

    stream = pa.ipc.new_stream(file, layout)

    def write(document: Document) -> None:
        with _stdout_errors():
            stream.write_batch(record_batch([document], layout))
            file.flush()  # so that the next program in the pipe can start on this document

    yield write
    with _stdout_errors():
        stream.close()  # writes the end-of-stream marker, so it must not run after an error
        file.flush()


@contextmanager
def _stdout_errors() -> Iterator[None]:
    """Turn an OSError into LcmError, except that of a reader that has closed the pipe."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise disk_error(error, Path("stdout")) from error


@contextmanager
def _jsonl(path: Path, layout: pa.Schema, force: bool) -> Iterator[Write]:
    with atomic_path(path, force=force) as temporary, temporary.open("w", encoding="utf-8") as file:
        yield lambda document: print(json.dumps(to_json(document), ensure_ascii=False), file=file)


@contextmanager
def _safetensors(path: Path, layout: pa.Schema, force: bool) -> Iterator[Write]:
    def write(document: Document) -> None:
        if held:
            raise UsageError(
                f"{path} can hold one document, and {document.label} is the second",
                "write several documents to .parquet, .arrow, .jsonl or a folder",
            )
        held.append(document)

    held: list[Document] = []
    with atomic_path(path, force=force) as temporary:
        yield write
        for document in held:
            write_document(document, about(layout.metadata), temporary)


_FILES = {"parquet": _parquet, "arrow": _arrow, "jsonl": _jsonl, "safetensors": _safetensors}


@contextmanager
def _dataset(
    folder: AbstractContextManager[dataset.Draft],
    layout: pa.Schema,
    shard_bytes: int,
    save_seconds: float,
) -> Iterator["_ShardWriter"]:
    with folder as draft, _ShardWriter(draft, layout, shard_bytes, save_seconds) as shards:
        shards.restore()
        yield shards


class _ShardWriter:
    """Writes the shards of a data set one after the other, and saves the open one periodically."""

    def __init__(
        self, draft: dataset.Draft, layout: pa.Schema, shard_bytes: int, save_seconds: float
    ) -> None:
        self.draft = draft
        self._layout = layout
        self._shard_bytes = shard_bytes
        self._save_seconds = save_seconds
        self._fills = self.shard_filling()
        self._open_file = ExitStack()  # closes the file of the open shard
        self._shard: _OpenShard | None = None
        self.restored = 0  # documents of the open shard that an earlier run wrote
        self._unsaved: list[Document] = []  # documents of the open shard that a kill would lose
        self._saved_at = time.monotonic()

    def restore(self) -> None:
        """Rewrite the open shard of an earlier run from the documents that it saved.

        They go through the same steps as new ones, so the shard becomes byte for byte that of a run
        that was never stopped.
        """
        for file in list(self.draft.saved):
            for document in read_whole(self.draft.folder / file.file):
                self._add(document)
                self.restored += 1

    def save(self) -> None:
        """Write the unsaved documents to a file of their own, if the last save is old enough.

        The shard itself cannot be read before its footer is written.
        """
        if not self._unsaved or time.monotonic() - self._saved_at < self._save_seconds:
            return
        path = self.draft.saved_path()
        with _parquet(path, self._layout, True) as write:
            file = _OpenShard(path, write)
            for document in self._unsaved:
                file.add(document)
        self.draft.save(file.closed(), file.last)
        self._unsaved, self._saved_at = [], time.monotonic()

    def shard_filling(self) -> Callable[[Document], bool]:
        """Return a function that says of each document, in order, whether it ends a shard.

        The documents need not have concepts yet: their sentences are counted.
        """
        concept_bytes, size = _concept_bytes(self._layout), 0

        def fills(document: Document) -> bool:
            nonlocal size
            size += _document_bytes(document, concept_bytes)
            full = size >= self._shard_bytes
            size = 0 if full else size
            return full

        return fills

    def write(self, document: Document) -> None:
        if self.draft.resumable:
            self._unsaved.append(document)
        self._add(document)

    def _add(self, document: Document) -> None:
        if self._shard is None:
            path = self.draft.next_path()
            write = self._open_file.enter_context(_parquet(path, self._layout, False))
            self._shard = _OpenShard(path, write)
        self._shard.add(document)
        if self._fills(document):
            self._finish(self._shard)

    def _finish(self, shard: "_OpenShard") -> None:
        self._open_file.close()
        self._shard = None
        self.draft.add(shard.closed(), shard.last)
        self._unsaved, self._saved_at = [], time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: Any) -> None:
        if problem[0] is not None:
            self._open_file.__exit__(*problem)
        elif self._shard is not None:
            self._finish(self._shard)


@dataclass
class _OpenShard:
    """A Parquet file being written, with the counts for the manifest."""

    path: Path
    write: Write
    documents: int = 0
    concepts: int = 0
    last: str = ""  # the id of the last document

    def add(self, document: Document) -> None:
        assert document.concepts is not None
        self.write(document)
        self.documents += 1
        self.concepts += len(document.concepts)
        self.last = document.id

    def closed(self) -> dataset.Shard:
        """Return the manifest's entry for the file, which must be closed."""
        size, digest = self.path.stat().st_size, sha256(self.path)
        return dataset.Shard(self.path.name, self.documents, self.concepts, size, digest)
