"""Markdown: paragraphs, headings, list items and table cells are translated, syntax is copied.

markdown-it finds the blocks and their inline syntax; the text is replaced in the source, so fences,
front matter, link definitions, bullets and quotes stay as they are. A wrapped paragraph becomes one
line, which means the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lcm_cli.documents.formats import html
from lcm_cli.documents.formats.layout import Mark, Pair, Passage, Slot, Spliced, Write
from lcm_cli.documents.formats.marks import fill

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

_HARD_BREAK = re.compile(r"(?: {2,}|\\)$")
_ALERT = re.compile(r"\[!\w+\]\s*$")  # the first line of GitHub's alerts
_TASK = re.compile(r"\[[ xX]\]\s+")
_WORDS = re.compile(r"\w")
# What would be syntax at the start of a line: a heading, quote, list or rule.
_START = re.compile(r"(#{1,6}(?=\s|$)|[>+]|-(?=\s|-)|=+$|\d{1,9}(?=[.)](?:\s|$)))")
_SPECIAL = re.compile(r"[\\`\[\]<]|~~|(?<!\s)\*|\*(?!\s)|(?<!\w)_|_(?!\w)|&(?=#?\w+;)")


def read(source: str, suffix: str = ".md") -> Spliced:
    """Return the layout of a Markdown file: CommonMark with tables, footnotes and mathematics."""
    return Spliced(source, _found(source), suffix)


def write(passage: Passage, pairs: Sequence[Pair], lang: str) -> str:
    """Return the translation of a passage as Markdown."""
    text = fill(passage, pairs, lang, escape).replace("\n", " ")
    return _START.sub(r"\\\1", text, count=1) if _START.match(text) else text


def escape(text: str) -> str:
    """Return text that Markdown renders as it is."""
    return _SPECIAL.sub(lambda found: f"\\{found[0]}", text)


def _write_cell(passage: Passage, pairs: Sequence[Pair], lang: str) -> str:
    return fill(passage, pairs, lang, escape).replace("\n", " ").replace("|", "\\|")


def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt
    from mdit_py_plugins.dollarmath import dollarmath_plugin
    from mdit_py_plugins.footnote import footnote_plugin
    from mdit_py_plugins.front_matter import front_matter_plugin

    parser = MarkdownIt("commonmark", {"store_labels": True})
    parser.enable(["table", "strikethrough"])
    parser.use(front_matter_plugin).use(dollarmath_plugin, allow_digits=False)
    parser.use(footnote_plugin, inline=False, move_to_end=False)
    return parser


def _found(source: str) -> Iterator[tuple[Passage, Slot]]:
    lines = _Lines(source)
    heading, tag = "", ""
    count = 0
    for token in _parser().parse(source):
        if token.type.endswith("_open"):
            tag = token.tag
        if token.map is None:
            continue
        if token.type == "html_block":
            found = _html(lines, token.map)
        elif token.type == "inline":
            found = _inline(lines, token, _write_cell if tag in ("td", "th") else write)
        else:
            continue
        for passage, slot in found:
            if token.type == "inline" and re.fullmatch("h[1-6]", tag):
                heading = passage.text
            yield replace(passage, paragraph=count, place=heading), slot
            count += 1


class _Lines:
    """The lines of the source, with a cursor: blocks are found from top to bottom."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._starts = [0, *(found.end() for found in re.finditer("\n", source)), len(source)]
        self._at = 0

    def span(self, map: Sequence[int]) -> tuple[int, int]:
        """Return the range of the lines [first, last) of a token's map."""
        first, last = (min(n, len(self._starts) - 1) for n in map)
        return self._starts[first], self._starts[last]

    def find(self, text: str, map: Sequence[int]) -> tuple[int, int] | None:
        """Return the range of a line of text in the lines of `map`, after the last one found."""
        start, end = self.span(map)
        at = self.source.find(text, max(start, self._at), end)
        if at < 0:
            return None
        self._at = at + len(text)
        return at, self._at


def _html(lines: _Lines, map: Sequence[int]) -> Iterator[tuple[Passage, Slot]]:
    """Yield the passages of an HTML block."""
    start, end = lines.span(map)
    layout = html.read(lines.source[start:end])
    for passage, slot in zip(layout.passages, layout.slots, strict=True):
        yield passage, replace(slot, start=start + slot.start, end=start + slot.end)


