"""Lengths of summaries, and the choice of sentences that fill them."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import Literal

from lcm_cli.errors import UsageError

Unit = Literal["sentences", "percent", "words"]

_UNITS: dict[str | None, Unit] = {None: "sentences", "%": "percent", "w": "words"}
_WORD = re.compile(r"\w+(?:['’-]\w+)*")
# Scripts written without spaces, and the number of their characters counted as a word.
_UNSPACED = (
    (re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"), 2),
    (re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]"), 5),
)


@dataclass(frozen=True)
class Length:
    """The desired length of a summary, in sentences, percent of the sentences, or words."""

    amount: int
    unit: Unit

    @classmethod
    def parse(cls, text: str, *, shorter: bool = True) -> "Length":
        """Parse `3` (sentences), `20%` (of the sentences) or `120w` (words).

        Raises UsageError for anything else and, if `shorter`, for more than 100%.
        """
        found = re.fullmatch(r"(\d+)([%w])?", text.strip())
        length = cls(int(found[1]), _UNITS[found[2]]) if found else cls(0, "words")
        if not length.amount or (shorter and length.unit == "percent" and length.amount > 100):
            hint = "use 3 for sentences, 20% for a share of the sentences, or 120w for words"
            raise UsageError(f"{text!r} is not a length", hint)
        return length

    def __str__(self) -> str:
        """Return the length in the form that `parse` reads."""
        return str(self.amount) + {unit: mark or "" for mark, unit in _UNITS.items()}[self.unit]


def taken(ranking: Iterable[int], words: Sequence[int], length: Length) -> list[int]:
    """Return the best sentences of a ranking for a text of `length`, in text order; at least one.

    `words` are the numbers of words of all sentences.
    """
    if length.unit == "words":
        return sorted(_within(ranking, words, length.amount))
    count = length.amount
    if length.unit == "percent":
        count = ceil(len(words) * length.amount / 100)
    return sorted(islice(ranking, count))


def count_words(text: str) -> int:
    """Count the words in `text`: runs of letters and digits.

    In scripts without spaces, a word is two characters (Chinese, Japanese) or five (Thai, Lao,
    Khmer, Burmese), rounded up.
    """
    count = 0
    for character, per_word in _UNSPACED:
        text, found = character.subn(" ", text)
        count += ceil(found / per_word)
    return count + len(_WORD.findall(text))


def _within(ranking: Iterable[int], words: Sequence[int], budget: int) -> Iterator[int]:
    """Yield the sentences that fit into `budget` words, the best first, and in any case one."""
    left, least = budget, max(1, min(words))
    for place, i in enumerate(ranking):
        if place == 0 or words[i] <= left:
            yield i
            left -= words[i]
        if left < least:  # not even the shortest sentence fits
            return
