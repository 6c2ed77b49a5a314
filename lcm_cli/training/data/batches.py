"""Training data of concept models: batches of documents from Parquet files, in a fixed order.

Everything is a function of the options, the seed and a number: `batch(n)` is the n-th batch since
the start, no matter what was requested before or how many threads work ahead. Resuming needs no
saved state. `micro_batches(n, share)` is one process's share of that batch: concepts of other
processes' rows are neither assembled nor kept, and row groups that hold only such rows are not
read.

An epoch takes each data set `weight` times; with a weight of 0.5, one half in one epoch and the
other half in the next. The row groups of all data sets are shuffled together and dealt into shuffle
buffers that fit into memory. Those of a buffer are divided among the `readers` of the options, a
number that does not depend on the processes. The documents of each reader are shuffled, sorted by
length and cut into as many parts as the buffer has batches. A batch consists of one part of every
reader, all of about the same quantile of length; the order of batches is shuffled again. The rows
of a reader stay with as few processes as possible, so that each process reads few row groups.

Shapes: B rows, S concepts, D concept dim, P sentences of an affix.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from threading import Lock
from typing import Self

import numpy as np
import torch

from lcm_cli.documents.document import SpaceInfo
from lcm_cli.errors import IntegrityError
from lcm_cli.models.config import BREAK_TEXT
from lcm_cli.models.interface import Batch
from lcm_cli.schema import counted
from lcm_cli.training.data.affixes import AffixEncoder, Encode
from lcm_cli.training.data.columns import Column, Tokenize, wanted_columns
from lcm_cli.training.data.index import check_same_space, scan
from lcm_cli.training.data.packing import DocumentSet, Piece, cut_evenly, pack, wrap_length
from lcm_cli.training.data.row_groups import Ints
from lcm_cli.training.data.rows import Row, RowGroups, batch_of, batches_by_length, no_rows, row_of
from lcm_cli.training.data_options import DataOptions, DataSet, as_data_set
from lcm_cli.training.parallel import MicroBatches, Share, deal

# The documents to use of a row group: the numbers of the data set, the row group, the documents.
Unit = tuple[int, int, Ints]

BUFFER_BYTES = 256 << 20  # of concepts that are shuffled together; three buffers are held
BUFFER_BATCHES = 8  # the least number of batches in a buffer
AHEAD = 4  # batches made before they are requested
# The least number of rows of the greatest length in a reader's part of a batch. With fewer, the
# lengths in the parts of a batch differ, and padding grows; packed rows are all about as long.
LEAST_ROWS, LEAST_PACKED_ROWS = 32, 4
UNEVEN = 0.05  # how far above the mean a reader may be before a row group is divided


@dataclass(frozen=True)
class _Buffer:
    """The documents of a shuffle buffer, and the number of batches that they make."""

    epoch: int
    number: int
    units: list[Unit]
    batches: int


@dataclass(frozen=True)
class _BatchLayout:
    """The pieces in each row of a process's micro-batches, and what they take from the batch."""

    micro_batches: list[list[list[Piece]]]
    lengths: list[int]  # of all rows of the batch
    sourced: bool  # whether any row of the batch has a source
    packed: bool  # whether any row of the batch holds several pieces


@dataclass(frozen=True)
class _LoadedBuffer:
    """A shuffle buffer in memory: the layout of each batch, and the row groups it needs."""

    batches: list[_BatchLayout]
    groups: RowGroups


