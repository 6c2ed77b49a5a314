"""sentencex 1.0 with corrections, for ends that it misses and splits that it should not make."""

import re
from collections.abc import Iterable, Iterator
from itertools import accumulate, pairwise

from lcm_cli.text.sentence_ends import CLOSERS, PICTURES, decide, ends_plainly


def sentences(text: str, code: str) -> Iterator[str]:
    """Yield the sentences of `text`, a line in the language with this ISO 639 code."""
    from sentencex import segment

    ends = [0, *accumulate(map(len, segment(code, _masked(text, code))))]
    pieces: Iterable[str] = [text[start:end] for start, end in pairwise(ends)]
    if _UNSEEN_MARKS.search(text):
        pieces = [part for piece in pieces for part in _missed(piece)]
    if not {found.end() for found in _POSSIBLE.finditer(text)} <= set(ends):
        pieces = [part for piece in pieces for part in _ruled(piece, code)]
    if _MOVABLE.search(text) or _EMOTICON.search(text):
        pieces = _moved(pieces)
    yield from (sentence.strip() for sentence in _mended(pieces, code))


# Apostrophes that sentencex mistakes for quotation marks: in Dutch and English short forms, and
# the signs for feet and inches.
_APOSTROPHES = re.compile(
    r"'(?<!\w')(?=(?:[tskmnr]|ns|[Tt]is|[Tt]was|[Tt]were|em|cause|\d\ds?)(?!['’\w]))|"
    r"'(?<!\w')n'(?!\w)|'(?<=\d')(?=\d\d?\")|\"(?<=\d'\d\")|\"(?<=\d'\d\d\")"
)


def _masked(text: str, code: str) -> str:
    """Replace misleading apostrophes, one for one, with characters that sentencex ignores."""
    if "'" not in text or code not in ("en", "nl"):
        return text
    return _APOSTROPHES.sub(lambda found: "\u02bc" * len(found.group()), text)


_OPEN, _CLOSE = "「『（【《“", "」』）】》”"

# Khmer and Tibetan full stops, two Ethiopic word spaces used as a full stop, and 。 before a digit.
_UNSEEN = re.compile(rf"(?:[។៕]|།(?=\s)|፡፡|[。！？](?=\d)){CLOSERS}\s*")
_UNSEEN_MARKS = re.compile("[។៕།፡。！？]")
_POSSIBLE = re.compile(rf"[.!?…{PICTURES[1:-1]}]{CLOSERS}\s+(?=\S)")
_QUOTES = ("«»", "“”„", '"')
_INCHES = re.compile(r"(?<=\d)\"")

_DOTTED = re.compile(r"(?<!\w)(?:[^\W\d]\.[-\s]?)+$")  # "p. m.", "o.a.", "J.-C."
_NUMBER = re.compile(r"\s*\(?(?:\d{1,3}|[a-zA-Z])[.)]\s*")  # "2." of a list
_CLOSED = re.compile(r"[\"'”’»“]\s*$")  # '"Stop!" cried the hen.' is one sentence
_OPENER = re.compile(r"(?<=\s)[«„“‘(\[]\s*$")
_PICTURES = re.compile(rf"(?:{PICTURES}+|[:;]-?[()DP])\s+(?=\S)")  # also :-)
_MOVABLE = re.compile(rf"[«„“‘(\[{PICTURES[1:-1]}]")
_EMOTICON = re.compile(r"[:;]-?[()DP]")
_REPORTED = re.compile(r"と|って|など|という")  # 「……」と言いました is one sentence


def _missed(piece: str) -> Iterator[str]:
    """Yield the sentences of a piece, split at full stops that sentencex does not recognize."""
    start = 0
    for end in _UNSEEN.finditer(piece):
        before = piece[: end.end()]
        if sum(map(before.count, _OPEN)) <= sum(map(before.count, _CLOSE)):  # not in a quotation
            yield piece[start : end.end()]
            start = end.end()
    yield piece[start:]


def _ruled(piece: str, code: str) -> Iterator[str]:
    """Yield the sentences of a piece, split where a rule says so, outside quotations."""
    start = 0
    for found in _POSSIBLE.finditer(piece):
        end = found.end()
        before, after = piece[start:end], piece[end : end + 40]
        if decide(before, after, code) and not _quoted(before, piece[end:]):
            yield before
            start = end
    yield piece[start:]


def _quoted(before: str, after: str) -> bool:
    """Return whether a quotation or parenthesis that `before` opens is closed in `after`."""
    if before.count("(") > before.count(")") and ")" in after:
        return True
    if '"' in before:
        before = _INCHES.sub("", before)
    return any(
        sum(map(before.count, marks)) % 2 and any(mark in after for mark in marks)
        for marks in _QUOTES
    )


def _moved(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the pieces with quotation marks and emoji moved to the sentence they belong to.

    An opening quotation mark at the end of a piece belongs to the next piece, an emoji at the
    beginning to the one before.
    """
    before = ""
    for piece in pieces:
        if (
            (piece[0] in ":;" or piece[0] >= "\u2600")
            and before.strip()
            and (pictures := _PICTURES.match(piece))
        ):
            before, piece = before + pictures.group(), piece[pictures.end() :]
        opener = _OPENER.search(before[-10:])
        if opener:
            yield before.removesuffix(opener.group())
            before = opener.group() + piece
        else:
            yield before
            before = piece
    yield before


def _mended(pieces: Iterable[str], code: str) -> Iterator[str]:
    """Yield sentences: pieces, joined where no sentence ends between them.

    Pieces without letters or digits, such as lone quotation marks, join their neighbour.
    """
    sentence, has_words = "", False
    for piece in pieces:
        adds_words = any(map(str.isalnum, piece))
        if (
            has_words
            and adds_words
            and (ends_plainly(sentence, piece, code) or _ends(sentence, piece, code))
        ):
            yield sentence
            sentence = ""
        sentence += piece
        has_words |= adds_words
    if sentence.strip():
        yield sentence


def _ends(sentence: str, following: str, code: str) -> bool:
    """Return whether a sentence ends after `sentence`, given the text that follows."""
    if _NUMBER.fullmatch(sentence):
        return False
    if code == "ja" and sentence.endswith(("」", "』")) and _REPORTED.match(following):
        return False
    decided = decide(sentence, following[:40], code)
    if decided is not None:
        return decided
    tail = sentence[-20:]
    continues = following[0].islower() or following[0] == "-"
    return not (continues and (_DOTTED.search(tail) or _CLOSED.search(tail)))
