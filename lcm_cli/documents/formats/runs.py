"""Runs of text and inline markup, from which the passages of HTML and Markdown are made."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from lcm_cli.documents.formats.skeleton import Mark, Passage, Slot, Write

WORDS = re.compile(r"\w")
MOST_MARKS = 500  # of a passage; placing more is slow, and only generated pages have them
_SPACE = re.compile(r"[ \t\n\r\f]+")


@dataclass
class Token:
    """A piece [start, end) of the source: text, a tag, or something else such as a comment.

    On an opening tag, `kept` and `verbatim` are those of its mark. `skip` is true for the
    opening tag and the text of an element that is not translated.
    """

    kind: Literal["text", "open", "close", "other"]
    start: int
    end: int
    text: str = ""  # of a text token, as a reader sees it
    name: str = ""  # of a tag
    skip: bool = False
    kept: bool = False
    verbatim: bool = False
    renamed: str = ""  # of a closing tag, see Mark


def passage_in(
    run: Sequence[Token], source: str, write: Write, keep_lines: bool = False
) -> tuple[Passage, Slot] | None:
    """Return the passage in a run and its slot; None without words or with too much markup.

    Markup at the ends of a run, and around all of it, stays outside. White space collapses to a
    space, or with `keep_lines` to a line break if it contains one.
    """
    if not any(t.kind == "text" and not t.skip and WORDS.search(t.text) for t in run):
        return None
    run = _joined(_without_empty(run), source)
    partners = _partners(run)
    first, last = _peeled(run, partners)
    parts: list[str] = []
    length, spaced = 0, True
    marks: list[Mark] = []
    starts: dict[int, int] = {}
    for n in range(first, last):
        token = run[n]
        if token.kind == "text":
            words = _collapsed(token.text, keep_lines)
            if spaced and words[:1].isspace():
                words = words[1:]
                if length and marks and marks[-1].start == marks[-1].end == length:
                    marks[-1] = replace(marks[-1], after=f"{marks[-1].after} ")
            parts.append(words)
            length += len(words)
            spaced = words.endswith((" ", "\n")) if words else spaced
        elif token.kind == "open" and first <= partners.get(n, -1) < last:
            starts[n] = length
        elif token.kind == "close" and first <= (opener := partners.get(n, -1)) < last:
            marks.append(_mark(run[opener], token, starts[opener], length, source))
        else:
            marks.append(Mark(length, length, source[token.start : token.end], "", kept=True))
    if len(marks) > MOST_MARKS:
        return None
    text = "".join(parts).rstrip()
    room = len(text)
    marks = [replace(m, start=min(m.start, room), end=min(m.end, room)) for m in marks]
    start, end = run[first].start, run[last - 1].end
    raw = source[start:end]
    start += len(raw) - len(raw.lstrip())
    end -= len(raw) - len(raw.rstrip())
    return Passage(text, marks=tuple(marks)), Slot(start, end, write)


def _without_empty(run: Sequence[Token]) -> list[Token]:
    """Return a run in which an element without text, such as a linked image, is one token."""
    partners, filled = _partners(run), _filled(run)
    found: list[Token] = []
    n = 0
    while n < len(run):
        end = partners.get(n, -1)
        if end > n and filled[end] == filled[n]:
            found.append(Token("other", run[n].start, run[end].end))
            n = end
        else:
            found.append(run[n])
        n += 1
    return found


def _joined(run: Sequence[Token], source: str) -> list[Token]:
    """Return a run in which images and the like at the edges of an element join its tags."""
    partners = _partners(run)
    found: list[Token] = []
    opening = grown = False  # whether the last token is an opening tag; an image has joined it
    for n, token in enumerate(run):
        before = found[-1] if found else Token("text", 0, 0)
        if token.kind == "other" and opening:
            found[-1], grown = replace(before, end=token.end), True
            continue
        if token.kind == "text" and grown:
            raw = source[token.start : token.end]
            size = len(raw) - len(raw.lstrip())
            found[-1] = replace(before, end=before.end + size)
            token = replace(token, start=token.start + size, text=token.text.lstrip())
        if token.kind == "close" and n in partners:
            while found[-1].kind == "other":
                token = replace(token, start=found.pop().start)
        opening, grown = token.kind == "open" and n in partners, False
        found.append(token)
    return found


def _mark(tag: Token, closing: Token, start: int, end: int, source: str) -> Mark:
    before, after = source[tag.start : tag.end], source[closing.start : closing.end]
    return Mark(start, end, before, after, tag.kept, tag.verbatim, closing.renamed)


def _collapsed(text: str, keep_lines: bool) -> str:
    return _SPACE.sub(lambda found: "\n" if keep_lines and "\n" in found[0] else " ", text)


def _partners(run: Sequence[Token]) -> dict[int, int]:
    """Return the index of the matching tag of each opening or closing tag."""
    found: dict[int, int] = {}
    opened: list[int] = []
    names: dict[str, int] = {}  # how many tags of a name are open
    for n, token in enumerate(run):
        if token.kind == "open":
            opened.append(n)
            names[token.name] = names.get(token.name, 0) + 1
        elif token.kind == "close" and names.get(token.name):
            while True:
                match = opened.pop()
                names[run[match].name] -= 1
                if run[match].name == token.name:
                    break
            found |= {match: n, n: match}
    return found


def _peeled(run: Sequence[Token], partners: dict[int, int]) -> tuple[int, int]:
    """Return the range of a run without white space, tags and comments at its edges."""
    filled = _filled(run)
    first, last = 0, len(run)
    while True:
        begin, end = partners.get(first), partners.get(last - 1)
        if _is_edge(run[first], begin):
            first += 1
        elif _is_edge(run[last - 1], end):
            last -= 1
        elif begin == last - 1 and not (run[first].verbatim or run[begin].renamed):
            first, last = first + 1, last - 1
        elif begin is not None and filled[begin] == filled[first]:
            first = begin + 1
        elif end is not None and filled[last] == filled[end]:
            last = end
        else:
            return first, last


def _filled(run: Sequence[Token]) -> list[int]:
    """Return the number of tokens with words before each place in a run."""
    return list(accumulate((bool(t.kind == "text" and t.text.strip()) for t in run), initial=0))


def _is_edge(token: Token, partner: int | None) -> bool:
    if token.kind == "text":
        return not token.text.strip(" \t\n\r\f")
    return partner is None
