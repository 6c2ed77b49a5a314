"""Row groups of Parquet files, and the concepts read from them.

Shapes: R documents of the row group, N concepts of all of them, S concepts of one, D concept dim.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lcm_cli.documents.arrow import intact
from lcm_cli.documents.checks import finite_rows
from lcm_cli.documents.document import Concepts
from lcm_cli.errors import IntegrityError

Ints = NDArray[np.int64]
Tokens = NDArray[np.int32]  # token ids of a sentence: [language] x </s>
Values = NDArray[Any] | list[Tokens]  # of a column: one per concept

PARAGRAPHS = "paragraphs"
AGAIN = "lcm inspect {} lists every such document; embed its sentences again"


@dataclass(frozen=True)
class RowGroup:
    """A row group of a Parquet file: one document per row."""

    path: Path
    number: int  # in the file
    first: int  # number of its first row in the file
    names: Sequence[str]  # all columns of the file
    concepts: tuple[str, ...]  # columns with concepts: the source's and, if present, the target's
    plans: str = ""  # column with the concepts of the plans, if they are wanted and present

    def read(self, names: Sequence[str]) -> pa.Table:
        """Read some columns. Raises IntegrityError for a damaged file."""
        with intact(str(self.path)):
            file = pq.ParquetFile(self.path, page_checksum_verification=True)
            return file.read_row_group(self.number, list(names), use_threads=False)

    def label(self, document: int) -> str:
        """Return the name of a document in error messages."""
        return f"{self.path} row {self.first + document}"


@dataclass(frozen=True, slots=True)
class Sentences:
    """Consecutive sentences: their concepts and, for each column, one value per concept."""

    concepts_SD: Concepts
    columns: Mapping[str, Values] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.concepts_SD)

    def __getitem__(self, where: slice) -> "Sentences":
        columns = {name: values[where] for name, values in self.columns.items()}
        return Sentences(self.concepts_SD[where], columns)

    def take(self, places: Ints) -> "Sentences":
        """Return a copy of the sentences at `places`, in this order."""
        columns = {
            name: [values[place] for place in places.tolist()]
            if isinstance(values, list)
            else values[places]
            for name, values in self.columns.items()
        }
        return Sentences(self.concepts_SD[places], columns)


def join(parts: Sequence[Sentences], dtype: Any = None) -> Sentences:
    """Return a copy of all `parts` in one, with concepts of `dtype`; all have the same columns."""
    concepts_SD = np.concatenate([part.concepts_SD for part in parts], dtype=dtype)
    columns = {name: join_values(parts, name) for name in parts[0].columns}
    return Sentences(concepts_SD, columns)


def join_values(parts: Sequence[Sentences], name: str) -> Values:
    """Return the values that all `parts` have in the column `name`."""
    values: Any = [part.columns[name] for part in parts]
    return list(chain(*values)) if isinstance(values[0], list) else np.concatenate(values)


@dataclass(frozen=True)
class ConceptLists:
    """A list of concepts per document of a row group: document r has flat[ends[r] : ends[r + 1]].

    A row group with sources and targets has two of these.
    """

    flat: Sentences
    ends: Ints  # (R + 1,)

    def document(self, number: int) -> Sentences:
        """Return the sentences of one document, as a view."""
        return self.flat[self.ends[number] : self.ends[number + 1]]

    def only(self, documents: Ints) -> "ConceptLists":
        """Return a copy in which all other documents are empty; numbers stay the same."""
        wanted = np.zeros(len(self.ends) - 1, np.bool_)
        wanted[documents] = True
        counts = np.diff(self.ends)
        places = np.flatnonzero(np.repeat(wanted, counts))
        return ConceptLists(self.flat.take(places), np.cumsum([0, *np.where(wanted, counts, 0)]))


def read_row_group(group: RowGroup, names: Sequence[str], dim: int) -> list[ConceptLists]:
    """Read columns of concepts.

    Raises IntegrityError, naming file and row, for missing values, other widths, NaN and infinity.
    """
    table = group.read(names)
    return [_concept_lists(table[name], group, name, dim) for name in names]


def whole(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as one array, with dictionary encoding undone."""
    array = column.combine_chunks()
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def list_lengths(column: pa.ChunkedArray) -> Ints:
    """Return the length of each row's list, -1 for null, (R,)."""
    lengths = pc.fill_null(pc.list_value_length(whole(column)), -1)
    return np.asarray(lengths, dtype=np.int64)


def _concept_lists(column: pa.ChunkedArray, group: RowGroup, name: str, dim: int) -> ConceptLists:
    array = whole(column)
    ends = np.concatenate([[0], np.cumsum(np.maximum(list_lengths(column), 0))])

    def refuse(bad_N: NDArray[np.bool_], what: str) -> None:
        """Raise IntegrityError for the first concept that is bad."""
        if bad_N.any():
            first = int(np.argmax(bad_N))
            document = int(np.searchsorted(ends, first, side="right")) - 1
            place = f"{what}: number {first - int(ends[document])} of {name}"
            raise IntegrityError(f"{group.label(document)} has {place}", AGAIN.format(group.path))

    vectors = array.flatten()
    if vectors.null_count:
        refuse(np.asarray(vectors.is_null()), "a concept that is missing (null)")
    if not pa.types.is_fixed_size_list(vectors.type):
        lengths = np.asarray(vectors.value_lengths())
        refuse(lengths != dim, f"a concept that does not have {dim} dimensions")
    flat = vectors.flatten()
    if flat.null_count:
        holes: Any = np.asarray(flat.is_null()).reshape(-1, dim).any(axis=1)
        refuse(holes, "a concept with a missing value (null)")
    values: Any = flat.to_numpy(zero_copy_only=False).reshape(-1, dim)
    if values.dtype == np.float64:  # as the official code writes them
        values = values.astype(np.float32)
    refuse(~finite_rows(values), "a concept with NaN or infinite values")
    return ConceptLists(Sentences(values), ends)
