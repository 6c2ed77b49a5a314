"""Rows, from pieces of documents in memory, and the batches that they are padded into.

Shapes: B rows, S concepts, D concept dim.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lcm_cli.models.interface import PADDING, Batch
from lcm_cli.training.data.columns import Column
from lcm_cli.training.data.packing import DocumentSet, Piece, cut_evenly
from lcm_cli.training.data.row_groups import ConceptLists, Sentences, join, join_values

# The concepts of row groups in memory, by the numbers of the data set and of the row group in it.
RowGroups = dict[tuple[int, int], list[ConceptLists]]


@dataclass(frozen=True)
class Row:
    """A row of a batch: the parts of each piece in it, and the length of each piece."""

    pieces: list[list[Sentences]]
    lengths: list[int]
    source: int  # number of leading concepts that are given, not learned

    @property
    def length(self) -> int:
        """Number of concepts."""
        return sum(self.lengths)

    @property
    def parts(self) -> list[Sentences]:
        """The parts of all pieces."""
        return [part for piece in self.pieces for part in piece]

    def copy(self) -> "Row":
        """Return a copy, which does not keep the row groups in memory."""
        return Row([[join(parts)] for parts in self.pieces], self.lengths, self.source)


def row_of(pieces: Sequence[Piece], document_sets: Sequence[DocumentSet], groups: RowGroups) -> Row:
    """Return the row of `pieces`, whose documents are in `groups`."""
    parts = [
        document_sets[piece.place[0]].sentences(piece, groups[piece.place]) for piece in pieces
    ]
    return Row(parts, [piece.length for piece in pieces], pieces[0].source)


def batch_of(
    rows: Sequence[Row], columns: Sequence[Column], sourced: bool, packed: bool = False
) -> Batch:
    """Pad rows into a batch; with `sourced` it has sources, with `packed` segments.

    Each concept is copied once, by numpy: torch would start its own threads in each of the threads
    that work ahead.
    """
    longest = max(row.length for row in rows)
    dim = rows[0].pieces[0][0].concepts_SD.shape[1]
    x_BSD = np.zeros((len(rows), longest, dim), np.float32)
    segments_BS = np.full((len(rows), longest), PADDING)
    for number, row in enumerate(rows):
        start = 0
        for part in row.parts:
            x_BSD[number, start : start + len(part)] = part.concepts_SD
            start += len(part)
        segments_BS[number, :start] = np.repeat(np.arange(len(row.lengths)), row.lengths)
    return Batch(
        torch.from_numpy(x_BSD),
        torch.tensor([row.length for row in rows]),
        torch.tensor([row.source for row in rows]) if sourced else None,
        torch.from_numpy(segments_BS) if packed else None,
        {
            column.name: column.pad([join_values(row.parts, column.name) for row in rows], longest)
            for column in columns
        },
    )


def no_rows(columns: Sequence[Column], dim: int) -> Batch:
    """Return a row of length 0, as `Batch.rows` does for no rows."""
    empty = {column.name: column.pad([[]], 0) for column in columns}
    return Batch(torch.zeros(1, 1, dim), torch.tensor([0]), columns=empty).rows([])


def batches_by_length(
    rows: list[Row], columns: Sequence[Column], batch_concepts: int
) -> Iterator[Batch]:
    """Yield rows in batches of similar length, of about `batch_concepts` each; sorts `rows`."""
    rows.sort(key=lambda row: row.length)
    lengths = np.array([row.length for row in rows], dtype=np.int64)
    count = -(-int(lengths.sum()) // max(batch_concepts, lengths.max(initial=1)))
    for part in cut_evenly(lengths, count):
        batch = [rows[i] for i in part]
        yield batch_of(batch, columns, sourced=any(row.source for row in batch))
