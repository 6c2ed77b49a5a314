"""The places of sentences in the passage from which they were cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lcm_cli.documents.formats.skeleton import Pair
from lcm_cli.text.blocks import INVISIBLE

_FARTHEST = 1000  # most characters, chiefly white space, between two of a sentence


def locate(text: str, sentences: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the range of each sentence in `text`, from which they were cut in this order.

    Segmentation changes white space, joins hyphenated line ends and drops invisible characters, so
    the characters of `text` that a sentence lacks are skipped.
    """
    at = 0
    for sentence in sentences:
        first_word = sentence.split(maxsplit=1)[:1]
        begin = text.find(first_word[0], at) if first_word else at
        end = begin = begin if begin >= 0 else _first(text, sentence, at)
        for character in sentence:
            if (
                not character.isspace()
                and (found := text.find(character, end, end + _FARTHEST)) >= 0
            ):
                end = found + 1
        at = end
        yield begin, end


def completed(text: str, pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs with the text that segmentation drops between them: bullets, numbers."""
    found: list[Pair] = []
    at = 0
    for (old, new), (start, end) in zip(pairs, locate(text, [o for o, _ in pairs]), strict=True):
        left = _visible(text[at:start])
        found.append((left + old, left + new))
        at = end
    if found and (rest := _visible(text[at:]).rstrip()):
        found[-1] = (found[-1][0] + rest, found[-1][1] + rest)
    return found


def _visible(text: str) -> str:
    """Return the text dropped between sentences, or an empty string if it is invisible."""
    return text.lstrip() if text.strip(INVISIBLE + " \t\n\r\f\v") else ""


def _first(text: str, sentence: str, at: int) -> int:
    """Return the place of the first character of `sentence` that occurs in `text` after `at`."""
    places = (text.find(character, at) for character in sentence if not character.isspace())
    return next((place for place in places if place >= 0), at)
