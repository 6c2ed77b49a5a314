"""Parallel and monolingual text for training a space: read, tokenize, pair, pack.

The data are JSON Lines (also .gz, .xz): one object a line, language code -> sentence, or several
sentences that say the same. What stands in one line is translations of each other.

All token ids lie end to end in one array on the device that trains. A batch is a list of sentence
numbers; its rows are gathered there, so that nothing but these numbers is moved in a step.

Everything random is a function of (seed, epoch): resuming needs no saved state.

Shapes: N pairs, R rows, T tokens of the packed batch.
"""

import gzip
import json
import lzma
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lcm_cli.errors import IntegrityError, NotFoundError
from lcm_cli.space.tokenizer import EOS, Tokenizer
from lcm_cli.space.transformer import Packed

Translations = dict[str, list[str]]
NONE = -1  # in place of a sentence's number


def read_translations(path: Path) -> Iterator[Translations]:
    """Yield one dict (language code -> sentences) a line.

    Raises NotFoundError for a missing file, IntegrityError for a line of another form.
    """
    if not path.is_file():
        raise NotFoundError(f"no such file: {path}", "check the recipe's [data] paths")
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            yield _parse(line, f"{path}:{number}")


def _open(path: Path) -> TextIO:
    openers = {".gz": gzip.open, ".xz": lzma.open}
    opener = openers.get(path.suffix, open)
    return opener(path, "rt", encoding="utf-8")  # type: ignore[operator]


def _parse(line: str, where: str) -> Translations:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise IntegrityError(f"{where}: not JSON: {error}") from error
    if isinstance(value, dict):
        value = {code: [text] if isinstance(text, str) else text for code, text in value.items()}
        if all(isinstance(t, list) and t and _all_text(t) for t in value.values()):
            return value
    hint = 'a line looks like {"eng_Latn": "Good day.", "fra_Latn": ["Bonjour.", "Salut."]}'
    raise IntegrityError(f"{where}: not an object of language code -> sentence", hint)


def _all_text(values: list[object]) -> bool:
    return all(isinstance(value, str) for value in values)


@dataclass(frozen=True)
class Pairs:
    """Pairs of sentences, on the device.

    `sentences_N4` are numbers: of the left side, of what is joined to it, and the same of the right
    side; NONE where there is nothing. `aligned_N` is false for two sentences that only travel
    together. `swap_N` says which sides are to be decoded into each other, not into themselves.
    """

    sentences_N4: Tensor
    aligned_N: Tensor
    swap_N: Tensor

    def __len__(self) -> int:
        return len(self.aligned_N)

    def __getitem__(self, span: slice) -> "Pairs":
        return Pairs(self.sentences_N4[span], self.aligned_N[span], self.swap_N[span])

    def padded(self, pairs: int) -> "Pairs":
        """Return these and as many empty pairs as make up `pairs`."""
        more = pairs - len(self)
        return Pairs(
            F.pad(self.sentences_N4, (0, 0, 0, more), value=NONE),
            F.pad(self.aligned_N, (0, more)),
            F.pad(self.swap_N, (0, more)),
        )

    def sides(self) -> Tensor:
        """Return the numbers of all left sides, then all right sides, (2 N, 2)."""
        return torch.cat([self.sentences_N4[:, :2], self.sentences_N4[:, 2:]])

    def targets(self) -> Tensor:
        """Return what each side is to be decoded into, (2 N, 2)."""
        left, right = self.sentences_N4[:, :2], self.sentences_N4[:, 2:]
        swap = self.swap_N[:, None]
        return torch.cat([torch.where(swap, right, left), torch.where(swap, left, right)])


