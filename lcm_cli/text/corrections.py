"""sentencex 1.0 with corrections: ends that it misses, and splits where no sentence ends."""

import re
from collections.abc import Iterable, Iterator

from lcm_cli.text.sentence_ends import CLOSERS, PICTURES, decide


def sentences(text: str, code: str) -> Iterator[str]:
    """Yield the sentences of `text`, a line in the language with this ISO 639 code."""
    from sentencex import segment

    pieces = _lengthwise(text, segment(code, _masked(text, code)))
    found = (part for piece in pieces for part in _missed(piece))
    found = (part for piece in found for part in _ruled(piece, code))
    yield from (sentence.strip() for sentence in _mended(_moved(found), code))


# Apostrophes that sentencex takes for quotation marks: of Dutch and English short forms, of feet.
_APOSTROPHES = re.compile(
    r"(?<!\w)'(?=(?:[tskmnr]|ns|[Tt]is|[Tt]was|[Tt]were|em|cause|\d\ds?)(?!['’\w]))|"
    r"(?<!\w)'n'(?!\w)|(?<=\d)'(?=\d\d?\")|(?<=\d'\d)\"|(?<=\d'\d\d)\""
)


def _masked(text: str, code: str) -> str:
    """Replace misleading apostrophes by as many characters that mean nothing to sentencex."""
    if "'" not in text or code not in ("en", "nl"):
        return text
    return _APOSTROPHES.sub(lambda found: "\u02bc" * len(found.group()), text)


def _lengthwise(text: str, pieces: Iterable[str]) -> Iterator[str]:
    """Yield pieces of `text` as long as the given ones."""
    start = 0
    for piece in pieces:
        yield text[start : start + len(piece)]
        start += len(piece)
    yield text[start:]


_OPEN, _CLOSE = "「『（【《“", "」』）】》”"

# Khmer and Tibetan full stops, two Ethiopic word spaces used as a full stop, and 。 before a digit.
_UNSEEN = re.compile(rf"(?:[។៕]|།(?=\s)|፡፡|[。！？](?=\d)){CLOSERS}\s*")
_POSSIBLE = re.compile(rf"(?:[.!?…]{CLOSERS}|{PICTURES})\s+(?=\S)")
_QUOTES = ("«»", "“”„", '"')
_INCHES = re.compile(r"(?<=\d)\"")

_DOTTED = re.compile(r"(?<!\w)(?:[^\W\d]\.[-\s]?)+$")  # "p. m.", "o.a.", "J.-C."
_NUMBER = re.compile(r"\s*\(?(?:\d{1,3}|[a-zA-Z])[.)]\s*")  # "2." of a list
_CLOSED = re.compile(r"[\"'”’»“]\s*$")  # '"Stop!" cried the hen.' is one sentence
_OPENER = re.compile(r"(?<=\s)[«„“‘(\[]\s*$")
_PICTURES = re.compile(rf"{PICTURES}+\s+(?=\S)")
_REPORTED = re.compile(r"と|って|など|という")  # 「……」と言いました is one sentence


def _missed(piece: str) -> Iterator[str]:
    """Yield the sentences of a piece, split at the full stops that sentencex does not know."""
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
    before = _INCHES.sub("", before)
    return any(
        sum(map(before.count, marks)) % 2 and any(mark in after for mark in marks)
        for marks in _QUOTES
    )


def _moved(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the pieces with quotation marks and emoji moved to the sentence they belong to.

    An opening quotation mark at the end of a piece belongs to the next, an emoji at the beginning
    to the one before.
    """
    before = ""
    for piece in pieces:
        pictures = _PICTURES.match(piece) if before.strip() else None
        if pictures:
            before, piece = before + pictures.group(), piece[pictures.end() :]
        found = _OPENER.search(before)
        opener = found.group() if found else ""
        yield before.removesuffix(opener)
        before = opener + piece
    yield before


def _mended(pieces: Iterable[str], code: str) -> Iterator[str]:
    """Yield sentences: pieces, joined where no sentence ends between them.

    Pieces without letters or digits, such as lone quotation marks, join their neighbour.
    """
    sentence, has_words = "", False
    for piece in pieces:
        adds_words = any(map(str.isalnum, piece))
        if has_words and adds_words and _ends(sentence, piece, code):
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
