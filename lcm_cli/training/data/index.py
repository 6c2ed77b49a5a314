"""Parquet files of concepts as training sees them: what is in each row.

Looking reads the sentences (a twentieth of the size of the concepts) to learn how long documents
are; the concepts themselves are read a row group at a time, when training comes to them: groups.py.

Shapes: R rows, D concept dim.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lcm_cli.documents.arrow import (
    CONCEPTS,
    FRAGILITY,
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
from lcm_cli.training.data.filters import Filter
from lcm_cli.training.data.row_groups import (
    AGAIN,
    PARAGRAPHS,
    SCORED,
    Break,
    Group,
    Ints,
    Rows,
    label,
    list_lengths,
    load,
    weave,
    whole,
    with_fragility,
    with_tokens,
)
from lcm_cli.training.data.token_ids import Tokenize
from lcm_cli.training.data_options import DataSet

SPLIT = "split"
_PARTITION = re.compile(r"split=([^/\\]+)")


@dataclass
class Index:
    """The documents of one entry of the recipe: where each is, and how long."""

    entry: DataSet
    groups: list[Group] = field(default_factory=list)
    group: Ints = field(default_factory=lambda: np.zeros(0, np.int64))  # of each document
    row: Ints = field(default_factory=lambda: np.zeros(0, np.int64))  # in its group
    length: Ints = field(default_factory=lambda: np.zeros(0, np.int64))  # concepts
    target: Ints = field(default_factory=lambda: np.zeros(0, np.int64))  # concepts; 0: no target
    woven: Ints = field(default_factory=lambda: np.zeros(0, np.int64))  # breaks and plans
    planned: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    closing: Break | None = None  # comes after each paragraph
    tokenize: Tokenize | None = None  # where what concepts say is wanted
    fragility: bool = False  # whether it is wanted
    filtered: int = 0  # rows that the filter left out
    space: SpaceInfo | None = None

    def __len__(self) -> int:
        return len(self.row)

    def read(self, group: int, dim: int) -> list[Rows]:
        """Read the concepts of a row group: the source's, and the target's if the file has some.

        Raises IntegrityError, naming file and row, for holes, other widths, NaN, infinity, and
        concepts that are not as many as the sentences. Breaks and plans are in where wanted.
        """
        where = self.groups[group]
        first, last = np.searchsorted(self.group, [group, group + 1])
        read = load(where, dim)
        for rows, lengths in zip(read, (self.length, self.target), strict=False):
            expected, own = lengths[first:last], self.row[first:last]
            found = np.diff(rows.ends)[own]
            if (bad := np.flatnonzero(found != expected)).size:
                one = bad[0]
                raise IntegrityError(
                    f"{label(where, own[one])} has {expected[one]} sentences"
                    f" and {found[one]} concepts",
                    AGAIN.format(where.path),
                )
        if self.tokenize is not None:
            own = self.row[first:last].tolist()
            columns = (SENTENCES, TARGET_SENTENCES)
            read = [
                with_tokens(rows, where, names, own, self.tokenize)
                for rows, names in zip(read, columns, strict=False)
            ]
        if self.fragility:
            targets = self.target[first:last]
            # Of pairs the target alone is learned.
            learned = [self.row[first:last][mask].tolist() for mask in (targets == 0, targets > 0)]
            read = [
                with_fragility(rows, where, name, own)
                for rows, name, own in zip(read, FRAGILITY, learned, strict=False)
            ]
        if self.closing is not None:
            plain = self.row[first:last][self.target[first:last] == 0]
            read[0] = weave(read[0], where, plain, self.closing, self.tokenize)
        return read


def look(
    entry: DataSet,
    dim: int,
    condition: str = "",
    closing: Break | None = None,
    tokenize: Tokenize | None = None,
    fragility: bool = False,
) -> Index:
    """Find the documents of `entry` for which `condition` is true.

    With `closing` plain documents are read with breaks and, where they have some, with plans; with
    `tokenize` all are read with what they say, with `fragility` with the score of each concept.

    Raises NotFoundError for a missing path or split, UsageError for what is not Parquet,
    IntegrityError for broken files, concepts of another width or space, or if nothing is left.
    """
    index = Index(entry, closing=closing, tokenize=tokenize, fragility=fragility)
    parts, splits = [], set()
    wanted = Filter(condition) if condition else None
    for path in files_of(entry.path):
        with intact(str(path)):
            partition = _PARTITION.search(str(path.parent))
            own = partition[1] if partition else None
            if own is not None:
                splits.add(own)
            if entry.split and own not in (None, entry.split):
                continue
            file = _File(path, entry, dim, wanted, own, closing is not None, fragility)
            _agree(index, file)
            for part in file.parts(len(index.groups)):
                splits |= part.splits
                parts.append(part)
                index.groups.append(part.where)
    _join(index, parts)
    if not len(index):
        raise _nothing(entry, splits, index.filtered)
    return index


@dataclass(frozen=True)
class _Part:
    """What was found out about a row group."""

    where: Group
    group: int
    rows: Ints  # that count
    lengths: Ints
    targets: Ints
    woven: Ints
    planned: NDArray[np.bool_]
    filtered: int
    splits: set[str]


class _File:
    """A Parquet file that is looked through."""

    def __init__(
        self,
        path: Path,
        entry: DataSet,
        dim: int,
        wanted: Filter | None,
        partition: str | None,
        weave: bool,
        fragility: bool,
    ) -> None:
        self._path, self._entry, self._wanted = path, entry, wanted
        self._file = pq.ParquetFile(path, page_checksum_verification=True)
        self._layout = self._file.schema_arrow
        self._partition = partition
        names = self._layout.names
        self._concepts = self._column(entry.concepts, CONCEPTS)
        self._sentences = None if entry.concepts else _first(SENTENCES, names)
        self._targets = self._column(entry.target, TARGET_CONCEPTS, needed=bool(entry.target))
        self._target_sentences = None if entry.target else _first(TARGET_SENTENCES, names)
        self._paragraphs = PARAGRAPHS if weave and PARAGRAPHS in names else None
        self._plan_concepts = _first(PLAN_CONCEPTS, names) if weave else None
        self._plans = _first(PLANS, names) if self._plan_concepts else None
        self._weave, self._fragility = weave, fragility
        if self._concepts is None:
            raise IntegrityError(
                f"{path} has no column of concepts; it has {', '.join(names)}",
                f"embed it: lcm embed {path} -o DATASET/, or name the column: concepts = ...",
            )
        for name in filter(None, (self._concepts, self._targets, self._plan_concepts)):
            _check_type(self._layout.field(name).type, str(path), name, dim)
        self.space = read_space_info(about(self._layout.metadata), str(path))
        self._aliases = {SENTENCES[0]: self._sentences, CONCEPTS[0]: self._concepts}
        if wanted is not None:
            known = dict.fromkeys([*names, *(key for key, name in self._aliases.items() if name)])
            wanted.check([*known, *([SPLIT] if partition else [])], str(path))

    def parts(self, groups: int) -> Iterable[_Part]:
        """Yield what is in each row group; `groups` were found before."""
        first = 0
        for number in range(self._file.num_row_groups):
            count = self._file.metadata.row_group(number).num_rows
            columns = tuple(filter(None, (self._concepts, self._targets)))
            woven = bool(self._paragraphs), self._plan_concepts or ""
            where = Group(self._path, number, first, columns, *woven)
            yield self._part(where, groups + number, count)
            first += count

    def _part(self, where: Group, group: int, count: int) -> _Part:
        table = self._read(where.number)
        splits = _strings(table[SPLIT]) if SPLIT in table.column_names else None
        chosen = np.ones(count, dtype=bool)
        if self._entry.split and self._partition is None:
            same = [] if splits is None else pc.equal(splits, self._entry.split).fill_null(False)
            chosen = np.asarray(same, dtype=bool) if len(same) else np.zeros(count, dtype=bool)
        of_split = int(chosen.sum())
        if self._wanted is not None:
            chosen &= self._wanted.mask(self._named(table, count), count)
        rows = np.flatnonzero(chosen)
        lengths = self._lengths(table, self._sentences, self._concepts, where.number)[rows]
        if (bad := np.flatnonzero(lengths <= 0)).size:
            what = f"{label(where, rows[bad[0]])} has no concepts"
            raise IntegrityError(what, AGAIN.format(self._path))
        targets = np.zeros(len(rows), np.int64)
        if self._targets is not None:
            found = self._lengths(table, self._target_sentences, self._targets, where.number)
            targets = np.maximum(found[rows], 0)
        if self._fragility:
            own, theirs = FRAGILITY
            self._check_scores(table, where, own, rows, np.where(targets, 0, lengths))
            self._check_scores(table, where, theirs, rows, targets)
        woven, planned = self._woven(table, where, rows, np.where(targets, 0, lengths))
        values = set() if splits is None else set(pc.unique(splits).drop_null().to_pylist())
        left_out = of_split - len(rows)
        return _Part(where, group, rows, lengths, targets, woven, planned, left_out, values)

    def _check_scores(
        self, table: pa.Table, where: Group, name: str, rows: Ints, counts: Ints
    ) -> None:
        """Raise IntegrityError unless each of the `rows` has as many scores as `counts` says.

        0 is a row that needs none.
        """
        if not counts.any():
            return
        if name not in table.column_names:
            names = ", ".join(self._layout.names)
            what = f"no column {name!r}, by which the loss is to be weighed; it has {names}"
            raise IntegrityError(f"{self._path} has {what}", SCORED)
        kind = table[name].type
        if not _is_list(kind) or not pa.types.is_floating(kind.value_type):
            what = f"the column {name!r} has the type {kind}, not lists of numbers"
            raise IntegrityError(f"{self._path}: {what}", SCORED)
        found = np.maximum(list_lengths(table[name]), 0)[rows]
        if (bad := np.flatnonzero((counts > 0) & (found != counts))).size:
            one = bad[0]
            what = f"{found[one]} values of {name} for {counts[one]} sentences"
            raise IntegrityError(f"{label(where, rows[one])} has {what}", SCORED)

    def _woven(
        self, table: pa.Table, where: Group, rows: Ints, lengths: Ints
    ) -> tuple[Ints, NDArray[np.bool_]]:
        """Return how many breaks and plans come into each row, and whether it has plans.

        `lengths` is 0 for rows that are left as they are.
        """
        woven, planned = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.bool_)
        if not self._weave:
            return woven, planned
        plans = np.zeros(len(table), np.int64)
        if self._plan_concepts is not None:
            plans = self._lengths(table, self._plans, self._plan_concepts, where.number)
        for number, row in enumerate(rows.tolist()):
            if not (length := int(lengths[number])):
                continue
            paragraphs = table[PARAGRAPHS][row].as_py() if self._paragraphs else None
            given, own = max(int(plans[row]), 0), paragraphs or []
            if own and len(own) != length:
                what = f"{length} sentences and {len(own)} paragraph numbers"
                raise IntegrityError(f"{label(where, row)} has {what}", AGAIN.format(self._path))
            if given and given != count(own):
                what = f"{given} plans and {count(own)} paragraphs"
                raise IntegrityError(f"{label(where, row)} has {what}", AGAIN.format(self._path))
            woven[number] = len(order(own, length, given)) - length
            planned[number] = given > 0
        return woven, planned

    def _column(self, name: str, usual: Sequence[str], needed: bool = True) -> str | None:
        """Return the column called `name`, else the first of the `usual` ones."""
        names = self._layout.names
        if not name:
            return _first(usual, names)
        if name not in names and needed:
            raise IntegrityError(f"{self._path} has no column {name!r}; it has {', '.join(names)}")
        return name

    def _read(self, number: int) -> pa.Table:
        """Read what tells of the rows, without the concepts if the sentences can tell."""
        names = {self._sentences or self._concepts, SPLIT}
        if self._targets is not None:
            names.add(self._target_sentences or self._targets)
        names |= {self._paragraphs, self._plans or self._plan_concepts}
        names |= {*FRAGILITY} if self._fragility else set()
        if self._wanted is not None:
            names |= {self._aliases.get(name) or name for name in self._wanted.columns}
        present = [name for name in self._layout.names if name in names]
        return self._file.read_row_group(number, present, use_threads=False)

    def _lengths(
        self, table: pa.Table, sentences: str | None, concepts: str | None, number: int
    ) -> Ints:
        """Return how many sentences each row has, or concepts where it has no sentences, (R,)."""
        found = list_lengths(table[sentences or concepts])
        if sentences is not None and (found < 0).any():
            assert concepts is not None
            counted = self._file.read_row_group(number, [concepts], use_threads=False)
            found = np.where(found < 0, list_lengths(counted[concepts]), found)
        return found

    def _named(self, table: pa.Table, count: int) -> dict[str, pa.Array]:
        """Return the columns as the filter names them."""
        assert self._wanted is not None
        columns = {}
        for name in self._wanted.columns:
            held = self._aliases.get(name) or name
            if held in table.column_names:
                columns[name] = whole(table[held])
            else:  # only the partition is not a column
                columns[name] = pa.array([self._partition] * count)
        return columns


def files_of(path: str) -> list[Path]:
    """Return the Parquet files that an entry's path stands for.

    Raises NotFoundError if there are none, UsageError for what is not Parquet.
    """

    def fail(error: LcmError) -> None:
        if isinstance(error, NotFoundError) and not error.hint:
            error.hint = f"make a data set of text there: lcm embed TEXT -o {path}"
        raise error

    sources = list(expand_paths([path], fail))
    return [_parquet(source) for source in sources]


def _parquet(source: Source) -> Path:
    if source.kind != "parquet" or source.path is None:
        raise UsageError(
            f"{source.name} is not Parquet, which training reads",
            f"make a data set of it: lcm embed {source.name} -o DATASET/",
        )
    return source.path


def _agree(index: Index, file: _File) -> None:
    """Take over what the file says of its space, which all files must say alike."""
    if index.space is not None and file.space is not None:
        check_same_space(index.space, file.space, index.entry.path)
    index.space = index.space or file.space


def check_same_space(one: SpaceInfo, other: SpaceInfo, where: str) -> None:
    """Raise IntegrityError if concepts of two files are of two spaces."""
    if one.fingerprint and other.fingerprint and one.fingerprint != other.fingerprint:
        raise IntegrityError(
            f"{where}: some concepts are of {one.name} ({one.fingerprint[:12]}), some of"
            f" {other.name} ({other.fingerprint[:12]})",
            "embed the text of one of them again",
        )


def _join(index: Index, parts: list[_Part]) -> None:
    if parts:
        counts = [len(part.rows) for part in parts]
        index.group = np.repeat([part.group for part in parts], counts)
        index.row = np.concatenate([part.rows for part in parts])
        index.length = np.concatenate([part.lengths for part in parts])
        index.target = np.concatenate([part.targets for part in parts])
        index.woven = np.concatenate([part.woven for part in parts])
        index.planned = np.concatenate([part.planned for part in parts])
        index.filtered = sum(part.filtered for part in parts)


def _nothing(entry: DataSet, splits: set[str], filtered: int) -> LcmError:
    if entry.split and entry.split not in splits:
        there = ", ".join(sorted(splits)) or "none"
        return NotFoundError(
            f"{entry.path} has no split {entry.split!r}; its splits: {there}",
            "the column `split`, or a folder split=NAME/, says of which split a document is",
        )
    if filtered:
        return IntegrityError(
            f"{entry.path}: the filter leaves none of {filtered} documents", "check [data] filter"
        )
    return IntegrityError(f"{entry.path} has no documents in it")


def _check_type(kind: pa.DataType, path: str, name: str, dim: int) -> None:
    inner = kind.value_type if _is_list(kind) else None
    if inner is None or not _is_list(inner) or not pa.types.is_floating(inner.value_type):
        raise IntegrityError(
            f"{path}: the column {name!r} has the type {kind}, not lists of vectors",
            "docs/data.md lists the columns and their types",
        )
    if pa.types.is_fixed_size_list(inner) and inner.list_size != dim:
        raise IntegrityError(
            f"{path}: its concepts have {inner.list_size} dimensions, and the model {dim}",
            "embed the text in the model's space",
        )


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _first(names: Iterable[str], among: Sequence[str]) -> str | None:
    return next((name for name in names if name in among), None)


def _strings(column: pa.ChunkedArray) -> pa.Array:
    return pc.cast(whole(column), pa.string())