class ConceptData:
    """Batches for training, and for validation.

    `documents` counts the training documents, `concepts` the concepts of an epoch with affixes,
    `left_out` the documents left out by reason, and `cut_sources` the sources that are too long for
    `max_length` and lose their end. `space` is the space of the concepts, if the files name it, and
    `plans` whether each paragraph has a plan. `batches_per_epoch` is that of the first epoch; other
    epochs may differ by a few.
    """

    def __init__(
        self,
        options: DataOptions,
        *,
        dim: int,
        max_length: int,
        seed: int,
        encode: Encode | None = None,
        prompts: Mapping[str, str] | None = None,
        end_text: str = "End of text.",
        break_text: str = BREAK_TEXT,
        begin_text: str = "",
        tokenize: Tokenize | None = None,
        fragility: bool = False,
        workers: int = 1,
    ) -> None:
        """Scan all files; `encode` returns the concepts (P, D) of sentences.

        With `tokenize`, batches hold the tokens of each concept; with `fragility`, training batches
        hold its score.

        Raises NotFoundError, UsageError or IntegrityError for unusable options or files.
        """
        self.options, self.seed = options, seed
        self._dim, self._wrap = dim, wrap_length(options, max_length)
        if self._wrap < 2:
            raise IntegrityError(
                f"the model's max_length, {max_length}, leaves nothing to predict",
                "set model.max_length = 128, or more",
            )
        suffix = (end_text,) if options.suffix is None else options.suffix
        prefix = options.prefix
        if prefix is None:
            prefix = (begin_text,) if begin_text else ()
        encoder = AffixEncoder(encode, dim, prefix, suffix, prompts or {})
        self._columns = wanted_columns(tokenize=tokenize, woven=options.plan, fragility=fragility)
        # Held-out losses are not weighted by fragility.
        self._held_out_columns = wanted_columns(tokenize=tokenize, woven=options.plan)
        open_sets = partial(_document_sets, options, dim, max_length, encoder, break_text)
        self._train = open_sets(options.train, self._columns)
        self._validation = open_sets(options.validation, self._held_out_columns)
        self.space = _common_space([*self._train, *self._validation])
        self.plans = _all_planned([*self._train, *self._validation])
        self.documents = sum(len(documents) for documents in self._train)
        self.concepts = round(
            sum(documents.concepts * documents.weight for documents in self._train)
        )
        self.left_out = _total([documents.left_out for documents in self._train])
        self.cut_sources = sum(documents.cut_sources for documents in self._train)
        if not self.documents:
            reasons = ", ".join(f"{count} {why}" for why, count in self.left_out.items() if count)
            raise IntegrityError(f"no document is left to train on: {reasons}", "check [data]")
        self._batch, self._readers = self._batch_shape()
        self._ends = [0]  # batches before each epoch
        self._lock = Lock()
        self._buffers_of = lru_cache(4)(self._plan)
        self._loaded: OrderedDict[tuple[int, int, Share], Future[_LoadedBuffer]] = OrderedDict()
        self._made: dict[tuple[int, Share], Future[MicroBatches]] = {}
        self._loaders = ThreadPoolExecutor(workers, "load")
        self._makers = ThreadPoolExecutor(workers, "batch")

    def _batch_shape(self) -> tuple[int, int]:
        """Return the number of concepts in a batch, and of the readers that contribute to it."""
        options = self.options
        # A batch holds at least one whole row.
        longest = max(documents.longest for documents in self._train)
        row = max(longest, self._wrap if options.packing else 0)
        size = max(options.batch_concepts, row)
        least = LEAST_PACKED_ROWS if options.packing else LEAST_ROWS
        return size, _most_readers(options.readers, size // (least * row))

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches in the first epoch."""
        self._epoch(0)
        return self._ends[1]

    @property
    def summary(self) -> str:
        """The size of the data and what was left out, in one line."""
        parts = [f"{counted(self.documents, 'document')}, {self.concepts:,} concepts an epoch"]
        gone = [f"{count:,} {why}" for why, count in self.left_out.items() if count]
        if gone:
            parts.append(f"without {', '.join(gone)}")
        if self.cut_sources:
            parts.append(f"{self.cut_sources:,} sources lose their end")
        return "; ".join(parts)

    def batch(self, number: int) -> Batch:
        """Return the number-th batch since the start: concepts (B, S, D) float32 on the CPU."""
        return self.micro_batches(number, Share()).own[0]

    def micro_batches(self, number: int, share: Share) -> MicroBatches:
        """Return one process's share of the number-th batch since the start."""
        wanted = [(ahead, share) for ahead in range(number, number + AHEAD)]
        with self._lock:  # two trainers may use the same data
            for one in wanted:
                if one not in self._made:
                    self._made[one] = self._makers.submit(self._make, *one)
            for old in [other for other in self._made if other not in wanted]:
                self._made.pop(old).cancel()
            made = self._made.pop((number, share))
        return made.result()

    def epoch(self, number: int) -> int:
        """Return the epoch of the number-th batch."""
        return self._place(number)[0]

    def validation(self, limit: int | None = None) -> list[Batch]:
        """Return the validation data, the same at every call; no row holds two documents.

        With a `limit`, return that many documents, spread evenly over all of them.
        """
        total = sum(len(documents) for documents in self._validation)
        count = total if limit is None else min(limit, total)
        # Numbers over all data sets, one after the other.
        chosen = np.linspace(0, total, count, endpoint=False).astype(np.int64)
        rows: list[Row] = []
        start = 0
        for number, documents in enumerate(self._validation):
            own = chosen[(chosen >= start) & (chosen < start + len(documents))] - start
            start += len(documents)
            for group, docs in documents.by_group(own):
                groups = {(number, group): documents.index.read(group, self._dim)}
                pieces = documents.pieces(number, docs)
                rows += [row_of([piece], self._validation, groups).copy() for piece in pieces]
        return list(batches_by_length(rows, self._held_out_columns, self.options.batch_concepts))

    def units(self) -> list[Unit]:
        """Return all training documents, by row group and in order."""
        return [
            (number, group, docs)
            for number, documents in enumerate(self._train)
            for group, docs in documents.by_group(np.arange(len(documents)))
        ]

    def used(self, batches: int) -> set[tuple[int, int]]:
        """Return the row groups whose documents are in the first `batches` batches.

        A row group is named by the number of its data set and its number there. The rest of the
        last shuffle buffer is included.
        """
        count = len(self.units())
        found = set[tuple[int, int]]()
        start = epoch = 0
        while start < batches and len(found) < count:
            for buffer in self._epoch(epoch):
                if start < batches:
                    found |= {unit[:2] for unit in buffer.units}
                start += buffer.batches
            epoch += 1
        return found

    def read(self, units: Sequence[Unit]) -> Iterator[Batch]:
        """Yield documents cut as for training, in batches of similar length, without columns.

        No row holds two documents.
        """
        rows: list[Row] = []
        for number, group, docs in units:
            groups = {(number, group): self._train[number].index.read(group, self._dim)}
            pieces = self._train[number].pieces(number, docs)
            rows += [row_of([piece], self._train, groups) for piece in pieces]
        return batches_by_length(rows, [], self.options.batch_concepts)

    def size(self, unit: Unit) -> int:
        """Return the number of concepts in the documents of a row group, with their affixes."""
        return int(self._train[unit[0]].lengths(unit[2]).sum())

    def close(self) -> None:
        """Stop the threads that work ahead."""
        for pool in (self._makers, self._loaders):
            pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def _make(self, number: int, share: Share) -> MicroBatches:
        epoch, place = self._place(number)
        buffers = self._epoch(epoch)
        current = 0
        while place >= buffers[current].batches:
            place -= buffers[current].batches
            current += 1
        following = (epoch, current + 1) if current + 1 < len(buffers) else (epoch + 1, 0)
        loading = self._load_ahead(epoch, current, share)
        self._load_ahead(*following, share)  # starts reading the next buffer
        loaded = loading.result()
        layout = loaded.batches[place]
        own = []
        for pieces_of_rows in layout.micro_batches:
            rows = [row_of(pieces, self._train, loaded.groups) for pieces in pieces_of_rows]
            own.append(
                batch_of(rows, self._columns, layout.sourced, layout.packed)
                if rows
                else no_rows(self._columns, self._dim)
            )
        return MicroBatches(own, torch.tensor(layout.lengths))

    # --- epochs and shuffle buffers

    def _place(self, number: int) -> tuple[int, int]:
        """Return the epoch of a batch, and its number in the epoch."""
        while self._ends[-1] <= number:
            self._epoch(len(self._ends) - 1)
        # side="right": the first batch of an epoch is not the end of the one before.
        epoch = int(np.searchsorted(self._ends, number, side="right")) - 1
        return epoch, number - self._ends[epoch]

    def _epoch(self, epoch: int) -> list[_Buffer]:
        with self._lock:
            while len(self._ends) <= epoch + 1:
                buffers = self._buffers_of(len(self._ends) - 1)
                self._ends.append(self._ends[-1] + sum(buffer.batches for buffer in buffers))
            return self._buffers_of(epoch)

    def _plan(self, epoch: int) -> list[_Buffer]:
        """Deal the row groups of an epoch into shuffle buffers, at random."""
        units = [
            (number, group, docs)
            for number, documents in enumerate(self._train)
            for docs_of_pass in documents.passes(epoch, (self.seed, number))
            for group, docs in documents.by_group(docs_of_pass)
        ]
        if not units:
            raise IntegrityError(f"epoch {epoch + 1} is empty", "raise the weights in [data]")
        order = np.random.default_rng([self.seed, epoch]).permutation(len(units))
        units = [units[i] for i in order]
        sizes = np.array([self.size(unit) for unit in units])
        # In concepts of float16, as data sets store them.
        least = max(BUFFER_BYTES // (2 * self._dim), BUFFER_BATCHES * self.options.batch_concepts)
        # A buffer has the same number of row groups for each reader, except for the last one.
        starts = np.arange(0, len(units), self._readers)
        rounds = np.add.reduceat(sizes, starts)
        buffers = []
        for number, part in enumerate(cut_evenly(rounds, max(1, int(sizes.sum()) // least))):
            own = units[starts[part[0]] : starts[part[-1]] + self._readers]
            batches = -(-int(rounds[part].sum()) // self._batch)
            buffers.append(_Buffer(epoch, number, own, batches))
        return buffers

    def _load_ahead(self, epoch: int, number: int, share: Share) -> "Future[_LoadedBuffer]":
        buffer = self._epoch(epoch)[number]
        with self._lock:
            found = self._loaded.get((epoch, number, share))
            if found is None:
                found = self._loaders.submit(self._load, buffer, share)
                self._loaded[epoch, number, share] = found
                while len(self._loaded) > 3:  # this one, the next, and one that may be in use
                    self._loaded.popitem(last=False)
        return found

    def _load(self, buffer: _Buffer, share: Share) -> _LoadedBuffer:
        batches = [_layout(parts, share) for parts in self._arrange(buffer)]
        needed: dict[tuple[int, int], set[int]] = {}
        for layout in batches:
            for piece in (x for rows in layout.micro_batches for row in rows for x in row):
                needed.setdefault(piece.place, set()).add(piece.document)
        groups = {}
        for (number, group), documents in sorted(needed.items()):
            lists = self._train[number].index.read(group, self._dim)
            if share.size > 1:  # most of the row group belongs to other processes
                lists = [each.only(np.array(sorted(documents))) for each in lists]
            groups[number, group] = lists
        return _LoadedBuffer(batches, groups)

    def _arrange(self, buffer: _Buffer) -> list[list[list[list[Piece]]]]:
        """Return the rows of each batch, by reader; those of a batch are of similar length."""
        key = self.seed, buffer.epoch, buffer.number
        rngs = [np.random.default_rng([*key, reader]) for reader in range(self._readers)]
        parts = [
            self._cut(units, rng, buffer.batches)
            for units, rng in zip(self._divide(buffer.units), rngs, strict=True)
        ]
        return [[part[i] for part in parts] for i in rngs[0].permutation(buffer.batches)]

    def _divide(self, units: Sequence[Unit]) -> list[list[Unit]]:
        """Divide documents evenly among the readers, by whole row groups as far as possible."""
        dealt = deal([self.size(unit) for unit in units], self._readers)
        parts = [[units[i] for i in part] for part in dealt]
        loads = np.array([sum(map(self.size, part)) for part in parts])
        # Each move takes documents from a reader above the mean to one below it, but never so many
        # that either crosses it: so the loop ends.
        while loads.max() > (1 + UNEVEN) * loads.mean():
            heaviest, lightest = int(loads.argmax()), int(loads.argmin())
            surplus = min(loads[heaviest] - loads.mean(), loads.mean() - loads[lightest])
            giver = parts[heaviest]
            kept, moved = self._split(giver.pop(np.argmax(list(map(self.size, giver)))), surplus)
            giver += [kept] if len(kept[2]) else []
            if not len(moved[2]):  # its documents are too long
                break
            parts[lightest].append(moved)
            loads[heaviest] -= self.size(moved)
            loads[lightest] += self.size(moved)
        return parts

    def _split(self, unit: Unit, most: float) -> tuple[Unit, Unit]:
        """Split off the last documents of a row group, with at most `most` concepts."""
        number, group, docs = unit
        # From the end, so that both parts stay runs of documents in order.
        lengths = self._train[number].lengths(docs)[::-1]
        kept = len(docs) - int(np.searchsorted(lengths.cumsum(), most, side="right"))
        return (number, group, docs[:kept]), (number, group, docs[kept:])

    def _cut(
        self, units: Sequence[Unit], rng: np.random.Generator, count: int
    ) -> list[list[list[Piece]]]:
        """Shuffle a reader's documents into rows; cut the rows, sorted by length, into `count`."""
        pieces = [
            piece for number, _, docs in units for piece in self._train[number].pieces(number, docs)
        ]
        pieces = [pieces[i] for i in rng.permutation(len(pieces))]
        rows = pack(pieces, self._wrap) if self.options.packing else [[piece] for piece in pieces]
        # The sort is stable: rows of equal length stay shuffled.
        rows.sort(key=lambda row: sum(piece.length for piece in row))
        lengths = np.array([sum(piece.length for piece in row) for row in rows])
        parts = [[rows[i] for i in part] for part in cut_evenly(lengths, count)]
        # A reader with few rows has none in some batches.
        return parts + [[] for _ in range(count - len(parts))]


def _document_sets(
    options: DataOptions,
    dim: int,
    max_length: int,
    encoder: AffixEncoder,
    break_text: str,
    entries: Sequence[str | DataSet],
    columns: list[Column],
) -> list[DocumentSet]:
    """Scan the data sets of `entries`, for batches with `columns`."""
    ends = encoder.paragraph_break(break_text, columns) if options.plan else None
    found = []
    for each in map(as_data_set, entries):
        index = scan(each, dim, options.filter, ends, columns)
        affixes = encoder.affixes(each, columns)
        found.append(DocumentSet(each, index, affixes, options, max_length))
    return found


def _most_readers(wanted: int, limit: int) -> int:
    """Return the largest divisor of `wanted` that is at most `limit`; at least 1."""
    return max(n for n in range(1, wanted + 1) if wanted % n == 0 and n <= max(limit, 1))


def _layout(parts: list[list[list[Piece]]], share: Share) -> _BatchLayout:
    rows = [row for part in parts for row in part]
    lengths = [sum(piece.length for piece in row) for row in rows]
    return _BatchLayout(
        [[rows[i] for i in numbers] for numbers in share.rows(lengths, [len(p) for p in parts])],
        lengths,
        sourced=any(piece.source for row in rows for piece in row),
        packed=any(len(row) > 1 for row in rows),
    )


def _common_space(document_sets: Sequence[DocumentSet]) -> SpaceInfo | None:
    spaces = [each.index.space for each in document_sets if each.index.space is not None]
    for space in spaces[1:]:
        check_same_space(spaces[0], space, "the data")
    return spaces[0] if spaces else None


def _all_planned(document_sets: Sequence[DocumentSet]) -> bool:
    """Return whether plain documents have plans. Raises IntegrityError if only some do."""
    documents = [each.index.documents for each in document_sets]
    plain = sum(int((each.target == 0).sum()) for each in documents)
    planned = sum(int(each.planned.sum()) for each in documents)
    if planned not in (0, plain):
        raise IntegrityError(
            f"{planned:,} of {plain:,} documents have plans: all must have plans, or none",
            'leave the others out: filter = "len(plans) >= 1"',
        )
    return planned > 0


def _total(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {why: sum(each[why] for each in counts) for why in counts[0]}
