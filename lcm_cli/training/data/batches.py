"""Training data of concept models: batches of documents from Parquet files, in a fixed order.

Everything is a function of the options, the seed and a number: `batch(n)` is the n-th batch since
the start, whatever was asked for before, and however many threads work ahead. Resuming needs no
saved state. `portion(n, share)` is what one of several processes computes of it: the concepts of
other rows are not put together, nor kept, and not read either where a row group has only such.

An epoch takes each data set `weight` times; of a weight of 0.5, one half in one epoch and the other
half in the next. Its row groups are shuffled, all data sets together, and dealt into windows that
fit into memory; the documents of a window are shuffled, put together with others of like length and
cut into batches, whose order is shuffled again.

Shapes: S concepts, D concept dim, P sentences put before or after.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from threading import Lock
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lcm_cli.documents.document import Concepts, SpaceInfo
from lcm_cli.errors import IntegrityError, UsageError
from lcm_cli.models.config import BREAK_TEXT
from lcm_cli.models.interface import PADDING, Batch
from lcm_cli.schema import counted
from lcm_cli.training.data.index import check_same_space, look
from lcm_cli.training.data.packing import (
    Affixes,
    Corpus,
    Item,
    Limits,
    Marks,
    cut_evenly,
    share_rows,
)
from lcm_cli.training.data.row_groups import Break, Rows
from lcm_cli.training.data.token_ids import Tokenize, Tokens
from lcm_cli.training.data_options import DataOptions, DataSet, as_data_set
from lcm_cli.training.parallel import Portion, Share

Encode = Callable[[Sequence[str]], Tensor]
Floats = NDArray[np.float32]
Groups = dict[tuple[int, int], list[Rows]]  # corpus and group: what was read of it

WINDOW_BYTES = 256 << 20  # of concepts that are shuffled together; three windows are held
WINDOW_BATCHES = 8  # the least number of batches in a window
AHEAD = 4  # batches made before they are asked for


@dataclass(frozen=True)
class BatchRow:
    """A row of a batch: the parts (S, D) of each document in it, how long each is, its source."""

    documents: list[list[Concepts]]
    lengths: list[int]
    source: int
    tokens: list[Tokens] | None = None  # what each concept says, where that is wanted
    woven: Marks | None = None  # which concepts are breaks or plans, (S,)
    fragility: Marks | None = None  # how little noise each bears

    @property
    def length(self) -> int:
        """Number of concepts."""
        return sum(self.lengths)

    def alone(self) -> "BatchRow":
        """Return a copy that does not keep the row group in memory."""
        documents = [[np.concatenate(parts)] for parts in self.documents]
        return replace(self, documents=documents)


@dataclass(frozen=True)
class _Plan:
    """A window: which documents, and how many batches they make."""

    epoch: int
    number: int
    units: list[tuple[int, int, NDArray[np.int64]]]  # corpus, row group, documents
    batches: int


@dataclass(frozen=True)
class _Own:
    """What a process needs of a batch: the items of each row of its parts; all rows' lengths."""

    parts: list[list[list[Item]]]
    lengths: list[int]
    sourced: bool  # whether any row of the batch has a source
    packed: bool  # or several documents


@dataclass(frozen=True)
class _Window:
    """A window in memory: what is needed of each batch, and the groups they are in."""

    batches: list[_Own]
    groups: Groups


