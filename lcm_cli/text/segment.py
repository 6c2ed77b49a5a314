"""Segmentation of text into paragraphs and sentences; sentences too long for a concept are cut.

sentencex does the splitting; this module corrects its known errors. No character except white space
is ever lost, and their order is kept.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise

from lcm_cli.text import languages

MAX_CHARACTERS = 250
BLOCK = 20_000  # characters per call of sentencex, whose time is quadratic in the text's length
UNSPACED = ("Hans", "Hant", "Jpan", "Khmr", "Laoo", "Mymr", "Thai", "Tibt")


@dataclass(frozen=True)
class Segment:
    """A sentence, or a piece of one that was too long.

    `paragraph` counts from 0; `split` is true for a piece of a cut sentence.
    """

    text: str
    paragraph: int
    split: bool = False


def segment(
    text: str, lang: str, *, one_per_line: bool = False, max_characters: int = MAX_CHARACTERS
) -> list[Segment]:
    """Return the sentences of `text`, which is in the language with code `lang`.

    Blank lines end paragraphs; other line breaks have no meaning. A sentence of more than
    `max_characters` is cut at the best place available: after a sentence or clause inside it, at a
    space, or anywhere. `one_per_line` takes each line as a sentence and never cuts it.
    """
    found = []
    for number, lines in enumerate(_paragraphs(text)):
        if one_per_line:
            found += [Segment(line, number) for line in lines]
            continue
        for sentence in _sentences(_joined(lines, lang), lang):
            pieces = cut_long(sentence, max_characters)
            found += [Segment(piece, number, split=len(pieces) > 1) for piece in pieces]
    return found


def cut_long(text: str, limit: int) -> list[str]:
    """Cut `text` into pieces of at most `limit` characters and of similar lengths."""
    text = text.strip()
    if len(text) <= limit:
        return [text]
    at = _best_cut(text, limit)
    return [*cut_long(text[:at], limit), *cut_long(text[at:], limit)]


def _paragraphs(text: str) -> Iterator[list[str]]:
    """Yield the stripped lines of each paragraph."""
    lines = (line.strip() for line in text.splitlines())
    yield from (list(group) for filled, group in groupby(lines, bool) if filled)


def _joined(lines: list[str], lang: str) -> str:
    """Join wrapped lines with a space; in scripts without spaces, only between ASCII text."""
    if languages.language(lang).script not in UNSPACED:
        return " ".join(lines)
    latin = (before[-1].isascii() and after[0].isascii() for before, after in pairwise(lines))
    gaps = [*(" " if both else "" for both in latin), ""]
    return "".join(line + gap for line, gap in zip(lines, gaps, strict=True))


def _sentences(paragraph: str, lang: str) -> Iterator[str]:
    from sentencex import segment as split

    one = languages.language(lang)
    code = one.iso639_1 or one.iso639_3  # sentencex has fallbacks for languages it does not know
    for block in cut_long(paragraph, BLOCK):
        pieces = (piece for found in split(code, block) for piece in _missed(found))
        yield from (sentence.strip() for sentence in _mended(_opened(pieces), code))


# Corrections of sentencex 1.0: sentence ends that it misses, and splits where no sentence ends.

_CLOSERS = r"[\"'”’»›)\]」』）】》]*"
_OPEN, _CLOSE = "「『（【《“", "」』）】》”"

# Khmer and Tibetan full stops, two Ethiopic word spaces used as a full stop, and 。 before a digit.
_UNSEEN = re.compile(rf"(?:[។៕]|།(?=\s)|፡፡|[。！？](?=\d)){_CLOSERS}\s*")

# No sentence ends after these: titles and, in these languages, initials ("M. X", "D. Juan").
_TITLES = {
    "fr": re.compile(r"(?<!\w)(?:MM|Mme|Mlle|Mgr|Me|Dr|Pr|Ste?|(?:[A-Z]\.-)?[A-Z])\.\s*$"),
    "es": re.compile(r"(?<!\w)(?:Dña|[A-Z])\.\s*$"),
    "nl": re.compile(r"(?<!\w)(?:Mevr|Mw)\.\s*$"),
}
_DOTTED = re.compile(r"(?<!\w)(?:[^\W\d]\.[-\s]?)+$")  # "p. m.", "o.a.", "J.-C."
_NUMBER = re.compile(r"\s*\(?(?:\d{1,3}|[a-zA-Z])[.)]\s*")  # "2." of a list
_CLOSED = re.compile(r"[\"'”’»“]\s*$")  # '"Stop!" cried the hen.' is one sentence
_OPENER = re.compile(r"(?<=\s)[«„“‘(\[]\s*$")
_REPORTED = re.compile(r"と|って|など|という")  # 「……」と言いました is one sentence


def _missed(piece: str) -> Iterator[str]:
    """Yield the sentences of a piece, split at the sentence ends that sentencex misses."""
    start = 0
    for end in _UNSEEN.finditer(piece):
        before = piece[: end.end()]
        if sum(map(before.count, _OPEN)) <= sum(map(before.count, _CLOSE)):  # not in a quotation
            yield piece[start : end.end()]
            start = end.end()
    yield piece[start:]


def _opened(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the pieces, moving an opening quotation mark at the end of one to the next."""
    opener = ""
    for piece in pieces:
        whole = opener + piece
        found = _OPENER.search(whole)
        opener = found.group() if found else ""
        yield whole.removesuffix(opener)
    yield opener


