"""From documents to rows of a batch: what is put around them, where they are cut, who shares a row.

A plain document is prefix + concepts + suffix, cut into pieces of about equal length where that is
longer than a row; so the suffix, "End of text.", stands only at the true end, and never alone. A
document with a target is prefix + source + prompt + target + suffix, of which what comes after the
prompt is learned; a source that is too long loses its end.

Shapes: S concepts, D concept dim, P sentences put before or after.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lcm_cli.documents.document import Concepts
from lcm_cli.training.data.index import Index
from lcm_cli.training.data.row_groups import Ints, Rows
from lcm_cli.training.data.token_ids import Tokens

Marks = NDArray[Any]  # a number for each concept


@dataclass(frozen=True)
class Affixes:
    """Concepts of the sentences around a document: before it, before its target, after it.

    `tokens` are what these say, in the same order, where that is wanted.
    """

    prefix_PD: NDArray[np.float32]
    prompt_PD: NDArray[np.float32]
    suffix_PD: NDArray[np.float32]
    tokens: tuple[list[Tokens], list[Tokens], list[Tokens]] | None = None


@dataclass(frozen=True)
class Limits:
    """How long a plain row and a row with a target may be, and which documents count."""

    wrap: int
    max_length: int
    min_sentences: int
    max_sentences: int | None


@dataclass(frozen=True)
class Item:
    """A piece of a plain document, or a source with its target."""

    place: tuple[int, int]  # number of the corpus, and of the row group in it
    row: int  # in the row group
    begin: int  # where the piece begins and ends, in the document with its affixes
    end: int
    source: int = 0  # of a pair: how many concepts come before those to learn

    @property
    def length(self) -> int:
        """Number of concepts."""
        return self.end - self.begin


class Corpus:
    """The documents of one data set that are trained on."""

    def __init__(self, index: Index, affixes: Affixes, limits: Limits) -> None:
        self.index, self._affixes, self._limits = index, affixes, limits
        around = len(affixes.prefix_PD) + len(affixes.suffix_PD)
        pair = index.target > 0
        behind = np.where(pair, around + len(affixes.prompt_PD) + index.target, around)
        length = index.length + index.woven
        room = np.where(pair, limits.max_length - behind, length)
        most = np.inf if limits.max_sentences is None else limits.max_sentences
        reasons = {
            "with too few sentences": index.length < limits.min_sentences,
            "with too many sentences": index.length > most,
            "with too long a target": room < 1,
        }
        self.left_out = {"that the filter excludes": index.filtered}
        self.left_out |= {why: int(which.sum()) for why, which in reasons.items()}
        docs = np.flatnonzero(~np.any(list(reasons.values()), axis=0))
        self._group, self._row, self._pair = index.group[docs], index.row[docs], pair[docs]
        kept = np.minimum(length, room)[docs]
        self.cut_sources = int((kept < length[docs]).sum())
        self._source = len(affixes.prefix_PD) + kept + len(affixes.prompt_PD)
        self._total = kept + behind[docs]
        self._pieces = np.where(self._pair, 1, -(-self._total // limits.wrap))
        self.longest = int((-(-self._total // self._pieces)).max(initial=0))
        self.concepts = int(self._total.sum())

    def __len__(self) -> int:
        return len(self._row)

    def size(self, docs: Ints) -> int:
        """Return how many concepts documents have, with their affixes."""
        return int(self._total[docs].sum())

    def passes(self, epoch: int, seed: Sequence[int]) -> Iterator[Ints]:
        """Yield the documents of an epoch: all of them once for each whole unit of the weight.

        Epochs of a broken weight go on where the last one ended, in an order that is new each
        time that all documents have come.
        """
        count = len(self)
        begin, end = (
            int(number * self.index.entry.weight * count) for number in (epoch, epoch + 1)
        )
        for number in range(begin // count, -(-end // count)) if count else ():
            first, last = max(begin - number * count, 0), min(end - number * count, count)
            if (first, last) == (0, count):
                yield np.arange(count)
            else:
                order = np.random.default_rng([*seed, number]).permutation(count)
                yield np.sort(order[first:last])

    def by_group(self, docs: Ints) -> Iterator[tuple[int, Ints]]:
        """Yield the row groups that hold `docs`, sorted numbers, each with its own of them."""
        groups = self._group[docs]
        for part in np.split(docs, np.flatnonzero(np.diff(groups)) + 1):
            if len(part):
                yield int(self._group[part[0]]), part

    def items(self, number: int, docs: Ints) -> Iterator[Item]:
        """Yield the pieces of documents; `number` is that of this corpus."""
        columns = (self._group, self._row, self._total, self._pieces, self._source, self._pair)
        values = (column[docs].tolist() for column in columns)
        for group, row, total, pieces, source, pair in zip(*values, strict=True):
            for piece in range(pieces):
                begin, end = total * piece // pieces, total * (piece + 1) // pieces
                yield Item((number, group), row, begin, end, source if pair else 0)

    def concepts_of(self, item: Item, read: Sequence[Rows]) -> list[Concepts]:
        """Return the concepts of an item, in parts (S, D); `read` is its row group."""
        around = self._affixes.prefix_PD, self._affixes.prompt_PD, self._affixes.suffix_PD
        return _parts(item, around, [rows.row(item.row) for rows in read])

    def tokens_of(self, item: Item, read: Sequence[Rows]) -> list[Tokens] | None:
        """Return what each concept of an item says, None where that is not wanted."""
        if self._affixes.tokens is None:
            return None
        parts = _parts(item, self._affixes.tokens, [rows.said(item.row) for rows in read])
        return [tokens for part in parts for tokens in part]

    def woven_of(self, item: Item, read: Sequence[Rows]) -> NDArray[np.bool_] | None:
        """Return which concepts of an item are breaks or plans, (S,); None where none can be."""
        if read[0].woven_N is None:
            return None
        return self._marks(item, [_mark(rows, rows.woven_N, item.row, False) for rows in read])

    def fragility_of(self, item: Item, read: Sequence[Rows]) -> NDArray[np.float32] | None:
        """Return how little noise each concept of an item bears, (S,); None if that is not wanted.

        It is NaN for what is no sentence of the data.
        """
        if read[0].fragility_N is None:
            return None
        own = [_mark(rows, rows.fragility_N, item.row, np.nan) for rows in read]
        return self._marks(item, own, np.nan)

    def _marks(self, item: Item, own: list[Marks], neutral: float = 0) -> Marks:
        """Return a number for each concept of an item: its rows' `own`, `neutral` around them."""
        affixes = self._affixes
        around = affixes.prefix_PD, affixes.prompt_PD, affixes.suffix_PD
        prefix, prompt, suffix = (np.full(len(part), neutral, own[0].dtype) for part in around)
        return np.concatenate(_parts(item, (prefix, prompt, suffix), own))


