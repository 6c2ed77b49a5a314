"""Per-concept columns of training data: what a batch holds for each concept beside its vector.

A column describes how its values are read for the concepts of a row group, which values sentences
have that are not in the data (prefix, prompt, suffix, paragraph break), and how rows are padded
into a batch. To add a column, describe it here and list it in `wanted_columns`; models find it
under its name in `Batch.columns`.

Shapes: B rows, S concepts of the longest row, R documents of a row group, N concepts of all of
them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from lcm_cli.documents.arrow import FRAGILITY, PLANS, SENTENCES, TARGET_SENTENCES
from lcm_cli.errors import IntegrityError, LcmError
from lcm_cli.models import interface
from lcm_cli.training.data.row_groups import (
    Ints,
    RowGroup,
    Tokens,
    Values,
    list_lengths,
    whole,
)

# Whose concepts a list holds: a document's (or a pair's source's), a pair's target's, the plans'.
Part = Literal["source", "target", "plan"]
# Sentences and their language, "" for unknown, to the tokens of each.
Tokenize = Callable[[Sequence[str], str], list[Tokens]]

LANG = "lang"
_SENTENCES = {"source": SENTENCES, "target": TARGET_SENTENCES, "plan": PLANS}
_NO_TOKENS = np.zeros(0, np.int32)  # of a concept whose sentence is not read
_SQUARED = 'embed the text again, or learn without it: --set model.loss="squared"'
_SCORED = "make the scores: lcm embed TEXT -o DATASET/ --fragility"


class Column(ABC):
    """A column of values, one per concept, called `name` in sentences and batches."""

    name: str
    checked: tuple[str, ...] = ()  # columns of the file that `check` needs

    def check(  # noqa: B027 - most columns need no check
        self, table: pa.Table, group: RowGroup, rows: Ints, counts: Sequence[Ints]
    ) -> None:
        """Raise IntegrityError if the `checked` columns in `table` do not suit documents `rows`.

        `counts` are the numbers of learned concepts of each, in its source and in its target.
        """

    @abstractmethod
    def read(
        self, group: RowGroup, part: Part, ends: Ints, documents: Ints, learned: Ints
    ) -> Values:
        """Read the values of all N concepts; those of document r are at ends[r] : ends[r + 1].

        Only `documents` are used, and only the concepts of `learned` are learned; all others may
        get a neutral value. Raises IntegrityError, naming the document, for unusable values.
        """

    @abstractmethod
    def of_texts(self, texts: Sequence[str]) -> Values:
        """Return the values of affix sentences (prefix, prompt, suffix)."""

    def of_break(self, text: str) -> Values:
        """Return the value of the paragraph break."""
        return self.of_texts([text])

    @abstractmethod
    def pad(self, rows: Sequence[Values], longest: int) -> interface.ColumnValues:
        """Return the values of a batch; those of numbers are padded to `longest` concepts."""


class NumberColumn(Column):
    """A column of numbers, padded to (B, S) with its neutral value."""

    neutral: float
    dtype: type[np.generic]

    def of_texts(self, texts: Sequence[str]) -> Values:
        """Return the neutral value for each sentence."""
        return np.full(len(texts), self.neutral, self.dtype)

    def pad(self, rows: Sequence[Values], longest: int) -> Tensor:
        """Return the numbers, (B, S)."""
        padded_BS = np.full((len(rows), longest), self.neutral, self.dtype)
        for number, values in enumerate(rows):
            padded_BS[number, : len(values)] = values
        return torch.from_numpy(padded_BS)


class WovenColumn(NumberColumn):
    """Whether a concept is a paragraph break or a plan."""

    name, neutral, dtype = interface.WOVEN, False, np.bool_

    def read(
        self, group: RowGroup, part: Part, ends: Ints, documents: Ints, learned: Ints
    ) -> Values:
        """Return whether the list holds plans."""
        return np.full(int(ends[-1]), part == "plan")

    def of_break(self, text: str) -> Values:
        """Return true: it is a break."""
        return np.ones(1, np.bool_)


class FragilityColumn(NumberColumn):
    """How little noise a concept bears, in [-1, 0]; NaN where unknown.

    Of pairs only the targets need scores, since only they are learned.
    """

    name, neutral, dtype = interface.FRAGILITY, np.nan, np.float32
    checked = FRAGILITY

    def check(self, table: pa.Table, group: RowGroup, rows: Ints, counts: Sequence[Ints]) -> None:
        """Raise IntegrityError unless there is one score per learned concept."""
        for name, wanted in zip(FRAGILITY, counts, strict=True):
            if wanted.any():
                _check_scores(table, group, name, rows, wanted)

    def read(
        self, group: RowGroup, part: Part, ends: Ints, documents: Ints, learned: Ints
    ) -> Values:
        """Read the scores of the `learned` documents; plans have none."""
        scores_N = np.full(int(ends[-1]), np.nan, np.float32)
        if part == "plan" or not len(learned):
            return scores_N
        name = FRAGILITY[part == "target"]
        column = group.read([name])[name]
        # Counted apart from the concepts: a document that is not learned may have no scores.
        file_ends = np.cumsum([0, *np.maximum(list_lengths(column), 0)])
        flat: Any = whole(column).flatten().to_numpy(zero_copy_only=False)
        for row in learned.tolist():
            scores = flat[file_ends[row] : file_ends[row + 1]]
            scores_N[ends[row] : ends[row + 1]] = scores
            if not np.isfinite(scores).all():
                what = f"a missing, NaN or infinite value in {name}"
                raise IntegrityError(f"{group.label(row)} has {what}", _SCORED)
        return scores_N


class TokenColumn(Column):
    """The token ids of a concept's sentence: read for models that learn from tokens."""

    name = interface.TOKENS

    def __init__(self, tokenize: Tokenize) -> None:
        self._tokenize = tokenize

    def read(
        self, group: RowGroup, part: Part, ends: Ints, documents: Ints, learned: Ints
    ) -> Values:
        """Tokenize the sentences of `documents`; all others get no tokens.

        Raises IntegrityError for missing sentences, another number of them than of concepts, and a
        language that the space does not know.
        """
        tokens = [_NO_TOKENS] * int(ends[-1])
        column = next((name for name in _SENTENCES[part] if name in group.names), None)
        rows = [row for row in documents.tolist() if ends[row] < ends[row + 1]]
        if column is None and not rows:
            return tokens
        if column is None:
            what = "has concepts and no sentences to learn tokens from"
            raise IntegrityError(f"{group.path} {what}", _SQUARED)
        table = group.read([column, *([LANG] if LANG in group.names else [])])
        for row in rows:
            begin, end = int(ends[row]), int(ends[row + 1])
            texts = table[column][row].as_py() or []
            if len(texts) != end - begin or None in texts:
                what = f"{end - begin} concepts and {len(texts) - texts.count(None)} sentences"
                raise IntegrityError(f"{group.label(row)} has {what}", _SQUARED)
            try:
                tokens[begin:end] = self._tokenize(texts, _language(table, row))
            except LcmError as error:
                message = f"{group.label(row)}: {error.message}"
                raise IntegrityError(message, error.hint) from error
        return tokens

    def of_texts(self, texts: Sequence[str]) -> Values:
        """Tokenize sentences in the space's own language."""
        return self._tokenize(texts, "")

    def pad(self, rows: Sequence[Values], longest: int) -> interface.ColumnValues:
        """Return the tokens of each concept of each row, without padding."""
        return tuple(list(values) for values in rows)


