"""An index: a folder with the sentences of documents, and their concepts as a memory-mapped matrix.

    manifest.json       the space, the counts, and the size and checksum of every other file
    vectors-00000.f16   unit vectors, row by row, little-endian float16 without a header
    sentences.arrow     Arrow IPC file, a row per vector: document, sentence, lang, text, norm
    graph.faiss         only in an approximate index

The folder is written under a temporary name and renamed once it is complete.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from lcm_cli.documents import Document, SpaceInfo
from lcm_cli.documents.arrow import intact
from lcm_cli.errors import IntegrityError, UsageError
from lcm_cli.files import disk_error, make_folder, not_there, replace_folder, sha256, umask
from lcm_cli.progress import Progress, StartJob, ignore, no_progress
from lcm_cli.schema import json_value, parse
from lcm_cli.search import graph
from lcm_cli.search.corpus import Hit, blocks, concepts_of
from lcm_cli.search.exact import STEP, Nearest, Vectors, rescored
from lcm_cli.space.similarity import unit_length

MANIFEST = "manifest.json"
KIND = "index"
VERSION = 1
SENTENCES = "sentences.arrow"
GRAPH = "graph.faiss"
DTYPE = np.dtype("<f2")
SHARD_ROWS = 1 << 20
_LAYOUT = pa.schema(
    {
        "document": pa.string(),
        "sentence": pa.int32(),  # from 1
        "lang": pa.string(),
        "text": pa.string(),  # null if unknown
        "norm": pa.float32(),  # length of the concept before it was scaled to 1
    }
)


@dataclass(frozen=True)
class Part:
    """A file of an index, with the number of its rows."""

    file: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json."""

    kind: str
    version: int
    lcm_version: str
    space: SpaceInfo
    dtype: str
    rows: int
    documents: int
    shards: list[Part]
    sentences: Part
    graph: Part | None = None


def is_index(path: Path) -> bool:
    """Return whether `path` is a folder with the manifest of an index."""
    try:
        data = json_value((path / MANIFEST).read_bytes(), MANIFEST)
    except (OSError, IntegrityError):
        # The matrix shows that a damaged manifest belonged to an index.
        return (path / MANIFEST).is_file() and any(path.glob("vectors-*.f16"))
    return isinstance(data, dict) and data.get("kind") == KIND


