"""Parallel and monolingual text for training a space: read, tokenize, pair, pack.

The data are JSON Lines (also .gz, .xz): one object per line, from language codes to a sentence, or
to a list of sentences with the same meaning. All sentences of a line translate each other. A
language code that begins with "machine:" marks machine translations: they are encoded, but never
decoded into (back-translation, arXiv 1511.06709).

All token ids are concatenated in one array on the training device. A batch is a list of sentence
numbers; its rows are gathered on the device, so that a step transfers only these numbers.

Everything random is a function of (seed, epoch), so that resuming needs no saved state.

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
NONE = -1  # in place of the number of a sentence or token
MACHINE = "machine:"  # begins the language code of texts that are not decoded into


def human(line: Translations) -> Translations:
    """Return a line without its machine translations."""
    return {code: texts for code, texts in line.items() if not code.startswith(MACHINE)}


def read_translations(path: Path) -> Iterator[Translations]:
    """Yield one dict (language code -> sentences) per line.

    Raises NotFoundError for a missing file, IntegrityError for a malformed line and for a file that
    is damaged or not in UTF-8.
    """
    if not path.is_file():
        raise NotFoundError(f"no such file: {path}", "check the recipe's [data] paths")
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                yield _parse(line, f"{path}:{number}")
    except UnicodeDecodeError as error:
        message = f"{path}: not UTF-8 after line {number}: {error}"
        raise IntegrityError(message, "convert the file, as in: iconv -f latin1 -t utf8") from error
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile) as error:
        message = f"{path}: damaged after line {number}: {error}"
        raise IntegrityError(message, "compress or copy the file again") from error


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
    raise IntegrityError(f"{where}: not an object from language codes to sentences", hint)


def _all_text(values: list[object]) -> bool:
    return all(isinstance(value, str) for value in values)


@dataclass(frozen=True)
class Pairs:
    """Pairs of sentences, on the device.

    `sentences_N4` are sentence numbers: of the left side, of the sentence joined to it, and the
    same for the right side; NONE where there is none. `aligned_N` is false for two sentences that
    are not translations. `swap_N2` marks the sides that are decoded into the other one, not into
    themselves.
    """

    sentences_N4: Tensor
    aligned_N: Tensor
    swap_N2: Tensor

    def __len__(self) -> int:
        return len(self.aligned_N)

    def __getitem__(self, span: slice) -> "Pairs":
        return Pairs(self.sentences_N4[span], self.aligned_N[span], self.swap_N2[span])

    def padded(self, pairs: int) -> "Pairs":
        """Return these pairs, padded with empty ones to `pairs`."""
        more = pairs - len(self)
        return Pairs(
            F.pad(self.sentences_N4, (0, 0, 0, more), value=NONE),
            F.pad(self.aligned_N, (0, more)),
            F.pad(self.swap_N2, (0, 0, 0, more)),
        )

    def sides(self) -> Tensor:
        """Return the numbers of all left sides, then all right sides, (2 N, 2)."""
        return torch.cat([self.sentences_N4[:, :2], self.sentences_N4[:, 2:]])

    def targets(self) -> Tensor:
        """Return the sentences that each side is decoded into, (2 N, 2)."""
        left, right = self.sentences_N4[:, :2], self.sentences_N4[:, 2:]
        left_N1, right_N1 = self.swap_N2[:, :1], self.swap_N2[:, 1:]
        return torch.cat([torch.where(left_N1, right, left), torch.where(right_N1, left, right)])


@dataclass(frozen=True)
class Room:
    """Fixed sizes that batches are padded to: a CUDA graph needs the same shapes each step."""

    pairs: int
    tokens: int
    longest: int

    @property
    def spare_rows(self) -> int:
        """Number of rows after the batch's own, which take up the remaining tokens."""
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
        """Tokenize data sets, each with a weight: how often an epoch uses its lines.

        Sentences over `max_tokens` are left out and counted in `skipped`; pairs are joined up to
        `longest` tokens. Raises IntegrityError if no sentence is left, or for a language that the
        tokenizer does not know.
        """
        self.longest, self.device = longest, device
        texts, homes, weights = _collect(sets, tokenizer)
        self.skipped = 0
        # Machine translations beside the other sentences of their language, as `_group` expects.
        keys = sorted(texts, key=lambda key: (key.removeprefix(MACHINE), key))
        parts = [
            # pop: a language's texts are not kept beside its tokens.
            self._tokenize(tokenizer, key.removeprefix(MACHINE), texts.pop(key), max_tokens)
            for key in keys
        ]
        human_parts = [part for key, part in zip(keys, parts, strict=True) if MACHINE not in key]
        if not any(kept.any() for _, _, kept in human_parts):
            raise IntegrityError(
                "the training data contain no sentence", "check [data] in the recipe"
            )
        flat = np.concatenate([flat for flat, _, _ in parts])
        self._lengths = np.concatenate([lengths for _, lengths, _ in parts])
        starts = np.cumsum(self._lengths) - self._lengths
        self._languages = flat[starts]  # a sentence begins with the token of its language
        home = np.concatenate(
            [np.array(homes[k])[kept] for k, (_, _, kept) in zip(keys, parts, strict=True)]
        )
        self._machine = np.concatenate(
            [
                np.full(len(lengths), key.startswith(MACHINE))
                for key, (_, lengths, _) in zip(keys, parts, strict=True)
            ]
        )
        self._group(home, np.array(weights))
        self._tokens = torch.from_numpy(flat).to(device)
        self._starts = torch.from_numpy(starts).to(device)
        self._lengths_on_device = torch.from_numpy(self._lengths).to(device)

    def _tokenize(
        self, tokenizer: Tokenizer, code: str, texts: list[str], max_tokens: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return a language's concatenated token ids, their lengths, and which texts are kept."""
        rows = tokenizer.encode(texts, code)
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        kept = lengths <= max_tokens
        self.skipped += int((~kept).sum())
        tokens = chain.from_iterable(row for row in rows if len(row) <= max_tokens)
        return np.fromiter(tokens, dtype=np.int32), lengths[kept], kept

    def _group(self, home: np.ndarray, weights: np.ndarray) -> None:
        """Sort sentences by line; within a line they stay sorted by language.

        For each position in that order, `_first` and `_last` bound the sentences of its line and
        language.
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
        """Return the number of lines."""
        return len(self._size)

    def epoch(
        self, seed: int, epoch: int, tokens: int, *, join: float, translate: float
    ) -> tuple[Pairs, list[slice]]:
        """Return the pairs of an epoch, and the batches as slices of them.

        A line of n sentences yields n - 1 pairs, of two languages if it has two. Sentences without
        a translation are paired with each other. A fraction `join` of the pairs is joined two by
        two, to learn longer sentences than the data have. A fraction `translate` of the aligned
        pairs is swapped. A batch has about `tokens` tokens per side; on CPUs its sentences are of
        similar length, because attention there processes sentences of equal length together.
        """
        rng = np.random.default_rng([seed, epoch])
        sentences_N4, aligned_N = self._join(*self._pair(rng), join, rng)
        swap_N2 = self._swaps(sentences_N4, aligned_N & (rng.random(len(aligned_N)) < translate))
        size_N = self._side_lengths(sentences_N4).sum(axis=1)
        order = rng.permutation(len(size_N))
        if self.device.type == "cpu":
            # Sort by length within blocks of 64 batches only, so that batches stay random.
            blocks = np.cumsum(size_N[order]) // (128 * tokens)
            order = order[np.lexsort((size_N[order], blocks))]
        cuts = np.flatnonzero(np.diff(np.cumsum(size_N[order]) // (2 * tokens))) + 1
        bounds = [0, *cuts.tolist(), len(order)]
        batches = [slice(a, b) for a, b in pairwise(bounds)]
        arrays = (sentences_N4[order], aligned_N[order], swap_N2[order])
        pairs = Pairs(*(torch.from_numpy(a).to(self.device) for a in arrays))
        return pairs, [batches[i] for i in rng.permutation(len(batches))]

    def _swaps(self, sentences_N4: np.ndarray, swap_N: np.ndarray) -> np.ndarray:
        """Return which sides are decoded into the other one, (N, 2).

        Both sides of the pairs in `swap_N` are, but of a pair with a machine translation only that.
        """
        machine_N2 = self._machine[sentences_N4[:, [0, 2]]]
        return np.where(machine_N2.any(axis=1)[:, None], machine_N2, swap_N[:, None])

    def _pair(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return pairs of sentence numbers (N, 2), and which pairs are translations."""
        times = self._weights * np.maximum(self._size - 1, 1)
        # Rounded at random, up or down, so that fractional weights hold on average.
        shown = np.floor(times + rng.random(len(self))).astype(np.int64)
        line = np.repeat(np.arange(len(self)), shown)
        begin, size = self._begin[line], self._size[line]
        left = begin + (rng.random(len(line)) * size).astype(np.int64)
        first, last = self._first[left], self._last[left]
        others = size - (last - first)  # sentences of the line in other languages
        chance = rng.random(len(line))
        # Draw among the others as if the left side's language were cut out of the line.
        right = begin + (chance * others).astype(np.int64)
        right += np.where(right >= first, last - first, 0)
        # In a line of one language, draw any other sentence.
        same = begin + (left - begin + 1 + (chance * (size - 1)).astype(np.int64)) % size
        right = np.where(others > 0, right, same)
        pairs = self._members[np.stack([left, right], axis=1)]
        several = size > 1
        # A pair needs a sentence to decode into, and so does a line of one sentence.
        usable = ~self._machine[pairs].all(axis=1)
        pairs, several = pairs[usable], several[usable]
        # Sentences without a translation are paired with each other; the last may be used twice.
        alone = rng.permutation(pairs[~several, 0])
        if len(alone) % 2:
            alone = np.append(alone, alone[-1])
        both = np.concatenate([pairs[several], alone.reshape(-1, 2)])
        return both, np.arange(len(both)) < several.sum()

    def _join(
        self, pairs_N2: np.ndarray, aligned_N: np.ndarray, share: float, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Join a fraction of the aligned pairs, two by two of the same languages."""
        left, right = pairs_N2.T
        empty = np.full_like(left, NONE)
        sentences_N4 = np.stack([left, empty, right, empty], axis=1)
        chosen = np.flatnonzero(aligned_N & (rng.random(len(left)) < share))
        chosen = chosen[rng.permutation(len(chosen))]
        languages = self._languages[pairs_N2[chosen]].astype(np.int64)
        # Both of two joined sentences are machine translations, or neither is.
        languages = 2 * languages + self._machine[pairs_N2[chosen]]
        # One number for the pair of languages, so that one sort brings equal pairs together.
        key = languages[:, 0] << 32 | languages[:, 1]
        order = np.argsort(key, kind="stable")
        chosen, key = chosen[order], key[order]
        # Join neighbours with the same key, counted from its first: 0 and 1, 2 and 3 ...
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
        """Return the number of tokens per side, (N, 2); joined sentences share [lang] and </s>."""
        lengths = np.where(sentences_N4 == NONE, 2, self._lengths[sentences_N4])
        sides: np.ndarray = lengths.reshape(-1, 2, 2).sum(axis=2) - 2
        return sides

    def room(self, batches: Iterable[slice], tokens: int) -> Room:
        """Return sizes that all batches of an epoch fit into, and those of most other epochs.

        With 5 % more pairs than needed, and a multiple of 64, other epochs seldom need more.
        """
        most = max(batch.stop - batch.start for batch in batches)
        return Room(-(-most * 21 // (20 * 64)) * 64, 2 * (tokens + self.longest), self.longest)

    def rows(self, sentences_R2: Tensor, room: Room | None = None) -> tuple[Packed, Tensor]:
        """Gather rows [lang] x </s>, or [lang] x y </s> for joined sentences, and their order.

        Without `room`, rows are sorted by length, and row i is number order_R[i] of the given ones.
        With `room`, rows keep their order and spare rows follow; no size has to be read from the
        device, so that the host does not wait for it.
        """
        first_R, second_R = sentences_R2.unbind(1)
        length_R = self.lengths(sentences_R2)
        # Tokens taken from the first sentence: all but its </s> if another is joined to it.
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
        # At or beyond the cut, a token comes from the second sentence, whose [lang] is skipped.
        beyond_T = position_T - cut_R[row_T]
        source_T = torch.where(
            beyond_T < 0,
            self._starts[first_R.clamp(min=0)][row_T] + position_T,
            self._starts[second_R.clamp(min=0)][row_T] + 1 + beyond_T,
        )
        # `* own_T` keeps the indices of spare rows, which are arbitrary, within bounds.
        ids_T = torch.where(own_T, self._tokens[source_T * own_T].long(), EOS)
        return Packed(ids_T, position_T, owner_T, starts_R1.int(), longest), order_R

    def languages(self, sentences_R: Tensor) -> Tensor:
        """Return the id of the language token of each sentence (R,)."""
        return self._tokens[self._starts[sentences_R.clamp(min=0)]].long()

    def lengths(self, sentences_R: Tensor) -> Tensor:
        """Return the number of tokens per row of 1 or 2 sentences, which share [lang] and </s>."""
        there_R = sentences_R != NONE
        lengths_R = self._lengths_on_device[sentences_R.clamp(min=0)] * there_R
        return lengths_R.sum(dim=1) - 2 * (there_R.sum(dim=1) - 1).clamp(min=0)

    @staticmethod
    def _spare_ends(ends_R: Tensor, room: Room | None) -> Tensor:
        if room is None:
            return ends_R[:0]
        steps = torch.arange(1, room.spare_rows + 1, device=ends_R.device)
        return (ends_R[-1] + room.longest * steps).clamp(max=room.tokens)


def _collect(
    sets: Iterable[tuple[Iterable[Translations], float]], tokenizer: Tokenizer
) -> tuple[dict[str, list[str]], dict[str, list[int]], list[float]]:
    """Return the sentences of all sets and the numbers of their lines, by key, and lines' weights.

    Lines are numbered over all sets. Raises IntegrityError for a language that the tokenizer does
    not know.
    """
    texts: dict[str, list[str]] = {}
    homes: dict[str, list[int]] = {}
    weights: list[float] = []
    for lines, weight in sets:
        for line in lines:
            for key, found in line.items():
                code = key.removeprefix(MACHINE)
                if not tokenizer.knows(code):
                    raise IntegrityError(
                        f"the training data have {code!r}, which the space does not know"
                    )
                texts.setdefault(key, []).extend(found)
                homes.setdefault(key, []).extend([len(weights)] * len(found))
            weights.append(weight)
    return texts, homes, weights


def shifted(rows: Packed, own_rows: int) -> tuple[Packed, Tensor]:
    """Return the decoder's input for `rows`, </s> [lang] x, and the tokens to predict, (T,).

    The language is given, not predicted: NONE takes its place, and fills all rows after `own_rows`.
    """
    # Rolling puts the last token of a row at the start of the next, where </s> replaces it.
    begins_T = rows.positions_T == 0
    wanted_T = rows.ids_T.masked_fill(begins_T | (rows.owner_T >= own_rows), NONE)
    ids_T = rows.ids_T.roll(1).masked_fill(begins_T, EOS)
    return Packed(ids_T, rows.positions_T, rows.owner_T, rows.starts_R1, rows.longest), wanted_T
