"""Parallel and monolingual text for training a space: read, tokenize, batch.

The data are JSON Lines (also .gz, .xz): one object a line, language code -> sentence. One language
is monolingual text, several are translations of each other.

Everything random is a function of (seed, epoch) or (seed, step): resuming needs no saved state.
"""

import gzip
import json
import lzma
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from lcm_cli.errors import IntegrityError, NotFoundError
from lcm_cli.space.tokenizer import EOS, Tokenizer

Translations = dict[str, str]
Item = tuple[int, ...]  # sentence numbers: (left, right), or (l1, l2, r1, r2) for a joined pair


def read_translations(paths: Sequence[Path]) -> Iterator[Translations]:
    """Yield one dict (language code -> sentence) a line.

    Raises NotFoundError for a missing file, IntegrityError for a line of another form.
    """
    for path in paths:
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
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        hint = 'a line looks like {"eng_Latn": "Good day.", "fra_Latn": "Bonjour."}'
        raise IntegrityError(f"{where}: not an object of language code -> sentence", hint)
    return value


@dataclass(frozen=True)
class Example:
    """One sentence in two languages (or twice the same): source token ids, [lang] x </s>."""

    left: list[int]
    right: list[int]


class ParallelText:
    """Tokenized translations in memory, batched anew each epoch."""

    def __init__(
        self, lines: Iterable[Translations], tokenizer: Tokenizer, max_tokens: int
    ) -> None:
        """Tokenize `lines`; sentences over `max_tokens` are counted in `skipped` and left out.

        Raises IntegrityError if nothing is left, or a language is not one of the tokenizer's.
        """
        texts: dict[str, list[str]] = {}
        homes: dict[str, list[int]] = {}
        lines_read = 0
        for line in lines:
            for code, text in line.items():
                if not tokenizer.knows(code):
                    raise IntegrityError(f"the training data have {code!r}, the space has not")
                texts.setdefault(code, []).append(text)
                homes.setdefault(code, []).append(lines_read)
            lines_read += 1
        self.skipped = 0
        self._groups: list[list[int]] = [[] for _ in range(lines_read)]
        self._tokens: list[np.ndarray] = []
        self._ends = np.zeros(1, dtype=np.int64)
        for code in sorted(texts):
            self._add(tokenizer.encode(texts[code], code), homes[code], max_tokens)
        self._flat = np.concatenate(self._tokens or [np.zeros(0, np.int32)])
        self._lengths = np.diff(self._ends)
        self._groups = [group for group in self._groups if group]
        if not self._groups:
            raise IntegrityError("the training data hold no sentence", "check [data] in the recipe")

    def _add(self, rows: Sequence[Sequence[int]], homes: Sequence[int], max_tokens: int) -> None:
        first = len(self._ends) - 1
        kept = [i for i, row in enumerate(rows) if len(row) <= max_tokens]
        self.skipped += len(rows) - len(kept)
        for number, i in enumerate(kept):
            self._groups[homes[i]].append(first + number)
        self._tokens.append(np.array([t for i in kept for t in rows[i]], dtype=np.int32))
        ends = self._ends[-1] + np.cumsum([len(rows[i]) for i in kept], dtype=np.int64)
        self._ends = np.concatenate([self._ends, ends])

    def __len__(self) -> int:
        return len(self._groups)

    def batches(self, seed: int, epoch: int, tokens: int, join: float) -> list[list[Item]]:
        """Return the batches of an epoch; an item is (left, right) or, joined, (l1, l2, r1, r2).

        A batch holds about `tokens` tokens of the longer sides, of like lengths. A share `join` of
        the pairs is joined two by two: longer sentences than the data has.
        """
        rng = np.random.default_rng([seed, epoch])
        items = [self._pick(self._groups[g], rng) for g in rng.permutation(len(self._groups))]
        items = self._join(items, join, rng)
        lengths = np.array([self._length(item) for item in items])
        window = 64 * tokens
        bins = np.cumsum(lengths) // window
        order = np.lexsort((lengths, bins))
        cuts = np.flatnonzero(np.diff(np.cumsum(lengths[order]) // tokens)) + 1
        batches = [[items[i] for i in part] for part in np.split(order, cuts) if len(part)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def example(self, item: Item) -> Example:
        """Return the token ids of an item."""
        half = len(item) // 2
        return Example(self._row(item[:half]), self._row(item[half:]))

    def _pick(self, group: list[int], rng: np.random.Generator) -> Item:
        if len(group) == 1:
            return (group[0], group[0])
        left, right = rng.choice(len(group), 2, replace=False)
        return (group[left], group[right])

    def _join(self, items: list[Item], share: float, rng: np.random.Generator) -> list[Item]:
        waiting: dict[tuple[int, int], Item] = {}
        out = []
        for item, chance in zip(items, rng.random(len(items)), strict=True):
            if chance >= share:
                out.append(item)
                continue
            pair = (self._language(item[0]), self._language(item[1]))
            other = waiting.pop(pair, None)
            if other is None:
                waiting[pair] = item
            else:
                out.append((other[0], item[0], other[1], item[1]))
        return out + list(waiting.values())

    def _length(self, item: Item) -> int:
        half = len(item) // 2
        return int(max(self._lengths[list(side)].sum() for side in (item[:half], item[half:])))

    def _language(self, sentence: int) -> int:
        return int(self._flat[self._ends[sentence]])

    def _row(self, sentences: Sequence[int]) -> list[int]:
        """Return [lang] x </s>, or [lang] x y </s> for two."""
        inner = [self._flat[self._ends[i] + 1 : self._ends[i + 1] - 1] for i in sentences]
        middle: list[int] = np.concatenate(inner).tolist()
        return [self._language(sentences[0]), *middle, EOS]
