"""HTML: the running text between the tags is translated, everything else stays byte for byte.

A passage is the text between two block-level tags or line breaks. Inline tags inside it are marks;
scripts, styles, preformatted text and elements marked `translate="no"` are left alone.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from itertools import accumulate
from typing import Literal

from lcm_cli.documents.formats.layout import Mark, Pair, Passage, Slot, Spliced
from lcm_cli.documents.formats.marks import fill


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_INLINE = _names(
    "a abbr acronym b bdi bdo big cite code data del dfn em font i img ins kbd label mark nobr q "
    "rb rp rt ruby s samp small span strike strong sub sup time tt u var wbr"
)
_KEPT = _names("a code img kbd samp tt var")
_VOID = _names("area base br col embed hr img input link meta param source track wbr")
_SKIPPED = _names(
    "audio canvas datalist iframe math noscript object pre script select style svg template "
    "textarea video"
)
_AROUND = _names("aside footer form header menu nav")  # not part of an article
_HEADING = re.compile(r"h[1-6]")
_SPACE = re.compile(r"[ \t\n\r\f]+")
_WORDS = re.compile(r"\w")

_Kind = Literal["text", "open", "close", "other"]


@dataclass
class _Token:
    """A piece [start, end) of the source: text, a tag, or something else such as a comment."""

    kind: _Kind
    start: int
    end: int
    text: str = ""  # of a text token, without character references
    name: str = ""  # of a tag
    skip: bool = False  # an opening tag whose element is not translated


def read(source: str, suffix: str = ".html", encoding: str = "utf-8") -> Spliced:
    """Return the layout of an HTML or XHTML file."""
    found = ((passage, slot) for passage, slot, _ in _passages(source))
    return Spliced(source, found, suffix, encoding)


def article(source: str) -> list[Passage]:
    """Return the passages of a page's article: those in <main> or <article>, if it has them.

    Without these elements, navigation, headers, footers, asides and forms are left out.
    """
    found = list(_passages(source))
    within = [passage for passage, _, around in found if around & {"main", "article"}]
    clear = [passage for passage, _, around in found if not around & _AROUND]
    return within or clear or [passage for passage, _, _ in found]


def decode(data: bytes) -> tuple[str, str] | None:
    """Return the text of a page and its encoding, None if that must be UTF-8."""
    declared = re.search(rb"""<meta[^>]{0,200}charset=["']?([\w.:-]+)""", data[:4096], re.I)
    if declared is None or data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        return None
    name = declared[1].decode("ascii", "replace")
    try:
        if not data.isascii():
            data.decode("utf-8")  # hardly any other text is valid UTF-8
            return None
    except UnicodeDecodeError:
        pass
    try:
        "a".encode(name)  # some codecs are not of text
        return data.decode(name).replace("\r\n", "\n").replace("\r", "\n"), name
    except (LookupError, ValueError):
        return None


def _write(passage: Passage, pairs: Sequence[Pair], lang: str) -> str:
    return fill(passage, pairs, lang, lambda text: html.escape(text, quote=False))