class ConceptData:
    """Batches for training, and for validation.

    `documents` counts the training documents, `concepts` those of an epoch with all that is put
    before and after them, `left_out` what was left out and why, and `cut_sources` the sources that
    were too long for `max_length` and lost their end. `space` is that of the concepts, if the files
    say, `plans` whether they have a plan before each paragraph. `batches_per_epoch` is that of the
    first epoch; others may differ by a few.
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
        """Look through all files; `encode` gives the concepts (P, D) of sentences.

        With `tokenize` the batches hold what their concepts say, with `fragility` those of training
        hold the score of each.

        Raises NotFoundError, UsageError, IntegrityError for what is wrong with options or files.
        """
        self.options, self.seed = options, seed
        self._dim, self._tokenize = dim, tokenize
        suffix = (end_text,) if options.suffix is None else options.suffix
        prefix = options.prefix
        if prefix is None:
            prefix = (begin_text,) if begin_text else ()
        affixes = _Sentences(encode, tokenize, dim, prompts or {}, prefix, suffix)
        closing = affixes.closing(break_text) if options.plan else None
        self._wrap = min(options.wrap, max_length)
        if self._wrap < 2:
            raise IntegrityError(
                f"the model's max_length, {max_length}, leaves nothing to predict",
                "set model.max_length = 128, or more",
            )
        limits = Limits(self._wrap, max_length, options.min_sentences, options.max_sentences)

        def corpora(entries: Sequence[str | DataSet], scored: bool) -> list[Corpus]:
            sets = [as_data_set(entry) for entry in entries]
            found = [look(e, dim, options.filter, closing, tokenize, scored) for e in sets]
            return [Corpus(i, affixes.of(e), limits) for i, e in zip(found, sets, strict=True)]

        self._train = corpora(options.train, fragility)
        self._validation = corpora(options.validation, False)  # no held-out score is weighed
        self.space = _common_space([*self._train, *self._validation])
        self.plans = _all_planned([*self._train, *self._validation])
        self.documents = sum(len(corpus) for corpus in self._train)
        self.concepts = round(
            sum(corpus.concepts * corpus.index.entry.weight for corpus in self._train)
        )
        self.left_out = _total([corpus.left_out for corpus in self._train])
        self.cut_sources = sum(corpus.cut_sources for corpus in self._train)
        if not self.documents:
            reasons = ", ".join(f"{count} {why}" for why, count in self.left_out.items() if count)
            raise IntegrityError(f"no document is left to train on: {reasons}", "check [data]")
        self._longest = max(corpus.longest for corpus in self._train)
        self._ends = [0]  # batches before each epoch
        self._lock = Lock()
        self._plans = lru_cache(4)(self._plan)
        self._windows: OrderedDict[tuple[int, int, Share], Future[_Window]] = OrderedDict()
        self._made: dict[tuple[int, Share], Future[Portion]] = {}
        self._loaders = ThreadPoolExecutor(workers, "load")
        self._makers = ThreadPoolExecutor(workers, "batch")

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches in the first epoch."""
        self._epoch(0)
        return self._ends[1]

    @property
    def summary(self) -> str:
        """What there is, and what was left out, in one line."""
        parts = [f"{counted(self.documents, 'document')}, {self.concepts:,} concepts an epoch"]
        gone = [f"{count:,} {why}" for why, count in self.left_out.items() if count]
        if gone:
            parts.append(f"without {', '.join(gone)}")
        if self.cut_sources:
            parts.append(f"{self.cut_sources:,} sources lose their end")
        return "; ".join(parts)

    def batch(self, number: int) -> Batch:
        """Return the number-th batch since the start: concepts (B, S, D) float32 on the CPU."""
        return self.portion(number, Share()).parts[0]

    def portion(self, number: int, share: Share) -> Portion:
        """Return what a process computes of the number-th batch since the start."""
        wanted = [(ahead, share) for ahead in range(number, number + AHEAD)]
        for one in wanted:
            if one not in self._made:
                self._made[one] = self._makers.submit(self._make, *one)
        for old in [other for other in self._made if other not in wanted]:
            self._made.pop(old).cancel()
        return self._made.pop((number, share)).result()

    def epoch(self, number: int) -> int:
        """Return in which epoch the number-th batch is."""
        return self._place(number)[0]

    def validation(self, limit: int | None = None) -> list[Batch]:
        """Return the validation data, the same at every call; no row holds two documents.

        With a `limit`, so many documents, spread evenly over all of them.
        """
        total = sum(len(corpus) for corpus in self._validation)
        count = total if limit is None else min(limit, total)
        chosen = np.linspace(0, total, count, endpoint=False).astype(np.int64)
        rows: list[BatchRow] = []
        start = 0
        for number, corpus in enumerate(self._validation):
            own = chosen[(chosen >= start) & (chosen < start + len(corpus))] - start
            start += len(corpus)
            for group, docs in corpus.by_group(own):
                read = {(number, group): corpus.index.read(group, self._dim)}
                items = corpus.items(number, docs)
                rows += [_row([item], self._validation, read).alone() for item in items]
        rows.sort(key=lambda row: row.length)
        lengths = np.array([row.length for row in rows], dtype=np.int64)
        parts = -(-int(lengths.sum()) // max(self.options.batch_concepts, lengths.max(initial=1)))
        batches = [[rows[i] for i in part] for part in cut_evenly(lengths, parts)]
        return [_batch(batch, any(row.source for row in batch)) for batch in batches]

    def close(self) -> None:
        """Stop working ahead."""
        for pool in (self._makers, self._loaders):
            pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def _make(self, number: int, share: Share) -> Portion:
        epoch, place = self._place(number)
        plans = self._epoch(epoch)
        window = 0
        while place >= plans[window].batches:
            place -= plans[window].batches
            window += 1
        following = (epoch, window + 1) if window + 1 < len(plans) else (epoch + 1, 0)
        held = self._window(epoch, window, share)
        self._window(*following, share)  # begins to read what will be needed next
        loaded = held.result()
        own = loaded.batches[place]
        parts = []
        for items_of_rows in own.parts:
            rows = [_row(items, self._train, loaded.groups) for items in items_of_rows]
            parts.append(_batch(rows, own.sourced, own.packed) if rows else self._nothing())
        return Portion(parts, torch.tensor(own.lengths))

    def _nothing(self) -> Batch:
        """Return a row of length 0, as `Batch.rows` does where there are none."""
        tokens: list[list[Tokens]] | None = None if self._tokenize is None else [[]]
        return Batch(torch.zeros(1, 1, self._dim), torch.tensor([0]), tokens=tokens)

    # --- epochs and windows

    def _place(self, number: int) -> tuple[int, int]:
        """Return the epoch of a batch, and its number there."""
        while self._ends[-1] <= number:
            self._epoch(len(self._ends) - 1)
        epoch = int(np.searchsorted(self._ends, number, side="right")) - 1
        return epoch, number - self._ends[epoch]

    def _epoch(self, epoch: int) -> list[_Plan]:
        with self._lock:
            while len(self._ends) <= epoch + 1:
                plans = self._plans(len(self._ends) - 1)
                self._ends.append(self._ends[-1] + sum(plan.batches for plan in plans))
            return self._plans(epoch)

    def _plan(self, epoch: int) -> list[_Plan]:
        """Deal the row groups of an epoch into windows, at random."""
        units = [
            (number, group, docs)
            for number, corpus in enumerate(self._train)
            for docs_of_pass in corpus.passes(epoch, (self.seed, number))
            for group, docs in corpus.by_group(docs_of_pass)
        ]
        order = np.random.default_rng([self.seed, epoch]).permutation(len(units))
        sizes = np.array([self._train[units[i][0]].size(units[i][2]) for i in order])
        least = max(WINDOW_BYTES // (2 * self._dim), WINDOW_BATCHES * self.options.batch_concepts)
        if not len(units):
            raise IntegrityError(f"epoch {epoch + 1} is empty", "raise the weights in [data]")
        row = max(self._longest, self._wrap if self.options.packing else 0)
        plans, batch = [], max(self.options.batch_concepts, row)
        for number, part in enumerate(cut_evenly(sizes, max(1, int(sizes.sum()) // least))):
            batches = -(-int(sizes[part].sum()) // batch)
            plans.append(_Plan(epoch, number, [units[order[i]] for i in part], batches))
        return plans

    def _window(self, epoch: int, number: int, share: Share) -> "Future[_Window]":
        plan = self._epoch(epoch)[number]
        with self._lock:
            found = self._windows.get((epoch, number, share))
            if found is None:
                found = self._loaders.submit(self._load, plan, share)
                self._windows[epoch, number, share] = found
                while len(self._windows) > 3:  # this one, the next, and one that may be in use
                    self._windows.popitem(last=False)
        return found

    def _load(self, plan: _Plan, share: Share) -> _Window:
        batches = [_own(rows, share) for rows in self._arrange(plan)]
        needed: dict[tuple[int, int], set[int]] = {}
        for item in (x for own in batches for part in own.parts for row in part for x in row):
            needed.setdefault(item.place, set()).add(item.row)
        groups = {}
        for (corpus, group), rows in sorted(needed.items()):
            read = self._train[corpus].index.read(group, self._dim)
            if share.size > 1:  # others have most of it
                read = [each.only(np.array(sorted(rows))) for each in read]
            groups[corpus, group] = read
        return _Window(batches, groups)

    def _arrange(self, plan: _Plan) -> list[list[list[Item]]]:
        """Put the documents of a window into rows, and those of like length into batches."""
        rng = np.random.default_rng([self.seed, plan.epoch, plan.number])
        items = [
            item
            for corpus, _, docs in plan.units
            for item in self._train[corpus].items(corpus, docs)
        ]
        items = [items[i] for i in rng.permutation(len(items))]
        rows = share_rows(items, self._wrap) if self.options.packing else [[item] for item in items]
        rows.sort(key=lambda row: sum(item.length for item in row))  # equal ones stay shuffled
        lengths = np.array([sum(item.length for item in row) for row in rows])
        batches = [[rows[i] for i in part] for part in cut_evenly(lengths, plan.batches)]
        return [batches[i] for i in rng.permutation(len(batches))]


def prompt_of(entry: DataSet, prompts: Mapping[str, str]) -> list[str]:
    """Return what stands between source and target; raises IntegrityError for an unknown task."""
    if not entry.task:
        return []
    if entry.task not in prompts:
        known = ", ".join(sorted(prompts)) or "none"
        raise IntegrityError(
            f"{entry.path}: the model has no prompt for the task {entry.task!r}",
            f"its tasks: {known}; add it to the model's prompts",
        )
    return [prompts[entry.task]]


class _Sentences:
    """Encodes what is put before, between and after documents, each sentence once."""

    def __init__(
        self,
        encode: Encode | None,
        tokenize: Tokenize | None,
        dim: int,
        prompts: Mapping[str, str],
        prefix: Sequence[str],
        suffix: Sequence[str],
    ) -> None:
        self._encode, self._tokenize = encode, tokenize
        self._dim, self._prompts = dim, prompts
        self._known: dict[str, Floats] = {}
        self._prefix, self._suffix = prefix, suffix
        self._concepts([*prefix, *suffix])

    def of(self, entry: DataSet) -> Affixes:
        """Return what is put around the documents of `entry`."""
        around = self._prefix, prompt_of(entry, self._prompts), self._suffix
        prefix_PD, prompt_PD, suffix_PD = map(self._concepts, around)
        if self._tokenize is None:
            return Affixes(prefix_PD, prompt_PD, suffix_PD)
        before, between, after = (self._tokenize(part, "") for part in around)
        return Affixes(prefix_PD, prompt_PD, suffix_PD, (before, between, after))

    def closing(self, sentence: str) -> Break:
        """Return what closes a paragraph, by its sentence."""
        concept_D = self._concepts([sentence])[0]
        tokens = None if self._tokenize is None else self._tokenize([sentence], "")[0]
        return Break(concept_D, tokens)

    def _concepts(self, sentences: Sequence[str]) -> Floats:
        new = [text for text in dict.fromkeys(sentences) if text not in self._known]
        if new:
            self._known |= zip(new, self._encoded(new), strict=True)
        rows = [self._known[text] for text in sentences]
        return np.stack(rows) if rows else np.zeros((0, self._dim), np.float32)

    def _encoded(self, sentences: list[str]) -> Floats:
        if self._encode is None:
            raise UsageError(
                f"without a space {sentences[0]!r} has no concept",
                "name a space, or set [data] suffix = []",
            )
        concepts: Floats = self._encode(sentences).detach().float().cpu().numpy()
        if concepts.shape != (len(sentences), self._dim):
            raise IntegrityError(
                f"the space's concepts have {concepts.shape[-1]} dimensions, the model's"
                f" {self._dim}",
                "the model and its data belong to another space",
            )
        return concepts


def _own(rows: list[list[Item]], share: Share) -> _Own:
    lengths = [sum(item.length for item in row) for row in rows]
    return _Own(
        [[rows[number] for number in part] for part in share.rows(lengths)],
        lengths,
        sourced=any(item.source for row in rows for item in row),
        packed=any(len(row) > 1 for row in rows),
    )


def _row(items: Sequence[Item], corpora: Sequence[Corpus], groups: Groups) -> BatchRow:
    owners = [(item, corpora[item.place[0]], groups[item.place]) for item in items]
    found = [corpus.concepts_of(item, read) for item, corpus, read in owners]
    said = [corpus.tokens_of(item, read) for item, corpus, read in owners]
    tokens = None if said[0] is None else [each for part in said for each in part or ()]
    woven = _joined([corpus.woven_of(item, read) for item, corpus, read in owners])
    fragility = _joined([corpus.fragility_of(item, read) for item, corpus, read in owners])
    return BatchRow(
        found, [item.length for item in items], items[0].source, tokens, woven, fragility
    )


def _joined(marks: Sequence[Marks | None]) -> Marks | None:
    """Return the marks of all items; either all have some, or none."""
    found = [mark for mark in marks if mark is not None]
    return np.concatenate(found) if found else None


def _padded(marks: Sequence[Marks | None], longest: int, neutral: float = 0) -> Tensor | None:
    """Return the marks of all rows, (B, S), or None likewise."""
    found = [mark for mark in marks if mark is not None]
    if not found:
        return None
    marks_BS = np.full((len(found), longest), neutral, found[0].dtype)
    for number, mark in enumerate(found):
        marks_BS[number, : len(mark)] = mark
    return torch.from_numpy(marks_BS)


def _batch(rows: Sequence[BatchRow], sourced: bool, packed: bool = False) -> Batch:
    """Put rows into one padded array, each concept in one copy; with sources, with segments.

    By numpy: torch would start threads of its own in each thread that works ahead.
    """
    longest, dim = max(row.length for row in rows), rows[0].documents[0][0].shape[1]
    x_BSD = np.zeros((len(rows), longest, dim), np.float32)
    segments_BS = np.full((len(rows), longest), PADDING)
    for number, row in enumerate(rows):
        start = 0
        for part in (part for document in row.documents for part in document):
            x_BSD[number, start : start + len(part)] = part
            start += len(part)
        segments_BS[number, :start] = np.repeat(np.arange(len(row.lengths)), row.lengths)
    return Batch(
        torch.from_numpy(x_BSD),
        torch.tensor([row.length for row in rows]),
        torch.tensor([row.source for row in rows]) if sourced else None,
        torch.from_numpy(segments_BS) if packed else None,
        None if rows[0].tokens is None else tuple(row.tokens or [] for row in rows),
        _padded([row.woven for row in rows], longest),
        _padded([row.fragility for row in rows], longest, np.nan),
    )


def _common_space(corpora: Sequence[Corpus]) -> SpaceInfo | None:
    spaces = [corpus.index.space for corpus in corpora if corpus.index.space is not None]
    for space in spaces[1:]:
        check_same_space(spaces[0], space, "the data")
    return spaces[0] if spaces else None


def _all_planned(corpora: Sequence[Corpus]) -> bool:
    """Return whether the plain documents have plans. Raises IntegrityError if only some have."""
    plain = sum(int((corpus.index.target == 0).sum()) for corpus in corpora)
    planned = sum(int(corpus.index.planned.sum()) for corpus in corpora)
    if planned not in (0, plain):
        raise IntegrityError(
            f"{planned:,} of {plain:,} documents have plans: all of them must have some, or none",
            'leave the others out: filter = "len(plans) >= 1"',
        )
    return planned > 0


def _total(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {why: sum(each[why] for each in counts) for why in counts[0]}
