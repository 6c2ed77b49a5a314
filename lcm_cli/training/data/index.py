"""The index of a data set in Parquet files: where its documents are, and how long.

Scanning reads the sentences to count them (a twentieth of the size of the concepts); the concepts
themselves are read one row group at a time, when training needs them.

Shapes: R rows of a row group, one document each.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lcm_cli.documents.arrow import (
    CONCEPTS,
    PLAN_CONCEPTS,
    PLANS,
    SENTENCES,
    TARGET_CONCEPTS,
    TARGET_SENTENCES,
    about,
    intact,
    read_space_info,
)
from lcm_cli.documents.document import SpaceInfo
from lcm_cli.documents.kinds import Source
from lcm_cli.documents.sources import expand_paths
from lcm_cli.errors import IntegrityError, LcmError, NotFoundError, UsageError
from lcm_cli.text.paragraphs import count, order
from lcm_cli.training.data.breaks import insert_breaks
from lcm_cli.training.data.columns import Column, Part, is_list
from lcm_cli.training.data.filters import Filter
from lcm_cli.training.data.row_groups import (
    AGAIN,
    PARAGRAPHS,
    ConceptLists,
    Ints,
    RowGroup,
    Sentences,
    list_lengths,
    read_row_group,
    whole,
)
from lcm_cli.training.data_options import DataSet

SPLIT = "split"
_PARTITION = re.compile(r"split=([^/\\]+)")
_PARTS: tuple[Part, Part] = ("source", "target")


@dataclass(frozen=True)
class Documents:
    """Where documents are and how long they are: arrays with one entry per document."""

    group: Ints  # number of the row group, in the data set
    row: Ints  # in the row group
    length: Ints  # concepts; of a pair, those of the source
    target: Ints  # concepts of a pair's target; 0: not a pair
    woven: Ints  # breaks and plans to be inserted
    planned: NDArray[np.bool_]  # whether the document has plans


def _concatenate(parts: Sequence[Documents]) -> Documents:
    names = vars(parts[0])
    return Documents(
        **{name: np.concatenate([vars(part)[name] for part in parts]) for name in names}
    )


@dataclass(frozen=True)
class DocumentIndex:
    """The index of a data set: its row groups, and the documents in them."""

    groups: list[RowGroup]
    documents: Documents
    columns: Sequence[Column]
    break_sentence: Sentences | None  # ends each paragraph of a plain document
    filtered: int  # documents that the filter excludes
    space: SpaceInfo | None

    def __len__(self) -> int:
        return len(self.documents.row)

    def read(self, number: int, dim: int) -> list[ConceptLists]:
        """Read the concepts of a row group: the source's and, if the file has some, the target's.

        Raises IntegrityError, naming file and row, for missing values, other widths, NaN, infinity,
        and numbers of concepts other than of sentences. Breaks and plans are inserted if wanted.
        """
        group, all_documents = self.groups[number], self.documents
        # Documents are in the order of their row groups.
        where = slice(*np.searchsorted(all_documents.group, [number, number + 1]))
        rows, targets = all_documents.row[where], all_documents.target[where]
        lists = read_row_group(group, group.concepts, dim)
        for each, lengths in zip(lists, (all_documents.length[where], targets), strict=False):
            _check_lengths(group, each, rows, lengths)
        learned = rows[targets == 0], rows[targets > 0]
        lists = [
            self._with_columns(each, group, part, rows, own)
            for each, part, own in zip(lists, _PARTS, learned, strict=False)
        ]
        if self.break_sentence is not None:
            lists[0] = insert_breaks(lists[0], group, learned[0], self.break_sentence, self.columns)
        return lists

    def _with_columns(
        self, lists: ConceptLists, group: RowGroup, part: Part, rows: Ints, learned: Ints
    ) -> ConceptLists:
        values = {
            column.name: column.read(group, part, lists.ends, rows, learned)
            for column in self.columns
        }
        return ConceptLists(Sentences(lists.flat.concepts_SD, values), lists.ends)


def _check_lengths(group: RowGroup, lists: ConceptLists, rows: Ints, expected: Ints) -> None:
    found = np.diff(lists.ends)[rows]
    if (bad := np.flatnonzero(found != expected)).size:
        one = bad[0]
        what = f"{expected[one]} sentences and {found[one]} concepts"
        raise IntegrityError(f"{group.label(rows[one])} has {what}", AGAIN.format(group.path))


def scan(
    data_set: DataSet,
    dim: int,
    condition: str = "",
    break_sentence: Sentences | None = None,
    columns: Sequence[Column] = (),
) -> DocumentIndex:
    """Find the documents of a data set for which `condition` is true.

    With `break_sentence`, plain documents are read with paragraph breaks and, if they have plans,
    with these; all are read with `columns`.

    Raises NotFoundError for a missing path or split, UsageError for files other than Parquet,
    IntegrityError for broken files, concepts of another width or space, or if no document is left.
    """
    groups: list[RowGroup] = []
    parts: list[Documents] = []
    splits: set[str] = set()
    filtered, space = 0, None
    wanted = Filter(condition) if condition else None
    for path in files_of(data_set.path):
        with intact(str(path)):
            partition = _PARTITION.search(str(path.parent))
            own = partition[1] if partition else None
            if own is not None:
                splits.add(own)
            # The folder split=NAME/ names the split of a file, which then need not be read.
            if data_set.split and own not in (None, data_set.split):
                continue
            scanner = _FileScanner(
                path, data_set, dim, wanted, own, break_sentence is not None, columns
            )
            space = _common_space(space, scanner.space, data_set)
            for group in scanner.groups():
                parts.append(scanner.documents(group, len(groups)))
                groups.append(group)
            splits |= scanner.splits
            filtered += scanner.filtered
    if not sum(len(part.row) for part in parts):
        raise _nothing(data_set, splits, filtered)
    documents = _concatenate(parts)
    return DocumentIndex(groups, documents, columns, break_sentence, filtered, space)


class _FileScanner:
    """Finds the documents of one Parquet file.

    `splits` are the values of its column `split`, `filtered` counts the documents that the filter
    excludes; both are complete once all row groups have been scanned.
    """

    def __init__(
        self,
        path: Path,
        data_set: DataSet,
        dim: int,
        wanted: Filter | None,
        partition: str | None,
        weave: bool,
        columns: Sequence[Column],
    ) -> None:
        self._path, self._data_set, self._wanted = path, data_set, wanted
        self._file = pq.ParquetFile(path, page_checksum_verification=True)
        self._layout = self._file.schema_arrow
        self._partition, self._weave, self._columns = partition, weave, columns
        self.splits: set[str] = set()
        self.filtered = 0
        names = self._layout.names
        # No column of sentences is known to belong to a column of concepts that the user names: the
        # concepts themselves are counted then.
        self._concepts = self._column(data_set.concepts, CONCEPTS)
        self._sentences = None if data_set.concepts else _first(SENTENCES, names)
        self._targets = self._column(data_set.target, TARGET_CONCEPTS)
        self._target_sentences = None if data_set.target else _first(TARGET_SENTENCES, names)
        self._paragraphs = PARAGRAPHS if weave and PARAGRAPHS in names else None
        self._plan_concepts = _first(PLAN_CONCEPTS, names) if weave else None
        self._plans = _first(PLANS, names) if self._plan_concepts else None
        if self._concepts is None:
            raise IntegrityError(
                f"{path} has no column of concepts; it has {', '.join(names)}",
                f"embed it: lcm embed {path} -o DATASET/, or name the column: concepts = ...",
            )
        for name in filter(None, (self._concepts, self._targets, self._plan_concepts)):
            _check_type(self._layout.field(name).type, str(path), name, dim)
        self.space = read_space_info(about(self._layout.metadata), str(path))
        # Filters may use the usual names, whatever these columns are called here.
        self._aliases = {SENTENCES[0]: self._sentences, CONCEPTS[0]: self._concepts}
        if wanted is not None:
            known = dict.fromkeys([*names, *(key for key, name in self._aliases.items() if name)])
            wanted.check([*known, *([SPLIT] if partition else [])], str(path))

    def groups(self) -> Iterator[RowGroup]:
        """Yield the row groups of the file."""
        first, names = 0, tuple(self._layout.names)
        concepts = tuple(filter(None, (self._concepts, self._targets)))
        for number in range(self._file.num_row_groups):
            yield RowGroup(self._path, number, first, names, concepts, self._plan_concepts or "")
            first += self._file.metadata.row_group(number).num_rows

    def documents(self, group: RowGroup, number: int) -> Documents:
        """Find the documents of a row group, which has this number in the data set."""
        table = self._read(group.number)
        rows = self._chosen(table)
        lengths = self._lengths(table, self._sentences, self._concepts, group.number)[rows]
        if (bad := np.flatnonzero(lengths <= 0)).size:
            what = f"{group.label(rows[bad[0]])} has no concepts"
            raise IntegrityError(what, AGAIN.format(self._path))
        targets = np.zeros(len(rows), np.int64)
        if self._targets is not None:
            found = self._lengths(table, self._target_sentences, self._targets, group.number)
            targets = np.maximum(found[rows], 0)
        # The learned concepts: all of a plain document, of a pair the target.
        plain = np.where(targets, 0, lengths)
        for column in self._columns:
            column.check(table, group, rows, (plain, targets))
        woven, planned = self._woven(table, group, rows, plain)
        return Documents(np.full(len(rows), number), rows, lengths, targets, woven, planned)

    def _chosen(self, table: pa.Table) -> Ints:
        """Return the rows of the split for which the filter is true."""
        chosen = np.ones(len(table), dtype=bool)
        splits = _strings(table[SPLIT]) if SPLIT in table.column_names else None
        if splits is not None:
            self.splits |= set(pc.unique(splits).drop_null().to_pylist())
        if self._data_set.split and self._partition is None:
            same = [] if splits is None else pc.equal(splits, self._data_set.split).fill_null(False)
            chosen = np.asarray(same, dtype=bool) if len(same) else np.zeros_like(chosen)
        of_split = int(chosen.sum())
        if self._wanted is not None:
            chosen &= self._wanted.mask(self._named(table, len(table)), len(table))
        rows = np.flatnonzero(chosen)
        self.filtered += of_split - len(rows)
        return rows

    def _woven(
        self, table: pa.Table, group: RowGroup, rows: Ints, lengths: Ints
    ) -> tuple[Ints, NDArray[np.bool_]]:
        """Return the number of breaks and plans to insert per document, and whether it has plans.

        `lengths` is 0 for documents that get none.
        """
        woven, planned = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.bool_)
        if not self._weave:
            return woven, planned
        plans = np.zeros(len(table), np.int64)
        if self._plan_concepts is not None:
            plans = self._lengths(table, self._plans, self._plan_concepts, group.number)
        for number, row in enumerate(rows.tolist()):
            if not (length := int(lengths[number])):
                continue
            paragraphs = table[PARAGRAPHS][row].as_py() if self._paragraphs else None
            given, own = max(int(plans[row]), 0), paragraphs or []
            if own and len(own) != length:
                what = f"{length} sentences and {len(own)} paragraph numbers"
                raise IntegrityError(f"{group.label(row)} has {what}", AGAIN.format(self._path))
            if given and given != count(own):
                what = f"{given} plans and {count(own)} paragraphs"
                raise IntegrityError(f"{group.label(row)} has {what}", AGAIN.format(self._path))
            # Counted by arranging the document as `insert_breaks` will.
            woven[number] = len(order(own, length, given)) - length
            planned[number] = given > 0
        return woven, planned

    def _column(self, name: str, usual: Sequence[str]) -> str | None:
        """Return the column called `name` or, without a name, the first of the `usual` ones."""
        names = self._layout.names
        if not name:
            return _first(usual, names)
        if name not in names:
            raise IntegrityError(f"{self._path} has no column {name!r}; it has {', '.join(names)}")
        return name

    def _read(self, number: int) -> pa.Table:
        """Read the columns needed for scanning; concepts only without sentences to count."""
        names = {self._sentences or self._concepts, SPLIT}
        if self._targets is not None:
            names.add(self._target_sentences or self._targets)
        names |= {self._paragraphs, self._plans or self._plan_concepts}
        names |= {name for column in self._columns for name in column.checked}
        if self._wanted is not None:
            names |= {self._aliases.get(name) or name for name in self._wanted.columns}
        present = [name for name in self._layout.names if name in names]
        return self._file.read_row_group(number, present, use_threads=False)

    def _lengths(
        self, table: pa.Table, sentences: str | None, concepts: str | None, number: int
    ) -> Ints:
        """Return the number of sentences per row, or of concepts without sentences, (R,)."""
        found = list_lengths(table[sentences or concepts])
        # Rows without sentences (null) may still have concepts: read these to count them.
        if sentences is not None and (found < 0).any():
            assert concepts is not None
            counted = self._file.read_row_group(number, [concepts], use_threads=False)
            found = np.where(found < 0, list_lengths(counted[concepts]), found)
        return found

    def _named(self, table: pa.Table, count: int) -> dict[str, pa.Array]:
        """Return the columns under the names that the filter uses."""
        assert self._wanted is not None
        columns = {}
        for name in self._wanted.columns:
            held = self._aliases.get(name) or name
            if held in table.column_names:
                columns[name] = whole(table[held])
            else:  # the split is named by the folder, not by a column
                columns[name] = pa.array([self._partition] * count)
        return columns


def files_of(path: str) -> list[Path]:
    """Return the Parquet files of a data set's path.

    Raises NotFoundError if there are none, UsageError for files other than Parquet.
    """

    def fail(error: LcmError) -> None:
        if isinstance(error, NotFoundError) and not error.hint:
            error.hint = f"embed text to make the data set: lcm embed TEXT -o {path}"
        raise error

    sources = list(expand_paths([path], fail))
    return [_parquet(source) for source in sources]


def _parquet(source: Source) -> Path:
    if source.kind != "parquet" or source.path is None:
        raise UsageError(
            f"{source.name} is not Parquet, which training needs",
            f"embed it to make a data set: lcm embed {source.name} -o DATASET/",
        )
    return source.path


def _common_space(
    known: SpaceInfo | None, own: SpaceInfo | None, data_set: DataSet
) -> SpaceInfo | None:
    """Return the space that the files name; raises IntegrityError if they disagree."""
    if known is not None and own is not None:
        check_same_space(known, own, data_set.path)
    return known or own


def check_same_space(one: SpaceInfo, other: SpaceInfo, where: str) -> None:
    """Raise IntegrityError if the concepts of two files are of different spaces."""
    if one.fingerprint and other.fingerprint and one.fingerprint != other.fingerprint:
        raise IntegrityError(
            f"{where}: some concepts are of {one.name} ({one.fingerprint[:12]}), others of"
            f" {other.name} ({other.fingerprint[:12]})",
            "embed the text of one of them again, with the other's space",
        )


def _nothing(data_set: DataSet, splits: set[str], filtered: int) -> LcmError:
    if data_set.split and data_set.split not in splits:
        there = ", ".join(sorted(splits)) or "none"
        return NotFoundError(
            f"{data_set.path} has no split {data_set.split!r}; its splits: {there}",
            "a document's split is named by the column `split`, or by a folder split=NAME/",
        )
    if filtered:
        return IntegrityError(
            f"{data_set.path}: the filter excludes all {filtered} documents",
            "check [data] filter",
        )
    return IntegrityError(f"{data_set.path} contains no documents")


def _check_type(kind: pa.DataType, path: str, name: str, dim: int) -> None:
    inner = kind.value_type if is_list(kind) else None
    if inner is None or not is_list(inner) or not pa.types.is_floating(inner.value_type):
        raise IntegrityError(
            f"{path}: the column {name!r} has the type {kind}, not lists of vectors",
            "docs/data.md lists the columns and their types",
        )
    if pa.types.is_fixed_size_list(inner) and inner.list_size != dim:
        raise IntegrityError(
            f"{path}: its concepts have {inner.list_size} dimensions, the model's {dim}",
            "embed the text in the model's space",
        )


def _first(names: Iterable[str], among: Sequence[str]) -> str | None:
    return next((name for name in names if name in among), None)


def _strings(column: pa.ChunkedArray) -> pa.Array:
    return pc.cast(whole(column), pa.string())
