"""Row groups of Parquet files, read whole: concepts, what they say, breaks and plans between them.

Shapes: R rows, N concepts of all rows, D concept dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lcm_cli.documents.arrow import PLANS, intact
from lcm_cli.documents.checks import finite_rows
from lcm_cli.documents.document import Concepts
from lcm_cli.errors import IntegrityError
from lcm_cli.text.paragraphs import order
from lcm_cli.training.data.token_ids import Tokenize, Tokens, read_tokens

Ints = NDArray[np.int64]

PARAGRAPHS = "paragraphs"
SCORED = "make the scores: lcm embed TEXT -o DATASET/ --fragility"
AGAIN = "lcm inspect {} lists every such document; embed its sentences again"


@dataclass(frozen=True)
class Group:
    """One row group of a file."""

    path: Path
    number: int
    first: int  # its first row, in the file
    columns: tuple[str, ...]  # of the concepts: the source's, and the target's if there is one
    paragraphs: bool = False  # whether there is a column of them
    plans: str = ""  # the column of their concepts


@dataclass(frozen=True)
class Rows:
    """Concepts of the rows of a group: row r has `flat[ends[r] : ends[r + 1]]`."""

    flat_ND: Concepts
    ends: Ints  # (R + 1,)
    tokens: list[Tokens] | None = None  # what each concept says, where that is wanted
    woven_N: NDArray[np.bool_] | None = None  # which are breaks or plans, where there are some
    fragility_N: NDArray[np.float32] | None = None  # where it is wanted; NaN: not known

    def row(self, number: int) -> Concepts:
        """Return the concepts of one row, (S, D)."""
        return self.flat_ND[self.place(number)]

    def place(self, number: int) -> slice:
        """Return where the concepts of one row are."""
        return slice(int(self.ends[number]), int(self.ends[number + 1]))

    def said(self, number: int) -> list[Tokens]:
        """Return what the concepts of one row say."""
        assert self.tokens is not None
        return self.tokens[self.ends[number] : self.ends[number + 1]]

    def only(self, rows: Ints) -> "Rows":
        """Return a copy that holds the concepts of some rows; these keep their numbers."""
        wanted = np.zeros(len(self.ends) - 1, np.bool_)
        wanted[rows] = True
        counts = np.diff(self.ends)
        kept_N = np.repeat(wanted, counts)
        cut: dict[str, Any] = {"ends": np.cumsum([0, *np.where(wanted, counts, 0)])}
        for name in {part.name for part in fields(self)} - {"ends"}:
            value = getattr(self, name)
            if isinstance(value, list):
                cut[name] = list(compress(value, kept_N))
            else:
                cut[name] = None if value is None else value[kept_N]
        return Rows(**cut)


@dataclass(frozen=True)
class Break:
    """What comes after each paragraph: its concept (D,) and, where wanted, what that says."""

    concept_D: NDArray[np.float32]
    tokens: Tokens | None = None


def load(group: Group, dim: int) -> list[Rows]:
    """Read the concepts of a row group: the source's, and the target's if there is one.

    Raises IntegrityError, naming file and row, for holes, other widths, NaN and infinity.
    """
    with intact(str(group.path)):
        file = pq.ParquetFile(group.path, page_checksum_verification=True)
        table = file.read_row_group(group.number, list(group.columns), use_threads=False)
        return [_rows(table[name], group, name, dim) for name in group.columns]


def with_tokens(
    rows: Rows, group: Group, names: Sequence[str], own: Sequence[int], tokenize: Tokenize
) -> Rows:
    """Return `rows` with what the concepts of those that are `own` say; see read_tokens."""
    with intact(str(group.path)):
        where = group.path, group.number, names, rows.ends, own
        return replace(rows, tokens=read_tokens(*where, tokenize, partial(label, group)))


def with_fragility(rows: Rows, group: Group, name: str, own: Sequence[int]) -> Rows:
    """Return `rows` with the scores of those that are `own`, as many as these have concepts."""
    if not own:
        return replace(rows, fragility_N=np.full(len(rows.flat_ND), np.nan, np.float32))
    with intact(str(group.path)):
        file = pq.ParquetFile(group.path, page_checksum_verification=True)
        column = file.read_row_group(group.number, [name], use_threads=False)[name]
    ends = np.cumsum([0, *np.maximum(list_lengths(column), 0)])
    flat: Any = whole(column).flatten().to_numpy(zero_copy_only=False)
    scores_N = np.full(len(rows.flat_ND), np.nan, np.float32)
    for row in own:
        scores_N[rows.place(row)] = scores = flat[ends[row] : ends[row + 1]]
        if not np.isfinite(scores).all():
            what = f"a missing, NaN or infinite value in {name}"
            raise IntegrityError(f"{label(group, row)} has {what}", SCORED)
    return replace(rows, fragility_N=scores_N)


def weave(rows: Rows, group: Group, plain: Ints, closing: Break, tokenize: Tokenize | None) -> Rows:
    """Return the rows of a group, those that are `plain` with their breaks and plans."""
    break_D, dim = closing.concept_D, len(closing.concept_D)
    with intact(str(group.path)):
        file = pq.ParquetFile(group.path, page_checksum_verification=True)
        names = [*([PARAGRAPHS] if group.paragraphs else []), *filter(None, [group.plans])]
        table = file.read_row_group(group.number, names, use_threads=False)
    plans = Rows(rows.flat_ND[:0], np.zeros_like(rows.ends))
    if group.plans:
        plans = _rows(table[group.plans], group, group.plans, dim)
        if tokenize is not None:
            plans = with_tokens(plans, group, PLANS, plain.tolist(), tokenize)
    # Behind all sentences stand all plans, and the break behind these.
    flat_ND = np.concatenate([rows.flat_ND, plans.flat_ND, break_D[None]], dtype=rows.flat_ND.dtype)
    numbers, chosen = [], set(plain.tolist())
    for row, (begin, end) in enumerate(zip(rows.ends[:-1], rows.ends[1:], strict=True)):
        own = np.arange(begin, end)
        if row in chosen:
            of_plans = np.arange(*plans.ends[row : row + 2]) + len(rows.flat_ND)
            paragraphs = table[PARAGRAPHS][row].as_py() if group.paragraphs else None
            own = np.concatenate([own, of_plans, [len(flat_ND) - 1]])
            own = own[order(paragraphs or [], end - begin, len(of_plans))]
        numbers.append(own)
    ends = np.cumsum([0, *map(len, numbers)])
    places = np.concatenate(numbers)
    woven = Rows(flat_ND[places], ends, woven_N=places >= len(rows.flat_ND))
    if rows.fragility_N is not None:
        unknown = np.full(len(flat_ND) - len(rows.flat_ND), np.nan, np.float32)
        fragility_N = np.concatenate([rows.fragility_N, unknown])[places]
        woven = replace(woven, fragility_N=fragility_N)
    if rows.tokens is None or closing.tokens is None:
        return woven
    flat = [*rows.tokens, *(plans.tokens or []), closing.tokens]
    return replace(woven, tokens=[flat[place] for place in places.tolist()])


def label(group: Group, row: int) -> str:
    """Return what messages call a row."""
    return f"{group.path} row {group.first + row}"


def whole(column: pa.ChunkedArray) -> pa.Array:
    """Return a column in one piece, without a dictionary."""
    array = column.combine_chunks()
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def list_lengths(column: pa.ChunkedArray) -> Ints:
    """Return how long each row's list is, -1 for a row without, (R,)."""
    lengths = pc.fill_null(pc.list_value_length(whole(column)), -1)
    return np.asarray(lengths, dtype=np.int64)