def wanted_columns(
    *, tokenize: Tokenize | None = None, woven: bool = False, fragility: bool = False
) -> list[Column]:
    """Return the columns that a batch has."""
    columns: list[Column] = [] if tokenize is None else [TokenColumn(tokenize)]
    columns += [WovenColumn()] if woven else []
    return columns + ([FragilityColumn()] if fragility else [])


def is_list(kind: pa.DataType) -> bool:
    """Return whether an Arrow type is one of its three list types."""
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _check_scores(
    table: pa.Table, group: RowGroup, name: str, rows: Ints, counts: NDArray[np.int64]
) -> None:
    """Raise IntegrityError unless each of `rows` has `counts` scores; 0 stands for any number."""
    if name not in table.column_names:
        names = ", ".join(group.names)
        what = f"no column {name!r}, by which the loss is to be weighted; it has {names}"
        raise IntegrityError(f"{group.path} has {what}", _SCORED)
    kind = table[name].type
    if not is_list(kind) or not pa.types.is_floating(kind.value_type):
        what = f"the column {name!r} has the type {kind}, not lists of numbers"
        raise IntegrityError(f"{group.path}: {what}", _SCORED)
    found = np.maximum(list_lengths(table[name]), 0)[rows]
    if (bad := np.flatnonzero((counts > 0) & (found != counts))).size:
        one = bad[0]
        what = f"{found[one]} values of {name} for {counts[one]} sentences"
        raise IntegrityError(f"{group.label(rows[one])} has {what}", _SCORED)


def _language(table: pa.Table, row: int) -> str:
    return str((table[LANG][row].as_py() if LANG in table.column_names else "") or "")