def check_place(folder: Path, *, force: bool) -> None:
    """Raise UsageError unless an index may be written to `folder`.

    A folder that holds anything but an index is refused even with `force`.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", "choose another name")
    if is_index(folder):
        if not force:
            raise UsageError(f"{folder} exists already", "choose another name, or add --force")
    elif any(folder.iterdir()):
        raise UsageError(f"{folder} is not an index, and not empty", "choose another folder")


def write_index(
    folder: Path,
    info: SpaceInfo,
    documents: Iterable[Document],
    *,
    approximate: bool = False,
    force: bool = False,
    start: StartJob = no_progress,
) -> Manifest:
    """Write an index of `documents`, which all have concepts, and return its manifest.

    `start` opens the jobs whose progress is shown, in sentences. Raises UsageError as `check_place`
    does, LcmError without faiss for an approximate index.
    """
    check_place(folder, force=force)
    if approximate:
        graph.require_faiss()
    make_folder(folder.absolute().parent)
    draft = Path(tempfile.mkdtemp(dir=folder.absolute().parent, prefix=f".{folder.name}."))
    try:
        writer = _Writer(draft, info)
        with start("indexing (sentences)", None) as progress:
            for block in blocks(documents):
                progress(writer.add(block))
        manifest = writer.finish()
        if approximate:
            with start("linking (sentences)", manifest.rows) as progress:
                manifest = _with_graph(draft, manifest, progress)
        (draft / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1) + "\n", "utf-8")
        draft.chmod(0o777 & ~umask())
        replace_folder(draft, folder.absolute())
    except OSError as error:
        raise disk_error(error, folder) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return manifest


class _Writer:
    """Writes the shards and the sentences of an index side by side."""

    def __init__(self, folder: Path, info: SpaceInfo) -> None:
        self._folder = folder
        self._info = info
        self._documents = 0
        self._shards: dict[str, int] = {}  # rows of each file
        self._sentences = pa.ipc.new_file(str(folder / SENTENCES), _LAYOUT)

    def add(self, block: list[Document]) -> int:
        """Write the sentences of some documents and return their number."""
        concepts = np.concatenate([concepts_of(document) for document in block], dtype=np.float32)
        name = next(reversed(self._shards), "")
        if not name or self._shards[name] >= SHARD_ROWS:
            name = f"vectors-{len(self._shards):05d}.f16"
            self._shards[name] = 0
        with (self._folder / name).open("ab") as file:
            file.write(unit_length(concepts).astype(DTYPE).tobytes())
        self._shards[name] += len(concepts)
        self._documents += len(block)
        self._sentences.write_batch(_batch(block, np.linalg.norm(concepts, axis=1)))
        return len(concepts)

    def finish(self) -> Manifest:
        """Close the files; return the manifest, without a graph."""
        from lcm_cli.version import __version__

        self._sentences.close()
        rows = sum(self._shards.values())
        shards = [_part(self._folder / name, count) for name, count in self._shards.items()]
        sentences = _part(self._folder / SENTENCES, rows)
        about = KIND, VERSION, __version__, self._info, "float16"
        return Manifest(*about, rows, self._documents, shards, sentences)


class Index:
    """An index whose files are mapped into memory."""

    def __init__(self, folder: Path) -> None:
        """Raise NotFoundError if there is no index, IntegrityError if it is damaged."""
        self.folder = folder
        self.manifest = _read_manifest(folder)
        self.space = self.manifest.space
        with intact(str(folder / SENTENCES)):
            self._file = pa.ipc.open_file(pa.memory_map(str(folder / SENTENCES)))
            batches = range(self._file.num_record_batches)
            counts = [self._file.get_batch(number).num_rows for number in batches]
        self._starts = np.cumsum([0, *counts])
        if self._file.schema != _LAYOUT or self._starts[-1] != len(self):
            raise _damaged(
                folder / SENTENCES, f"it does not hold {len(self)} sentences of an index"
            )
        self._shards = [self._mapped(shard) for shard in self.manifest.shards]
        self._shard_starts = np.cumsum([0, *(len(shard) for shard in self._shards)])

    def __len__(self) -> int:
        return self.manifest.rows

    @property
    def has_graph(self) -> bool:
        """Whether the index can be searched approximately."""
        return self.manifest.graph is not None

    def search(
        self, queries_QD: Vectors, k: int, *, exact: bool = True, progress: Progress = ignore
    ) -> list[list[Hit]]:
        """Return the `k` sentences nearest to each query, best first; fewer if there are fewer.

        Without `exact`, the graph proposes candidates. `progress` receives the number of sentences
        searched; with the graph, all of them at once. Raises LcmError if the graph needs a
        package that is not installed.
        """
        if exact:
            nearest = Nearest(queries_QD, k)
            for block in self.vectors():
                nearest.add(block)
                progress(len(block))
            found = list(zip(*nearest.found(), strict=True))
        else:
            unit_QD = unit_length(np.asarray(queries_QD, dtype=np.float32))
            places = self._graph().candidates(unit_QD, k)
            found = rescored(queries_QD, ((self._rows(each), each) for each in places), k)
            progress(len(self))
        return [
            [
                self._hit(float(score), int(place))
                for score, place in zip(*row, strict=True)
                if place >= 0
            ]
            for row in found
        ]

    def vectors(self) -> Iterator[Vectors]:
        """Yield the matrix in blocks of rows (N, D) float16."""
        for shard in self._shards:
            for start in range(0, len(shard), STEP):
                yield shard[start : start + STEP]

    def _graph(self) -> graph.Graph:
        assert self.manifest.graph is not None
        path = self.folder / self.manifest.graph.file
        return graph.Graph(path, len(self), self.space.dim)

    def _rows(self, positions: np.ndarray) -> Vectors:
        return np.stack([self._row(int(position)) for position in positions])

    def _row(self, position: int) -> Vectors:
        shard = int(np.searchsorted(self._shard_starts, position, side="right")) - 1
        row: Vectors = self._shards[shard][position - self._shard_starts[shard]]
        return row

    def _hit(self, score: float, position: int) -> Hit:
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        with intact(str(self.folder / SENTENCES)):
            batch = self._file.get_batch(number)
        at = position - int(self._starts[number])
        row = {name: batch.column(name)[at].as_py() for name in _LAYOUT.names}
        concept = self._row(position).astype(np.float32) * np.float32(row["norm"])
        text = row["text"] or ""
        return Hit(score, row["document"], row["sentence"], row["lang"], text, concept)

    def _mapped(self, shard: Part) -> Vectors:
        return _matrix(self.folder / shard.file, shard.rows, self.space.dim)


def _with_graph(folder: Path, manifest: Manifest, progress: Progress) -> Manifest:
    shards = (
        _matrix(folder / shard.file, shard.rows, manifest.space.dim) for shard in manifest.shards
    )
    graph.build(shards, manifest.space.dim, folder / GRAPH, progress)
    return replace(manifest, graph=_part(folder / GRAPH, manifest.rows))


def _matrix(path: Path, rows: int, width: int) -> Vectors:
    # Copy on write, since torch warns about read-only arrays.
    matrix: Vectors = np.memmap(path, DTYPE, "c", shape=(rows, width))
    return matrix


def _read_manifest(folder: Path) -> Manifest:
    """Return the manifest, after comparing it with the sizes of the files."""
    path = folder / MANIFEST
    try:
        data = json_value(path.read_bytes(), "it")
    except FileNotFoundError as error:
        raise not_there(path) from error
    except IntegrityError as error:
        raise _damaged(path, error.message) from error
    if not isinstance(data, dict) or data.get("version") != VERSION:
        found = data.get("version") if isinstance(data, dict) else None
        raise IntegrityError(
            f"{path} has version {found!r}, but this lcm reads version {VERSION}", "update lcm"
        )
    manifest = parse(Manifest, data, str(path))
    width = manifest.space.dim * DTYPE.itemsize
    if manifest.dtype != "float16" or manifest.rows < 1 or width < 1:
        what = f"{manifest.rows} rows of {manifest.space.dim} numbers in {manifest.dtype}"
        raise _damaged(path, f"it lists {what}")
    if any(shard.bytes != shard.rows * width for shard in manifest.shards) or (
        sum(shard.rows for shard in manifest.shards) != manifest.rows
    ):
        raise _damaged(path, "its shards do not add up to its rows")
    for part in (*manifest.shards, manifest.sentences, manifest.graph):
        if part is not None:
            _check_size(folder, part)
    return manifest


def _check_size(folder: Path, part: Part) -> None:
    file = folder / part.file
    if Path(part.file).name != part.file or not file.is_file():
        raise _damaged(folder, f"it lacks {part.file}, which its {MANIFEST} lists")
    if file.stat().st_size != part.bytes:
        size = file.stat().st_size
        raise _damaged(file, f"it has {size} bytes, but {MANIFEST} lists {part.bytes}")


def _damaged(path: Path, reason: str) -> IntegrityError:
    return IntegrityError(
        f"{path} is damaged: {reason}",
        "copy the index again, or rebuild it: lcm index CONCEPTS -o NAME --force",
    )


def _batch(block: list[Document], norms: np.ndarray) -> pa.RecordBatch:
    rows = [
        (document.id, number + 1, document.lang, text)
        for document in block
        for number, text in enumerate(document.sentences or [None] * len(concepts_of(document)))
    ]
    columns = [*zip(*rows, strict=True), norms.astype(np.float32)]
    arrays = [pa.array(c, field.type) for c, field in zip(columns, _LAYOUT, strict=True)]
    return pa.record_batch(arrays, schema=_LAYOUT)


def _part(path: Path, rows: int) -> Part:
    return Part(path.name, rows, path.stat().st_size, sha256(path))
