"""Segmentation of text into paragraphs and sentences; sentences too long for a concept are cut.

sentencex splits block by block (see `blocks`), and `corrections` corrects its known errors. Except
for layout (white space, bullets, list numbers, marks of headings and rules), invisible characters
(see `_removed`) and hyphens at line ends, all characters are kept, in order.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from lcm_cli.text import languages
from lcm_cli.text.blocks import INVISIBLE, blocks
from lcm_cli.text.corrections import sentences
from lcm_cli.text.sentence_ends import CLOSERS
from lcm_cli.text.unwrap import Unwrapper

Split = Literal["auto", "sat"]  # by rules, or by the model SaT

MAX_CHARACTERS = 250
BLOCK = 20_000  # characters per call of sentencex, whose time is quadratic in the text's length


@dataclass(frozen=True)
class Segment:
    """A sentence, or a piece of one that was too long.

    `paragraph` counts from 0; `split` is true for a piece of a cut sentence. `block` is the index
    of the sentence's block in `blocks(text)`. With one sentence per line, `line` is the index of
    the line in the text, counted from 0, and `block` is -1; otherwise `line` is -1.
    """

    text: str
    paragraph: int
    split: bool = False
    block: int = -1
    line: int = -1


def segment(
    text: str,
    lang: str,
    *,
    one_per_line: bool = False,
    max_characters: int = MAX_CHARACTERS,
    split: Split = "auto",
) -> list[Segment]:
    """Return the sentences of `text`, which is in the language with code `lang`.

    Blank lines end paragraphs; headings and list items are sentences of their own (see `blocks`);
    other line breaks have no meaning. A sentence of more than `max_characters` is cut at the best
    place available: after a sentence or clause inside it, at a space, or anywhere. `one_per_line`
    takes each line as a sentence and never cuts it; blank lines have no segment.

    `split` is "auto" for rules, or "sat" for the model SaT, which does not rely on punctuation.
    Raises UsageError if its package is missing, NotFoundError if its weights are.
    """
    if one_per_line:
        return _lines(text, lang)
    unwrapper, removed = Unwrapper(text, lang), _removed(lang)
    sentences_of = _splitter(lang, split)
    found = []
    for number, block in enumerate(blocks(text)):
        line = unwrapper.joined(text[block.start : block.end]).translate(removed)
        for sentence in sentences_of(line):
            pieces = cut_long(sentence, max_characters)
            for piece in pieces:
                found.append(Segment(piece, block.paragraph, len(pieces) > 1, number))
    return found


def _lines(text: str, lang: str) -> list[Segment]:
    """Return a segment for each line that is not blank."""
    found: list[Segment] = []
    paragraph, after_blank, removed = -1, True, _removed(lang)
    for number, raw in enumerate(text.split("\n")):
        line = raw.translate(removed).strip()
        if line:
            paragraph += after_blank
            found.append(Segment(line, paragraph, line=number))
        after_blank = not line
    return found


def cut_long(text: str, limit: int) -> list[str]:
    """Cut `text` into pieces of at most `limit` characters and of similar lengths."""
    text = text.strip()
    if len(text) <= limit:
        return [text]
    at = _best_cut(text, limit)
    return [*cut_long(text[:at], limit), *cut_long(text[at:], limit)]


_WORD_SPACED = ("Khmr", "Laoo", "Mymr", "Thai")
_LINE_ENDS = dict.fromkeys(map(ord, "\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"), " ")
_REMOVED: dict[int, str] = _LINE_ENDS | dict.fromkeys(map(ord, INVISIBLE), "")
_ZERO_WIDTH_SPACE = {0x200B: "\u200b"}


def _removed(lang: str) -> dict[int, str]:
    """Return the table that removes soft hyphens, zero width spaces, word joiners and BOMs.

    In Khmer, Lao, Burmese and Thai, zero width spaces stay: they separate words, and long sentences
    are cut there. Other characters that Unicode counts as line ends become spaces.
    """
    kept = languages.language(lang).script in _WORD_SPACED
    return _REMOVED | _ZERO_WIDTH_SPACE if kept else _REMOVED


def _splitter(lang: str, how: str) -> Callable[[str], Iterable[str]]:
    """Return the function that splits a line of prose into sentences."""
    if how == "sat":
        from lcm_cli.text import sat

        return sat.split
    one = languages.language(lang)
    code = one.iso639_1 or one.iso639_3  # sentencex has fallbacks for languages it does not know
    return lambda line: (part for whole in cut_long(line, BLOCK) for part in sentences(whole, code))


_SENTENCE_END = rf"[.!?…؟۔।॥።፧။]+{CLOSERS}(?=\s)|[。！？｡]+{CLOSERS}|[។៕]{CLOSERS}|།(?=\s)"
_CLAUSE_END = rf"[,;:–،؛՝·၊]{CLOSERS}(?=\s)|(?<=\s)-(?=\s)|[—，、；：፣፤፥៖]{CLOSERS}"
_CUTS = tuple(re.compile(mark) for mark in (_SENTENCE_END, _CLAUSE_END, r"[\s\u200b፡]+"))


def _best_cut(text: str, limit: int) -> int:
    """Return the index of the best place to cut near an even division."""
    parts = -(-len(text) // limit)
    # Both sides are cut further: divide in proportion to the numbers of pieces they will make.
    even = len(text) * (parts // 2) / parts
    for mark in _CUTS:
        ends = [found.end() for found in mark.finditer(text)]
        near = [end for end in ends if abs(end - even) <= min(even, len(text) - even) / 2]
        if near:
            return min(near, key=lambda end: abs(end - even))
    return _between_characters(text, round(even))


def _between_characters(text: str, at: int) -> int:
    """Return `at`, or the nearest index before it that does not split a letter from its marks."""
    return next((i for i in range(at, max(at - 20, 0), -1) if not _joins(text, i)), at)


def _joins(text: str, at: int) -> bool:
    """Return whether the character at `at` belongs to the one before, as accents do."""
    return (
        unicodedata.category(text[at]) in ("Mn", "Mc", "Me", "Sk", "Cf") or text[at - 1] == "\u200d"
    )