@dataclass(frozen=True)
class Room:
    """Fixed sizes that a batch is filled up to, so that every step does the same on the device."""

    pairs: int
    tokens: int
    longest: int

    @property
    def spare_rows(self) -> int:
        """Rows behind the batch's own, which take up the tokens that it leaves."""
        return -(-self.tokens // self.longest)


class ParallelText:
    """Tokenized translations in memory, paired and batched anew each epoch."""

    def __init__(
        self,
        sets: Iterable[tuple[Iterable[Translations], float]],
        tokenizer: Tokenizer,
        max_tokens: int,
        longest: int,
        device: torch.device,
    ) -> None:
        """Tokenize data sets, each with how often an epoch shows its lines (0.5: every other).

        Sentences over `max_tokens` are counted in `skipped` and left out, and pairs are joined up
        to `longest`. Raises IntegrityError if nothing is left, or a language is not one of the
        tokenizer's.
        """
        self.longest, self.device = longest, device
        texts: dict[str, list[str]] = {}
        homes: dict[str, list[int]] = {}
        weights: list[float] = []
        for lines, weight in sets:
            for line in lines:
                for code, found in line.items():
                    if not tokenizer.knows(code):
                        raise IntegrityError(f"the training data have {code!r}, the space has not")
                    texts.setdefault(code, []).extend(found)
                    homes.setdefault(code, []).extend([len(weights)] * len(found))
                weights.append(weight)
        self.skipped = 0
        parts = [self._tokenize(tokenizer, c, texts.pop(c), max_tokens) for c in sorted(texts)]
        if not any(kept.any() for _, _, kept in parts):
            raise IntegrityError("the training data hold no sentence", "check [data] in the recipe")
        flat = np.concatenate([flat for flat, _, _ in parts])
        self._lengths = np.concatenate([lengths for _, lengths, _ in parts])
        starts = np.cumsum(self._lengths) - self._lengths
        self._languages = flat[starts]
        home = np.concatenate(
            [np.array(homes[c])[kept] for c, (_, _, kept) in zip(sorted(homes), parts, strict=True)]
        )
        self._group(home, np.array(weights))
        self._tokens = torch.from_numpy(flat).to(device)
        self._starts = torch.from_numpy(starts).to(device)
        self._lengths_on_device = torch.from_numpy(self._lengths).to(device)

    def _tokenize(
        self, tokenizer: Tokenizer, code: str, texts: list[str], max_tokens: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the token ids of a language end to end, their lengths, which texts are in."""
        rows = tokenizer.encode(texts, code)
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        kept = lengths <= max_tokens
        self.skipped += int((~kept).sum())
        tokens = chain.from_iterable(row for row in rows if len(row) <= max_tokens)
        return np.fromiter(tokens, dtype=np.int32), lengths[kept], kept

    def _group(self, home: np.ndarray, weights: np.ndarray) -> None:
        """Sort sentences by line and, since they came so, by language within a line.

        For each place in that order `_first` and `_last` bound the sentences of its language.
        """
        self._members = np.argsort(home, kind="stable")
        home, languages = home[self._members], self._languages[self._members]
        new_line = np.diff(home, prepend=-1) != 0
        new_language = new_line | (np.diff(languages, prepend=-1) != 0)
        self._begin = np.flatnonzero(new_line)
        self._size = np.diff(self._begin, append=len(home))
        run = np.cumsum(new_language) - 1
        first = np.flatnonzero(new_language)
        self._first, self._last = first[run], np.append(first[1:], len(home))[run]
        self._weights = weights[home[self._begin]]

    def __len__(self) -> int:
        """How many lines there are."""
        return len(self._size)

    def epoch(
        self, seed: int, epoch: int, tokens: int, *, join: float, translate: float
    ) -> tuple[Pairs, list[slice]]:
        """Return the pairs of an epoch, and which of them are the batches.

        A line of n sentences gives n - 1 pairs of them, of two languages if it has two. Sentences
        that are alone travel two by two. A share `join` of the pairs is joined two by two: longer
        sentences than the data have. A share `translate` of the aligned ones is swapped. A batch
        has about `tokens` tokens a side; on CPUs its sentences are of like lengths, as attention
        there takes those of one length at once.
        """
        rng = np.random.default_rng([seed, epoch])
        sentences_N4, aligned_N = self._join(*self._pair(rng), join, rng)
        swap_N = (rng.random(len(aligned_N)) < translate) & aligned_N
        size_N = self._side_lengths(sentences_N4).sum(axis=1)
        order = rng.permutation(len(size_N))
        if self.device.type == "cpu":
            windows = np.cumsum(size_N[order]) // (128 * tokens)
            order = order[np.lexsort((size_N[order], windows))]
        cuts = np.flatnonzero(np.diff(np.cumsum(size_N[order]) // (2 * tokens))) + 1
        bounds = [0, *cuts.tolist(), len(order)]
        batches = [slice(a, b) for a, b in pairwise(bounds)]
        arrays = (sentences_N4[order], aligned_N[order], swap_N[order])
        pairs = Pairs(*(torch.from_numpy(a).to(self.device) for a in arrays))
        return pairs, [batches[i] for i in rng.permutation(len(batches))]

    def _pair(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return sentence numbers (N, 2), and which of them are translations."""
        times = self._weights * np.maximum(self._size - 1, 1)
        shown = np.floor(times + rng.random(len(self))).astype(np.int64)
        line = np.repeat(np.arange(len(self)), shown)
        begin, size = self._begin[line], self._size[line]
        left = begin + (rng.random(len(line)) * size).astype(np.int64)
        first, last = self._first[left], self._last[left]
        others = size - (last - first)  # in other languages
        chance = rng.random(len(line))
        right = begin + (chance * others).astype(np.int64)
        right += np.where(right >= first, last - first, 0)
        same = begin + (left - begin + 1 + (chance * (size - 1)).astype(np.int64)) % size
        right = np.where(others > 0, right, same)
        several = size > 1
        pairs = self._members[np.stack([left, right], axis=1)]
        alone = rng.permutation(pairs[~several, 0])
        if len(alone) % 2:
            alone = np.append(alone, alone[-1])
        both = np.concatenate([pairs[several], alone.reshape(-1, 2)])
        return both, np.arange(len(both)) < several.sum()

    def _join(
        self, pairs_N2: np.ndarray, aligned_N: np.ndarray, share: float, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Join a share of the aligned pairs to others of the same languages, two by two."""
        left, right = pairs_N2.T
        empty = np.full_like(left, NONE)
        sentences_N4 = np.stack([left, empty, right, empty], axis=1)
        chosen = np.flatnonzero(aligned_N & (rng.random(len(left)) < share))
        chosen = chosen[rng.permutation(len(chosen))]
        languages = self._languages[pairs_N2[chosen]].astype(np.int64)
        key = languages[:, 0] << 32 | languages[:, 1]
        order = np.argsort(key, kind="stable")
        chosen, key = chosen[order], key[order]
        # Neighbours of one key, counted from its first, make a pair: 0 and 1, 2 and 3 ...
        place = np.arange(len(key)) - np.searchsorted(key, key)
        here = np.flatnonzero((place[:-1] % 2 == 0) & (key[:-1] == key[1:]))
        one, other = chosen[here], chosen[here + 1]
        fits = (self._lengths[pairs_N2[one]] + self._lengths[pairs_N2[other]]).max(
            axis=1, initial=0
        ) <= self.longest
        one, other = one[fits], other[fits]
        sentences_N4[one, 1], sentences_N4[one, 3] = left[other], right[other]
        kept = np.ones(len(left), dtype=bool)
        kept[other] = False
        return sentences_N4[kept], aligned_N[kept]

    def _side_lengths(self, sentences_N4: np.ndarray) -> np.ndarray:
        """Return the tokens of both sides, (N, 2); two that are joined share [lang] and </s>."""
        lengths = np.where(sentences_N4 == NONE, 2, self._lengths[sentences_N4])
        sides: np.ndarray = lengths.reshape(-1, 2, 2).sum(axis=2) - 2
        return sides

    def room(self, batches: Iterable[slice], tokens: int) -> Room:
        """Return sizes that all of an epoch's batches fit into, with a little to spare."""
        most = max(batch.stop - batch.start for batch in batches)
        return Room(-(-most * 21 // 20), 2 * (tokens + self.longest), self.longest)

    def rows(self, sentences_R2: Tensor, room: Room | None = None) -> tuple[Packed, Tensor]:
        """Gather rows [lang] x </s>, or [lang] x y </s> for two; returns them and their order.

        Without `room` they are sorted by length, and row i is number order_R[i] of those given.
        With it they stay in their order, and spare rows follow, so that nothing waits for the
        device.
        """
        first_R, second_R = sentences_R2.unbind(1)
        length_R = self.lengths(sentences_R2)
        # How much of the first is taken: all but its </s>, if another is joined to it.
        cut_R = self.lengths(sentences_R2[:, :1]) - (second_R != NONE).long()
        if room is None:
            order_R = torch.argsort(length_R, stable=True)
            total, longest = int(length_R.sum()), int(length_R.max())
        else:
            order_R = torch.arange(len(first_R), device=self.device)
            total, longest = room.tokens, room.longest
        first_R, second_R, cut_R = first_R[order_R], second_R[order_R], cut_R[order_R]
        ends_R = length_R[order_R].cumsum(0)
        spare_R = self._spare_ends(ends_R, room)
        ends_R = torch.cat([ends_R, spare_R])
        starts_R1 = F.pad(ends_R, (1, 0))
        place_T = torch.arange(total, device=self.device)
        owner_T = torch.searchsorted(ends_R, place_T, right=True)
        position_T = place_T - starts_R1[owner_T]
        own_T = owner_T < len(first_R)
        row_T = owner_T.clamp(max=len(first_R) - 1)
        beyond_T = position_T - cut_R[row_T]
        source_T = torch.where(
            beyond_T < 0,
            self._starts[first_R.clamp(min=0)][row_T] + position_T,
            self._starts[second_R.clamp(min=0)][row_T] + 1 + beyond_T,
        )
        ids_T = torch.where(own_T, self._tokens[source_T * own_T].long(), EOS)
        return Packed(ids_T, position_T, owner_T, starts_R1.int(), longest), order_R

    def lengths(self, sentences_R: Tensor) -> Tensor:
        """Return the tokens of rows of joined sentences (R, 1 or 2); they share [lang] and </s>."""
        there_R = sentences_R != NONE
        lengths_R = self._lengths_on_device[sentences_R.clamp(min=0)] * there_R
        return lengths_R.sum(dim=1) - 2 * (there_R.sum(dim=1) - 1).clamp(min=0)

    @staticmethod
    def _spare_ends(ends_R: Tensor, room: Room | None) -> Tensor:
        if room is None:
            return ends_R[:0]
        steps = torch.arange(1, room.spare_rows + 1, device=ends_R.device)
        return (ends_R[-1] + room.longest * steps).clamp(max=room.tokens)


def shifted(rows: Packed, own_rows: int) -> tuple[Packed, Tensor]:
    """Return what a decoder reads to write `rows`, </s> [lang] x, and what it is to write, (T,).

    The language is given, not written: NONE stands there, and in all rows after `own_rows`.
    """
    begins_T = rows.positions_T == 0
    wanted_T = rows.ids_T.masked_fill(begins_T | (rows.owner_T >= own_rows), NONE)
    ids_T = rows.ids_T.roll(1).masked_fill(begins_T, EOS)
    return Packed(ids_T, rows.positions_T, rows.owner_T, rows.starts_R1, rows.longest), wanted_T
