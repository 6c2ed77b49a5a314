"""Placement of a passage's markup in its translation.

Sentences are translated as plain text, so the translated words of a link are not known. A mark that
covers whole sentences covers their translations. Within a sentence, a mark goes around its own
words if the translation contains them, as it does for names and most code; otherwise a link or code
follows the sentence in parentheses, and emphasis is dropped.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from lcm_cli.documents.formats.locating import completed, locate
from lcm_cli.documents.formats.skeleton import Mark, Pair, Passage
from lcm_cli.text.languages import gap

_LAST_WORD = re.compile(r"\w+\W*$")
_FIRST_WORD = re.compile(r"\W*\w+")
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
    lost = [
        mark for mark in _outer_first(passage.marks) if not _place(mark, sentences, passage, whole)
    ]
    for mark in lost:  # last, since the text that they add is not part of the translation
        _append(mark, sentences, passage.text)
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


def _outer_first(marks: Sequence[Mark]) -> list[Mark]:
    """Sort marks, which are in the order of their ends, by their starts."""

    def key(numbered: tuple[int, Mark]) -> tuple[int, bool, int, int]:
        number, mark = numbered
        wide = mark.end > mark.start
        return mark.start, wide, -mark.end, -number if wide else number

    return [mark for _, mark in sorted(enumerate(marks), key=key)]


def _located(text: str, pairs: Sequence[Pair]) -> list[_Sentence]:
    pairs = completed(text, pairs)
    ranges = locate(text, [source for source, _ in pairs])
    return [_Sentence(new, *found) for (_, new), found in zip(pairs, ranges, strict=True)]


def _place(
    mark: Mark,
    sentences: Sequence[_Sentence],
    passage: Passage,
    whole: list[tuple[Mark, int, int]],
) -> bool:
    """Add a mark to its sentence, or to the list of those around whole sentences.

    Return false for a mark that must be kept but whose words are missing from the translation.
    """
    text = passage.text
    low, high = _touched(mark, sentences)
    if mark.start == mark.end or low > high:
        _insert(mark, sentences, text)
        return True
    first, last = sentences[low], sentences[high]
    inside = _flat(text[mark.start : mark.end]).strip()
    at = _found(mark, first, text) if inside and low == high else -1
    if _covers(mark, first.start, last.end, passage) and (at < 0 or mark.end >= last.end):
        if not mark.verbatim:
            whole.append((_renamed(mark, inside, sentences[low : high + 1]), low, high))
            return True
        if low == high:  # code alone is not translated
            first.text = inside + _flat(text[mark.end : first.end])
            at = 0
    if at >= 0:
        first.spans.append(_Span(mark, at, at + len(inside)))
    return at >= 0 or not mark.kept


def _touched(mark: Mark, sentences: Sequence[_Sentence]) -> tuple[int, int]:
    """Return the indices of the first and the last sentence that a mark overlaps."""
    low = bisect_right(sentences, mark.start, key=lambda one: one.end)
    return low, bisect_left(sentences, mark.end, key=lambda one: one.start) - 1


def _renamed(mark: Mark, inside: str, sentences: Sequence[_Sentence]) -> Mark:
    """Return a mark around whole sentences, with its other ending if their words change."""
    same = inside in " ".join(one.text for one in sentences)
    return mark if same or not mark.renamed else replace(mark, after=mark.renamed)


def _covers(mark: Mark, start: int, end: int, passage: Passage) -> bool:
    """Return whether a mark covers [start, end), except perhaps its final punctuation."""
    left = passage.text[start : mark.start] if mark.start > start else ""
    right = passage.text[mark.end : end] if mark.end < end else ""
    others = any(mark.end <= other.start < end for other in passage.marks if other is not mark)
    return not left.strip() and not re.search(r"\w", right) and not (right and others)


def _pattern(words: str, text: str, mark: Mark) -> str:
    """Return the pattern of the words of a mark: whole words, if `text` has them as such."""
    left = text[max(0, mark.start - 1) : mark.start + 1].isalnum() and mark.start > 0
    right = text[mark.end - 1 : mark.end + 1].isalnum() and mark.end < len(text)
    before = r"(?<!\w)" if words[0].isalnum() and not left else ""
    after = r"(?!\w)" if words[-1].isalnum() and not right else ""
    return before + re.escape(words) + after


def _found(mark: Mark, sentence: _Sentence, text: str) -> int:
    """Return the place of a mark's words in a sentence, outside other marks, or -1.

    Among several places, the nearest to that of the words in the source is chosen.
    """
    words = _flat(text[mark.start : mark.end]).strip()
    share = (mark.start - sentence.start) / max(1, sentence.end - sentence.start)
    # A lookahead also finds overlapping places.
    found = re.finditer(f"(?=({_pattern(words, text, mark)}))", sentence.text)
    starts = [each.start() for each in found if _is_free(mark, *each.span(1), sentence.spans)]
    expected = share * len(sentence.text)
    return min(starts, key=lambda start: abs(start - expected), default=-1)


def _is_free(mark: Mark, start: int, end: int, spans: Sequence[_Span]) -> bool:
    """Return whether a mark at [start, end) lies beside each span, or inside as in the source."""
    return all(
        end <= span.start
        or span.end <= start
        or (span.start <= start and end <= span.end and _is_inside(mark, span.mark))
        for span in spans
    )


def _is_inside(mark: Mark, other: Mark) -> bool:
    return not other.verbatim and other.start <= mark.start and mark.end <= other.end


def _insert(mark: Mark, sentences: Sequence[_Sentence], text: str) -> None:
    """Place a mark without words of its own, such as an image or a reference to a footnote.

    It goes to the end of its sentence, unless the translation begins with the same words as the
    source up to the mark, or contains the word before or after it exactly once.
    """
    if not sentences:
        return
    owner = next((one for one in sentences if mark.start <= one.end), sentences[-1])
    left, right = text[owner.start : mark.start], text[mark.start : owner.end]
    at = _gap(left, right, owner.text)
    if at and left[-1:].isspace() and not owner.text[:at][-1:].isspace():
        _widen(owner, at)
        at += 1
    if at == len(owner.text):
        mark = replace(mark, after=mark.after.rstrip(" "))
    owner.spans.append(_Span(mark, at, at))


def _widen(sentence: _Sentence, at: int) -> None:
    """Insert a space."""
    sentence.text = f"{sentence.text[:at]} {sentence.text[at:]}"
    for span in sentence.spans:
        span.start += span.start > at or (span.start == at < span.end)
        span.end += span.end > at


def _gap(left: str, right: str, new: str) -> int:
    """Return the place in `new` that corresponds to the one between `left` and `right`.

    These are the two parts of the source sentence; white space belongs to the part that has it.
    """
    if not left.strip():
        return 0
    head = _flat(left)
    if new.startswith(head):
        return len(head)
    before, after = _LAST_WORD.search(head), _FIRST_WORD.match(_flat(right))
    if before and (at := _unique(before[0], new)) >= 0:
        return at + len(before[0])
    if after and (at := _unique(after[0], new)) >= 0:
        return at
    return len(new)


def _flat(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def _unique(words: str, text: str) -> int:
    """Return the place of words that occur once in a text, or -1."""
    edges = r"(?<!\w)" if words[0].isalnum() else "", r"(?!\w)" if words[-1].isalnum() else ""
    found = [each.start() for each in re.finditer(re.escape(words).join(edges), text)]
    return found[0] if len(found) == 1 else -1


def _append(mark: Mark, sentences: Sequence[_Sentence], text: str) -> None:
    """Add the words of a mark to the end of its last sentence, before the final punctuation."""
    sentence = sentences[_touched(mark, sentences)[1]]
    words = _flat(text[mark.start : mark.end]).strip()
    found = _FINAL.search(sentence.text)
    before = sentence.text if found is None else sentence.text[: found.start()]
    at = len(before.rstrip())  # French has a space before an exclamation mark
    if any(span.end > at for span in sentence.spans):
        at = len(sentence.text)
    opening = " (" if sentence.text[:at] else "("
    start = at + len(opening)
    sentence.text = f"{sentence.text[:at]}{opening}{words}){sentence.text[at:]}"
    for span in sentence.spans:
        if span.start == span.end == at:  # stays at the end of the sentence
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
