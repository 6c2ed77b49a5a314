"""From documents to the rows of a batch: add affixes, cut what is too long, pack what is short.

A plain document is prefix + sentences + suffix. If longer than a row, it is cut into pieces of
about equal length, so that the suffix, "End of text.", occurs only at the true end, and never on
its own. A document with a target is prefix + source + prompt + target + suffix, of which only what
follows the prompt is learned; a source that is too long loses its end.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lcm_cli.errors import IntegrityError
from lcm_cli.training.data.index import DocumentIndex
from lcm_cli.training.data.row_groups import ConceptLists, Ints, Sentences
from lcm_cli.training.data_options import DataOptions, DataSet


@dataclass(frozen=True)
class Affixes:
    """The sentences put before a document, between its source and its target, and after it."""

    prefix: Sentences
    prompt: Sentences
    suffix: Sentences


@dataclass(frozen=True)
class Piece:
    """A piece of a plain document, or a whole pair of source and target."""

    place: tuple[int, int]  # number of the data set, and of the row group in it
    document: int  # in the row group
    begin: int  # where the piece begins and ends, in the document with its affixes
    end: int
    source: int = 0  # of a pair: number of concepts before those to learn

    @property
    def length(self) -> int:
        """Number of concepts."""
        return self.end - self.begin


class DocumentSet:
    """The documents of one data set that are used, and how they are cut into pieces.

    `left_out` counts the other documents by reason, `cut_sources` the sources that lose their end,
    `concepts` all concepts with affixes, and `longest` those of the longest piece.
    """

    def __init__(
        self,
        data_set: DataSet,
        index: DocumentIndex,
        affixes: Affixes,
        options: DataOptions,
        max_length: int,
    ) -> None:
        self.index, self._affixes, self.weight = index, affixes, data_set.weight
        documents = index.documents
        around = len(affixes.prefix) + len(affixes.suffix)
        pair = documents.target > 0
        # Everything but the sentences themselves or, of a pair, everything but the source.
        fixed = np.where(pair, around + len(affixes.prompt) + documents.target, around)
        length = documents.length + documents.woven
        room = np.where(pair, max_length - fixed, length)
        most = np.inf if options.max_sentences is None else options.max_sentences
        reasons = {
            "with too few sentences": documents.length < options.min_sentences,
            "with too many sentences": documents.length > most,
            "with too long a target": room < 1,
        }
        self.left_out = {"that the filter excludes": index.filtered}
        self.left_out |= {why: int(which.sum()) for why, which in reasons.items()}
        used = np.flatnonzero(~np.any(list(reasons.values()), axis=0))
        self._group, self._row = documents.group[used], documents.row[used]
        self._pair = pair[used]
        kept = np.minimum(length, room)[used]
        self.cut_sources = int((kept < length[used]).sum())
        self._source = len(affixes.prefix) + kept + len(affixes.prompt)
        self._total = kept + fixed[used]
        # As few pieces as possible; a pair is never cut, since its target needs its source.
        self._pieces = np.where(self._pair, 1, -(-self._total // wrap_length(options, max_length)))
        self.longest = int((-(-self._total // self._pieces)).max(initial=0))
        self.concepts = int(self._total.sum())

    def __len__(self) -> int:
        return len(self._row)

    def lengths(self, docs: Ints) -> Ints:
        """Return the number of concepts in each of `docs`, with its affixes."""
        return self._total[docs]

    def passes(self, epoch: int, seed: Sequence[int]) -> Iterator[Ints]:
        """Yield the documents of an epoch: all of them once for each whole unit of the weight.

        With a fractional weight an epoch continues where the last one ended, in an order that is
        drawn anew each time all documents have been used.
        """
        count = len(self)
        begin, end = (int(number * self.weight * count) for number in (epoch, epoch + 1))
        for number in range(begin // count, -(-end // count)) if count else ():
            first, last = max(begin - number * count, 0), min(end - number * count, count)
            if (first, last) == (0, count):
                yield np.arange(count)  # in order: row groups are shuffled later
            else:
                order = np.random.default_rng([*seed, number]).permutation(count)
                yield np.sort(order[first:last])

    def by_group(self, docs: Ints) -> Iterator[tuple[int, Ints]]:
        """Yield the row groups that hold `docs` (sorted numbers), each with its documents."""
        groups = self._group[docs]
        for part in np.split(docs, np.flatnonzero(np.diff(groups)) + 1):
            if len(part):
                yield int(self._group[part[0]]), part

    def pieces(self, number: int, docs: Ints) -> Iterator[Piece]:
        """Yield the pieces of documents; `number` is that of this data set."""
        columns = (self._group, self._row, self._total, self._pieces, self._source, self._pair)
        values = (column[docs].tolist() for column in columns)
        for group, row, total, pieces, source, pair in zip(*values, strict=True):
            for piece in range(pieces):
                begin, end = total * piece // pieces, total * (piece + 1) // pieces
                yield Piece((number, group), row, begin, end, source if pair else 0)

    def sentences(self, piece: Piece, lists: Sequence[ConceptLists]) -> list[Sentences]:
        """Return the parts of a piece, as views; `lists` are the concepts of its row group."""
        affixes = self._affixes
        prefix, prompt, suffix = affixes.prefix, affixes.prompt, affixes.suffix
        own = [each.document(piece.document) for each in lists]
        if piece.source:
            kept = piece.source - len(prefix) - len(prompt)
            return [prefix, own[0][:kept], prompt, own[1], suffix]
        parts, start = [], 0
        for part in (prefix, own[0], suffix):
            parts.append(part[max(piece.begin - start, 0) : max(piece.end - start, 0)])
            start += len(part)
        return parts


def wrap_length(options: DataOptions, max_length: int) -> int:
    """Return the most concepts of a plain row, for a model that reads up to `max_length`."""
    return min(options.wrap, max_length)


def prompt_of(data_set: DataSet, prompts: Mapping[str, str]) -> list[str]:
    """Return the prompt of the data set's task; raises IntegrityError for an unknown task."""
    if not data_set.task:
        return []
    if data_set.task not in prompts:
        known = ", ".join(sorted(prompts)) or "none"
        raise IntegrityError(
            f"{data_set.path}: the model has no prompt for the task {data_set.task!r}",
            f"its tasks: {known}; add it to the model's prompts",
        )
    return [prompts[data_set.task]]