def _inline(lines: _Lines, token: Token, write: Write) -> Iterator[tuple[Passage, Slot]]:
    """Yield the passages of a block, one for each of its lines that ends in a hard break."""
    assert token.map is not None
    for part, children in _parts(token):
        place = _place(lines, part, token.map)
        text, marks = _marked(children)
        if place is None or not _WORDS.search(text):
            continue
        start, end = place
        if task := _TASK.match(text):
            text = text[task.end() :]
            marks = [replace(m, start=m.start - task.end(), end=m.end - task.end()) for m in marks]
            start += task.end()
        yield Passage(text, marks=tuple(marks)), Slot(start, end, write)


def _parts(token: Token) -> Iterator[tuple[str, list[Token]]]:
    """Yield the source of a block and its inline tokens, cut at hard breaks and after alerts."""
    lines = token.content.split("\n")
    breaks = sum(child.type in ("softbreak", "hardbreak") for child in token.children or [])
    if breaks + 1 != len(lines):  # a code span or a link spans lines
        yield token.content, token.children or []
        return
    groups: list[list[Token]] = [[]]
    sources = [""]
    children = iter(token.children or [])
    for n, line in enumerate(lines):
        sources[-1] += ("\n" if sources[-1] else "") + _HARD_BREAK.sub("", line)
        for child in children:
            if child.type in ("softbreak", "hardbreak"):
                break
            groups[-1].append(child)
        if n + 1 < len(lines) and (_HARD_BREAK.search(line) or (n == 0 and _ALERT.match(line))):
            if not _ALERT.match(line):
                yield sources[-1], groups[-1]
            sources.append("")
            groups.append([])
        elif n + 1 < len(lines):
            groups[-1].append(child)
    yield sources[-1], [*groups[-1], *children]


def _place(lines: _Lines, part: str, map: Sequence[int]) -> tuple[int, int] | None:
    """Return the range of a part in the source, from its first to its last line."""
    found = []
    for line in filter(None, (line.strip() for line in part.split("\n"))):
        place = lines.find(line, map) or lines.find(line.replace("|", "\\|"), map)
        if place is None:
            return None
        found.append(place)
    return (found[0][0], found[-1][1]) if found else None


def _marked(children: Sequence[Token]) -> tuple[str, list[Mark]]:
    """Return the plain text of inline tokens, and their marks."""
    text = ""
    marks: list[Mark] = []
    opened: list[tuple[Token, int]] = []
    for child in children:
        start = len(text)
        if child.type in ("text", "text_special"):
            text += child.content
        elif child.type in ("softbreak", "hardbreak"):
            text += "\n"
        elif child.type in ("code_inline", "math_inline"):
            text += child.content
            before, after = _code(child)
            marks.append(Mark(start, len(text), before, after, kept=True, verbatim=True))
        elif child.nesting == 1:
            opened.append((child, start))
        elif child.nesting == -1 and opened:
            opening, start = opened.pop()
            link = opening.type == "link_open"
            before, after = _around(opening)
            marks.append(Mark(start, len(text), before, after, link, verbatim=before == "<"))
        else:
            marks.append(Mark(start, start, _atom(child), "", kept=True))
    return text, marks


def _code(token: Token) -> tuple[str, str]:
    """Return the source before and after a code span's text, or that of a formula."""
    pad = " " if token.content.startswith("`") or token.content.endswith("`") else ""
    return token.markup + pad, pad + token.markup


def _atom(token: Token) -> str:
    """Return the source of an element without text of its own."""
    if token.type == "image":
        return f"![{escape(token.content)}]{_target(token, 'src')}"
    if token.type == "footnote_ref":
        return f"[^{token.meta['label']}]"
    return token.content if token.type == "html_inline" else ""


def _around(opening: Token) -> tuple[str, str]:
    """Return the source before and after the text of an inline element."""
    if opening.type != "link_open":
        return opening.markup, opening.markup
    if opening.markup == "autolink":
        return "<", ">"
    return "[", f"]{_target(opening, 'href')}"


def _target(token: Token, key: str) -> str:
    """Return the target of a link or an image: its label, or its address and title."""
    if label := token.meta.get("label"):
        return f"[{label}]"
    address, title = str(token.attrs.get(key, "")), token.attrs.get("title")
    if re.search(r"[\s()<>]", address) or not address:
        address = f"<{address}>"
    quoted = str(title).replace('"', '\\"') if title else ""
    return f'({address} "{quoted}")' if title else f"({address})"