def _parts(item: Item, around: tuple[Any, Any, Any], own: Sequence[Any]) -> list[Any]:
    """Return the parts of an item: arrays or lists, cut from the `own` parts and those `around`."""
    prefix, prompt, suffix = around
    if item.source:
        kept = item.source - len(prefix) - len(prompt)
        return [prefix, own[0][:kept], prompt, own[1], suffix]
    parts, start = [], 0
    for part in (prefix, own[0], suffix):
        parts.append(part[max(item.begin - start, 0) : max(item.end - start, 0)])
        start += len(part)
    return parts


def _mark(rows: Rows, marks_N: Marks | None, row: int, neutral: bool | float) -> Marks:
    """Return the marks of one row, (S,): `neutral` ones where it has none."""
    place = rows.place(row)
    return np.full(place.stop - place.start, neutral) if marks_N is None else marks_N[place]


def share_rows(items: Sequence[Item], room: int) -> list[list[Item]]:
    """Put items into rows of at most `room` concepts, the longest first, each where it fits best.

    Pairs have rows of their own.
    """
    rows = [[item] for item in items if item.source]
    open_rows: list[list[list[Item]]] = [[] for _ in range(room + 1)]  # by the room that is left
    for item in sorted((item for item in items if not item.source), key=lambda item: -item.length):
        left = next((left for left in range(item.length, room + 1) if open_rows[left]), None)
        row = [] if left is None else open_rows[left].pop()
        row.append(item)
        open_rows[(room if left is None else left) - item.length].append(row)
    return rows + [row for same in open_rows for row in same]


def cut_evenly(sizes: Ints, parts: int) -> list[Ints]:
    """Cut 0 .. len(sizes) - 1 into `parts` runs, none of them empty, of about equal size."""
    count = len(sizes)
    if not count:
        return []
    parts = min(parts, count)
    ends, numbers = np.cumsum(sizes), np.arange(1, parts)
    cuts = np.searchsorted(ends, ends[-1] * numbers / parts) + 1
    # At least one for each part before a cut, and for each behind it.
    cuts = np.maximum.accumulate(np.maximum(cuts, numbers) - numbers) + numbers
    return np.split(np.arange(count), np.minimum(cuts, count - parts + numbers))
