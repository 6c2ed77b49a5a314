"""Writing documents with their concepts: one way in, and a few lines for each format."""

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

GROUP_BYTES = 16 << 20  # of concepts in a Parquet row group: what a reader holds at a time
SHARD_BYTES = 256 << 20  # of concepts in a shard of a data set
SAVE_SECONDS = 120.0  # between two saves of what the open shard holds


class ConceptWriter:
    """Takes documents with concepts of one space, and refuses those that no reader would take.

    `done` documents, the last of which has the id `last`, were written by a run that was stopped;
    the `open` last of them are in a shard that is not full. `fills` tells of each document to come,
    beginning with those in the open shard, whether it will be the last of its shard.
    """

    def __init__(self, info: SpaceInfo, dtype: Dtype, write: "Write | _Shards") -> None:
        self.info = info
        self.dtype = dtype
        self.count = 0  # documents written
        self.done, self.open, self.last = 0, 0, ""
        self.fills: Callable[[Document], bool] = lambda document: False
        self._save: Callable[[], None] = lambda: None
        if isinstance(write, _Shards):
            self.done, self.last, self.fills = write.draft.done, write.draft.last, write.ends()
            self.open, self._save = write.restored, write.save
            write = write.write
        self._write = write

    def write(self, document: Document) -> None:
        """Write a document with concepts (S, D), one for each sentence if it has sentences.

        Raises IntegrityError if concepts are missing, not finite, of another width, not as many as
        the sentences, or too large for float16.
        """
        self._write(as_written(document, self.info, self.dtype))
        self.count += 1

    def save(self) -> None:
        """Let all that was written survive a kill, if a run goes on; at most every SAVE_SECONDS.

        To be called where a run that goes on may begin. Raises LcmError if the disk is full.
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
    run: Mapping[str, Any] | None = None,
) -> Iterator[ConceptWriter]:
    """Open `path` for documents whose concepts lie in the space `info`.

    The format follows the name: .parquet, .arrow (IPC stream), .jsonl, .safetensors (one document),
    a folder or a name without suffix (data set: shards of about `shard_bytes` and a manifest), -
    (Arrow IPC stream to `stdout`, each document at once). `force` replaces what is there; `extend`
    adds to a data set. A `run` (plain data that says which documents these are, and how they were
    made) keeps what there is of a data set that was not finished; the same run then goes on after
    its last whole shard, or its last `save`.

    Files appear, whole, when the context ends without an error; a stream that was broken off lacks
    its end mark. Raises UsageError for an unknown suffix, an existing file, a terminal, or if no
    document was written; NotFoundError if the folder is missing; LcmError if the disk is full.
    """
    target, layout = find_target(path), schema(info, dtype)
    if extend and target.kind != "dataset":
        raise UsageError(f"{path} cannot be extended", "only a data set (a folder) can")
    opened: AbstractContextManager[Write | _Shards]
    if target.kind == "dataset":
        draft = dataset.writing(target.path, info, dtype, force=force, keep=extend, run=run)
        opened = _dataset(draft, layout, shard_bytes)
    elif target.kind == "stdout":
        opened = _stdout(stdout or sys.stdout.buffer, layout)
    else:
        opened = _FILES[target.kind](target.path, layout, force)
    with opened as write:
        writer = ConceptWriter(info, dtype, write)
        yield writer
        if not writer.count + writer.done:
            raise UsageError(f"nothing was written to {path}: there were no documents")


def as_written(document: Document, info: SpaceInfo, dtype: Dtype) -> Document:
    """Return a document as it is written: of the space `info`, its concepts as `dtype`.

    Raises IntegrityError for concepts that no reader would take (see `ConceptWriter.write`).
    """
    own = replace(document, space=info)
    check_concepts(own)
    check_alignment(own)
    for text in (own.id, own.split, *own.sentences):
        check_text(text, own.label)
    assert own.concepts is not None  # by check_concepts
    with np.errstate(over="ignore"):
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
        groups = _RowGroups(table, layout)
        yield groups.write
        groups.flush()


class _RowGroups:
    """Collects documents until they are worth a row group."""

    def __init__(self, table: pq.ParquetWriter, layout: pa.Schema) -> None:
        self._table = table
        self._layout = layout
        self._row = _row_bytes(layout)
        self._held: list[Document] = []
        self._size = 0

    def write(self, document: Document) -> None:
        self._held.append(document)
        self._size += _bytes(document, self._row)
        if self._size >= GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._held:
            self._table.write_batch(record_batch(self._held, self._layout))
        self._held, self._size = [], 0


def _bytes(document: Document, row: int) -> int:
    """Return about how large a document is, given the bytes of a concept."""
    known = document.sentences if document.concepts is None else document.concepts
    own = row * len(known) + sum(map(len, document.sentences)) + len(document.id)
    return own + sum(_bytes(part, row) for part in (document.target, document.plans) if part)


def _row_bytes(layout: pa.Schema) -> int:
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
            "binary data does not go to a terminal", "write to a file: -o FILE, or add --json"
        )

    stream = pa.ipc.new_stream(file, layout)

    def write(document: Document) -> None:
        with _on_stdout():
            stream.write_batch(record_batch([document], layout))
            file.flush()  # the next program in the pipe works on this one meanwhile

    yield write
    with _on_stdout():
        stream.close()  # writes the end mark, so never after an error
        file.flush()


@contextmanager
def _on_stdout() -> Iterator[None]:
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
                "write several to .parquet, .arrow, .jsonl or a folder",
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
    folder: AbstractContextManager[dataset.Draft], layout: pa.Schema, shard_bytes: int
) -> Iterator["_Shards"]:
    with folder as draft, _Shards(draft, layout, shard_bytes) as shards:
        shards.restore()
        yield shards


class _Shards:
    """Writes one Parquet file after the other, each whole before the next is begun."""

    def __init__(self, draft: dataset.Draft, layout: pa.Schema, limit: int) -> None:
        self.draft = draft
        self._layout = layout
        self._limit = limit
        self._fills = self.ends()
        self._file = ExitStack()  # what closes the shard being written
        self._shard: _OpenShard | None = None
        self.restored = 0  # documents of the open shard that an earlier run wrote
        self._unsaved: list[Document] = []  # a kill would lose them
        self._saved_at = time.monotonic()

    def restore(self) -> None:
        """Begin the open shard of an earlier run again, with the documents that it saved."""
        for file in list(self.draft.saved):
            for document in read_whole(self.draft.folder / file.file):
                self._add(document)
                self.restored += 1

    def save(self) -> None:
        """Put what is only in the open shard into a file of its own, if that is long ago.

        The shard itself is worth nothing before it is whole.
        """
        if not self._unsaved or time.monotonic() - self._saved_at < SAVE_SECONDS:
            return
        path = self.draft.saved_path()
        with _parquet(path, self._layout, True) as write:
            file = _OpenShard(path, write)
            for document in self._unsaved:
                file.add(document)
        self.draft.save(file.closed(), file.last)
        self._unsaved, self._saved_at = [], time.monotonic()

    def ends(self) -> Callable[[Document], bool]:
        """Return a function that tells of one document after the other which are a shard's last.

        It looks at how many sentences they have, so it can be asked before they have concepts.
        """
        row, size = _row_bytes(self._layout), 0

        def fills(document: Document) -> bool:
            nonlocal size
            size += _bytes(document, row)
            full = size >= self._limit
            size = 0 if full else size
            return full

        return fills

    def write(self, document: Document) -> None:
        if self.draft.goes_on:
            self._unsaved.append(document)
        self._add(document)

    def _add(self, document: Document) -> None:
        if self._shard is None:
            path = self.draft.next_path()
            write = self._file.enter_context(_parquet(path, self._layout, False))
            self._shard = _OpenShard(path, write)
        self._shard.add(document)
        if self._fills(document):
            self._end(self._shard)

    def _end(self, shard: "_OpenShard") -> None:
        self._file.close()
        self._shard = None
        self.draft.add(shard.closed(), shard.last)
        self._unsaved, self._saved_at = [], time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: Any) -> None:
        if problem[0] is not None:
            self._file.__exit__(*problem)
        elif self._shard is not None:
            self._end(self._shard)


@dataclass
class _OpenShard:
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
        """Return what the manifest says of the file, which is whole now."""
        size, digest = self.path.stat().st_size, sha256(self.path)
        return dataset.Shard(self.path.name, self.documents, self.concepts, size, digest)