def _rows(column: pa.ChunkedArray, group: Group, name: str, dim: int) -> Rows:
    array = whole(column)
    ends = np.concatenate([[0], np.cumsum(np.maximum(list_lengths(column), 0))])
    rows = _Checked(group, name, ends)
    vectors = array.flatten()
    if vectors.null_count:
        rows.refuse(np.asarray(vectors.is_null()), "a concept that is missing (null)")
    if not pa.types.is_fixed_size_list(vectors.type):
        rows.refuse(
            np.asarray(vectors.value_lengths()) != dim, f"a concept that has not {dim} dimensions"
        )
    flat = vectors.flatten()
    if flat.null_count:
        holes: Any = np.asarray(flat.is_null()).reshape(-1, dim).any(axis=1)
        rows.refuse(holes, "a concept with a missing value (null)")
    values: Any = flat.to_numpy(zero_copy_only=False).reshape(-1, dim)
    if values.dtype == np.float64:  # the official code's
        values = values.astype(np.float32)
    rows.refuse(~finite_rows(values), "a concept with NaN or infinite values")
    return Rows(values, ends)


@dataclass(frozen=True)
class _Checked:
    """Whose concepts are checked."""

    group: Group
    name: str
    ends: Ints

    def refuse(self, bad: NDArray[np.bool_], what: str) -> None:
        """Raise IntegrityError for the first concept that is `bad`, (N,)."""
        if bad.any():
            first = int(np.argmax(bad))
            row = int(np.searchsorted(self.ends, first, side="right")) - 1
            place = f"{what}: number {first - int(self.ends[row])} of {self.name}"
            raise IntegrityError(
                f"{label(self.group, row)} has {place}", AGAIN.format(self.group.path)
            )
