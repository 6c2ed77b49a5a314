"""Placement of a passage's markup in its translation.

Sentences are translated as plain text, so nothing says where the words of a link went. A mark that
covers whole sentences covers their translations. Within a sentence, a mark goes around its own
words if the translation contains them (names and code do); else a link or code follows the
sentence in parentheses, and emphasis is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from lcm_cli.documents.formats.layout import Mark, Pair, Passage
from lcm_cli.text.languages import gap

_FINAL = re.compile(r"[.!?…。！？:;,]*[\"'”’»)\]]*$")


@dataclass
class Piece:
    """Text with the marks around it, the outermost first."""

    text: str
    marks: tuple[Mark, ...] = ()


@dataclass
class _Span:
    """A mark at the characters [start, end) of a translated sentence."""

    mark: Mark
    start: int
    end: int


@dataclass
class _Sentence:
    """A translated sentence, and the range of its source in the passage."""

    text: str
    start: int
    end: int
    spans: list[_Span] = field(default_factory=list)


def pieces(passage: Passage, pairs: Sequence[Pair], lang: str) -> list[Piece]:
    """Return the translation of a passage in pieces of equal markup."""
    sentences = _located(passage.text, pairs)
    whole: list[tuple[Mark, int, int]] = []  # marks around the sentences [first, last]
    for mark in sorted(passage.marks, key=lambda mark: (mark.start, -mark.end)):
        _place(mark, sentences, passage.text, whole)
    found: list[Piece] = []
    for number, sentence in enumerate(sentences):
        if number:
            around = tuple(mark for mark, first, last in whole if first < number <= last)
            found.append(Piece(gap(lang), around))
        around = tuple(mark for mark, first, last in whole if first <= number <= last)
        found += [Piece(piece.text, around + piece.marks) for piece in _cut(sentence)]
    return [piece for piece in found if piece.text or piece.marks]


def fill(passage: Passage, pairs: Sequence[Pair], lang: str, escape: Callable[[str], str]) -> str:
    """Return the translation of a passage with its markup; `escape` escapes plain text."""
    parts: list[str] = []
    open_marks: tuple[Mark, ...] = ()
    for piece in [*pieces(passage, pairs, lang), Piece("")]:
        same = 0
        while same < min(len(open_marks), len(piece.marks)) and (
            open_marks[same] is piece.marks[same]
        ):
            same += 1
        parts += [mark.after for mark in reversed(open_marks[same:])]
        parts += [mark.before for mark in piece.marks[same:]]
        open_marks = piece.marks
        verbatim = any(mark.verbatim for mark in piece.marks)
        parts.append(piece.text if verbatim else escape(piece.text))
    return "".join(parts)


def locate(text: str, sentences: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the range of each sentence in `text`, from which they were cut in this order.

    Segmentation changes white space, joins hyphenated line ends and drops invisible characters, so
    the characters of `text` that a sentence lacks are skipped.
    """
    at = 0
    for sentence in sentences:
        begin = end = at
        first = True
        for character in sentence:
            if character.isspace():
                continue
            found = text.find(character, end)
            if found < 0:
                continue
            begin, first = (found, False) if first else (begin, False)
            end = found + 1
        at = end
        yield begin, end


def _located(text: str, pairs: Sequence[Pair]) -> list[_Sentence]:
    ranges = locate(text, [source for source, _ in pairs])
    return [_Sentence(new, *found) for (_, new), found in zip(pairs, ranges, strict=True)]


def _place(
    mark: Mark, sentences: Sequence[_Sentence], text: str, whole: list[tuple[Mark, int, int]]
) -> None:
    """Add a mark to the sentence, or to the list of those around whole sentences."""
    touched = [
        n for n, one in enumerate(sentences) if one.start < mark.end and mark.start < one.end
    ]
    if mark.start == mark.end or not touched:
        _insert(mark, sentences)
        return
    first, last = sentences[touched[0]], sentences[touched[-1]]
    inside = text[mark.start : mark.end].strip()
    if _covers(mark, first.start, last.end, text):
        whole.append((mark, touched[0], touched[-1]))
        return
    sentence = first
    at = _find(inside, sentence) if len(touched) == 1 else -1
    if at >= 0:
        sentence.spans.append(_Span(mark, at, at + len(inside)))
    elif mark.kept:
        _append(mark, last, inside)


def _covers(mark: Mark, start: int, end: int, text: str) -> bool:
    """Return whether a mark covers all of [start, end) but its final punctuation."""
    left = text[start : mark.start] if mark.start > start else ""
    right = text[mark.end : end] if mark.end < end else ""
    return not left.strip() and not re.search(r"\w", right)


def _find(words: str, sentence: _Sentence) -> int:
    """Return the index of whole `words` in a sentence outside its marks, or -1."""
    if not words:
        return -1
    edges = (r"(?<!\w)" if words[0].isalnum() else "", r"(?!\w)" if words[-1].isalnum() else "")
    for found in re.finditer(edges[0] + re.escape(words) + edges[1], sentence.text):
        start, end = found.span()
        nested = all(
            end <= span.start or span.end <= start or (span.start <= start and end <= span.end)
            for span in sentence.spans
        )
        if nested:
            return start
    return -1


def _insert(mark: Mark, sentences: Sequence[_Sentence]) -> None:
    """Place a mark without words of its own: before the sentence at its start, else after it."""
    if not sentences:
        return
    owner = next((one for one in sentences if mark.start <= one.end), sentences[-1])
    at = 0 if mark.start <= owner.start else len(owner.text)
    owner.spans.append(_Span(mark, at, at))


def _append(mark: Mark, sentence: _Sentence, words: str) -> None:
    """Add the words of a mark to the end of a sentence, before its final punctuation."""
    found = _FINAL.search(sentence.text)
    at = len(sentence.text) if found is None else found.start()
    if any(span.end > at for span in sentence.spans):
        at = len(sentence.text)
    opening = " (" if sentence.text[:at] else "("
    start = at + len(opening)
    sentence.text = f"{sentence.text[:at]}{opening}{words}){sentence.text[at:]}"
    for span in sentence.spans:
        if span.start == span.end == at:  # it stays at the end of the sentence
            span.start = span.end = len(sentence.text)
    sentence.spans.append(_Span(mark, start, start + len(words)))


def _cut(sentence: _Sentence) -> Iterator[Piece]:
    """Cut a sentence at the edges of its marks."""
    spans = sorted(sentence.spans, key=lambda span: (span.start, -span.end))
    edges = sorted({0, len(sentence.text), *(e for s in spans for e in (s.start, s.end))})
    for start, end in zip(edges, [*edges[1:], edges[-1]], strict=True):
        empty = (s for s in spans if s.start == s.end == start)
        yield from (Piece("", (span.mark,)) for span in empty)
        if start < end:
            around = (s.mark for s in spans if s.start <= start and end <= s.end)
            yield Piece(sentence.text[start:end], tuple(around))