def pack(pieces: Sequence[Piece], room: int) -> list[list[Piece]]:
    """Pack pieces into rows of at most `room` concepts: best fit, the longest first.

    Pairs get rows of their own.
    """
    rows = [[piece] for piece in pieces if piece.source]
    # Rows by the room left in them, so that finding the best fit takes at most `room` steps.
    by_room: list[list[list[Piece]]] = [[] for _ in range(room + 1)]
    plain = [piece for piece in pieces if not piece.source]
    for piece in sorted(plain, key=lambda piece: -piece.length):
        left = next((left for left in range(piece.length, room + 1) if by_room[left]), None)
        row = [] if left is None else by_room[left].pop()
        row.append(piece)
        by_room[(room if left is None else left) - piece.length].append(row)
    return rows + [row for same_room in by_room for row in same_room]


def cut_evenly(sizes: Ints, parts: int) -> list[Ints]:
    """Cut 0 .. len(sizes) - 1 into `parts` runs of about equal size, none of them empty."""
    count = len(sizes)
    if not count:
        return []
    parts = min(parts, count)
    ends, numbers = np.cumsum(sizes), np.arange(1, parts)
    cuts = np.searchsorted(ends, ends[-1] * numbers / parts) + 1
    # Leave at least one element for each part before a cut, and for each part after it.
    cuts = np.maximum.accumulate(np.maximum(cuts, numbers) - numbers) + numbers
    return np.split(np.arange(count), np.minimum(cuts, count - parts + numbers))