def _mended(pieces: Iterable[str], code: str) -> Iterator[str]:
    """Yield sentences: pieces, joined where no sentence ends between them.

    Pieces without letters or digits, such as lone quotation marks, join their neighbour.
    """
    sentence, has_words = "", False
    for piece in pieces:
        adds_words = any(map(str.isalnum, piece))
        if has_words and adds_words and _ends(sentence[-20:], piece, code):
            yield sentence
            sentence = ""
        sentence += piece
        has_words |= adds_words
    if sentence.strip():
        yield sentence


def _ends(tail: str, following: str, code: str) -> bool:
    """Return whether a sentence ends after `tail`, given the text that follows."""
    if _NUMBER.fullmatch(tail) or (code in _TITLES and _TITLES[code].search(tail)):
        return False
    if code == "ja" and tail.endswith(("」", "』")) and _REPORTED.match(following):
        return False
    continues = following[0].islower() or following[0] == "-"
    return not (continues and (_DOTTED.search(tail) or _CLOSED.search(tail)))


_SENTENCE_END = rf"[.!?…؟۔।॥።፧။]+{_CLOSERS}(?=\s)|[。！？｡]+{_CLOSERS}|[។៕]{_CLOSERS}|།(?=\s)"
_CLAUSE_END = rf"[,;:–،؛՝·၊]{_CLOSERS}(?=\s)|(?<=\s)-(?=\s)|[—，、；：፣፤፥៖]{_CLOSERS}"
_CUTS = tuple(re.compile(mark) for mark in (_SENTENCE_END, _CLAUSE_END, r"[\s\u200b፡]+"))


def _best_cut(text: str, limit: int) -> int:
    """Return the index of the best kind of place near an even division."""
    parts = -(-len(text) // limit)
    # Both sides are cut further: divide in the proportion of the numbers of pieces they will make.
    even = len(text) * (parts // 2) / parts
    for mark in _CUTS:
        ends = [found.end() for found in mark.finditer(text)]
        near = [end for end in ends if abs(end - even) <= min(even, len(text) - even) / 2]
        if near:
            return min(near, key=lambda end: abs(end - even))
    return _between_characters(text, round(even))


def _between_characters(text: str, at: int) -> int:
    """Return `at`, or the nearest index before it that separates no letter from its marks."""
    return next((i for i in range(at, max(at - 20, 0), -1) if not _joins(text, i)), at)


def _joins(text: str, at: int) -> bool:
    """Return whether the character at `at` belongs to the one before, as accents do."""
    return (
        unicodedata.category(text[at]) in ("Mn", "Mc", "Me", "Sk", "Cf") or text[at - 1] == "\u200d"
    )