class _Scanner(HTMLParser):
    """Cuts a source into tokens with their places."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=False)
        self.tokens: list[_Token] = []
        self._source = source
        self._lines = [0, *accumulate(len(line) + 1 for line in source.split("\n"))]
        self.feed(source)
        self.close()

    def handle_data(self, data: str) -> None:
        self._add("text", len(data), text=data)

    def handle_entityref(self, name: str) -> None:
        self._reference(f"&{name}")

    def handle_charref(self, name: str) -> None:
        self._reference(f"&#{name}")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        skip = values.get("translate") == "no" or "notranslate" in (values.get("class") or "")
        length = len(self.get_starttag_text() or "")
        self._add("open", length, name=tag, skip=skip or tag in _SKIPPED)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        token = self.tokens[-1]
        # <p/> is an opening tag in HTML; in XHTML, and of these elements, it is empty.
        token.kind, token.skip = ("open", False) if tag in _VOID else ("other", False)

    def handle_endtag(self, tag: str) -> None:
        self._until(">", "close", tag)

    def handle_comment(self, data: str) -> None:
        self._until(">", "other", offset=len(data))

    def handle_decl(self, decl: str) -> None:
        self._until(">", "other", offset=len(decl))

    def handle_pi(self, data: str) -> None:
        self._until(">", "other", offset=len(data))

    def unknown_decl(self, data: str) -> None:
        self._until(">", "other", offset=len(data))

    def _reference(self, raw: str) -> None:
        closed = self._source.startswith(";", self._at() + len(raw))
        raw += ";" if closed else ""
        self._add("text", len(raw), text=html.unescape(raw))

    def _until(self, mark: str, kind: _Kind, name: str = "", offset: int = 0) -> None:
        end = self._source.find(mark, self._at() + offset)
        self._add(kind, (len(self._source) if end < 0 else end + 1) - self._at(), name=name)

    def _add(
        self, kind: _Kind, length: int, *, text: str = "", name: str = "", skip: bool = False
    ) -> None:
        start = self._at()
        self.tokens.append(_Token(kind, start, start + length, text, name, skip))

    def _at(self) -> int:
        line, column = self.getpos()
        return self._lines[line - 1] + column


def _passages(source: str) -> Iterator[tuple[Passage, Slot, frozenset[str]]]:
    """Yield each passage with its slot, and the names of the elements around it."""
    heading, count = "", 0
    around: list[str] = []
    for run, block in _runs(_Scanner(source).tokens, around):
        made = _passage(run, source, count, heading)
        if made is None:
            continue
        if _HEADING.fullmatch(block):
            heading = made[0].text
            made = (Passage(heading, count, heading, made[0].marks), made[1])
        count += 1
        yield *made, frozenset(around)


def _runs(tokens: Sequence[_Token], around: list[str]) -> Iterator[tuple[list[_Token], str]]:
    """Yield the runs of text and inline tags between block-level tags, with the block's name.

    `around` holds the names of the block-level elements that are open.
    """
    run: list[_Token] = []
    block = ""
    n = 0
    while n < len(tokens):
        token = tokens[n]
        end = _skipped(tokens, n) if token.skip else n + 1
        if token.skip and token.name in _INLINE:
            words = "".join(each.text for each in tokens[n:end] if each.kind == "text")
            run += [token, _Token("text", token.end, token.end, words), tokens[end - 1]]
        elif token.kind in ("text", "other") or token.name in _INLINE:
            run.append(token)
        else:
            yield run, block
            run, block = [], token.name if token.kind == "open" else ""
            _track(around, token)
        n = end
    yield run, block


def _track(around: list[str], token: _Token) -> None:
    if token.skip or token.name in _VOID:
        return
    if token.kind == "open":
        around.append(token.name)
    elif token.name in around:
        while around.pop() != token.name:
            pass


def _skipped(tokens: Sequence[_Token], n: int) -> int:
    """Return the index after the element that tokens[n] opens."""
    name, depth = tokens[n].name, 0
    if name in _VOID:
        return n + 1
    for end in range(n, len(tokens)):
        if tokens[end].name == name:
            depth += {"open": 1, "close": -1}.get(tokens[end].kind, 0)
        if depth == 0:
            return end + 1
    return len(tokens)


def _passage(
    run: list[_Token], source: str, number: int, heading: str
) -> tuple[Passage, Slot] | None:
    """Return the passage in a run and its slot, None without words."""
    if not any(token.kind == "text" and _WORDS.search(token.text) for token in run):
        return None
    partners = _partners(run)
    first, last = _peeled(run, partners)
    text, marks = "", []
    starts: dict[int, int] = {}
    for n in range(first, last):
        token = run[n]
        if token.kind == "text":
            words = _SPACE.sub(" ", token.text)
            text += words.lstrip(" ") if not text or text.endswith(" ") else words
        elif token.kind == "open" and first <= partners.get(n, -1) < last:
            starts[n] = len(text)
        elif token.kind == "close" and first <= (opener := partners.get(n, -1)) < last:
            tag = run[opener]
            before = source[tag.start : tag.end]
            after = source[token.start : token.end]
            kept = tag.skip or tag.name in _KEPT
            marks.append(Mark(starts[opener], len(text), before, after, kept))
        else:
            raw = source[token.start : token.end]
            marks.append(Mark(len(text), len(text), raw, "", True))
    room = len(text.rstrip())
    marks = [replace(m, start=min(m.start, room), end=min(m.end, room)) for m in marks]
    start, end = run[first].start, run[last - 1].end
    raw = source[start:end]
    start += len(raw) - len(raw.lstrip())
    end -= len(raw) - len(raw.rstrip())
    return Passage(text.rstrip(), number, heading, tuple(marks)), Slot(start, end, _write)


def _partners(run: Sequence[_Token]) -> dict[int, int]:
    """Return the index of the closing tag of each opening one, and the reverse."""
    found: dict[int, int] = {}
    opened: list[int] = []
    for n, token in enumerate(run):
        if token.kind == "open" and token.name not in _VOID:
            opened.append(n)
        elif token.kind == "close":
            match = next((o for o in reversed(opened) if run[o].name == token.name), None)
            if match is not None:
                found |= {match: n, n: match}
                del opened[opened.index(match) :]
    return found


def _peeled(run: Sequence[_Token], partners: dict[int, int]) -> tuple[int, int]:
    """Return the range of a run without white space, tags and comments at its edges."""
    first, last = 0, len(run)
    while True:
        if _is_edge(run[first]) or (run[first].kind != "text" and first not in partners):
            first += 1
        elif _is_edge(run[last - 1]) or (run[last - 1].kind != "text" and last - 1 not in partners):
            last -= 1
        elif partners.get(first) == last - 1:
            first, last = first + 1, last - 1
        elif first in partners and not _has_words(run[first : partners[first] + 1]):
            first = partners[first] + 1
        elif last - 1 in partners and not _has_words(run[partners[last - 1] : last]):
            last = partners[last - 1]
        else:
            return first, last


def _is_edge(token: _Token) -> bool:
    return token.kind == "text" and not token.text.strip(" \t\n\r\f")


def _has_words(run: Sequence[_Token]) -> bool:
    return any(token.kind == "text" and token.text.strip() for token in run)
