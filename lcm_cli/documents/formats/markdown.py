"""Markdown: paragraphs, headings, list items and table cells are translated, syntax is copied.

markdown-it finds the blocks and their inline syntax; the text is replaced in the source, so fences,
front matter, link definitions, bullets and quotes stay unchanged. A wrapped paragraph becomes one
line, which renders the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING

from lcm_cli.documents.formats import html
from lcm_cli.documents.formats.inline import located_parser, tokens
from lcm_cli.documents.formats.marks import fill
from lcm_cli.documents.formats.runs import Token, passage_in
from lcm_cli.documents.formats.skeleton import Pair, Passage, Slot, Spliced, Write

if TYPE_CHECKING:
    from markdown_it.token import Token as Inline

_TOML = re.compile(r"\A\+\+\+(\n.*?\n|\n)\+\+\+\n", re.DOTALL)  # front matter
_ALERT = re.compile(r"\[!\w+\]$")  # the first line of GitHub's alerts
_ALONE = re.compile(r":{3,}.*|!!!.*|\?\?\?.*|\{[%{].*[%}]\}")  # a line of a directive
_ITEM = re.compile(r"\n?(?:\[[ xX]\]\s+|:\s+)")  # a check box, or the mark of a definition
# Text that would be syntax at the start of a line: a heading, quote, list, rule or definition.
_START = re.compile(r"#{1,6}(?=\s|$)|>|[+-](?=\s|$)|-+$|=+$|:(?=\s|::)|(?<=\d)[.)](?=\s|$)")
_NUMBER = re.compile(r"\d{1,9}(?=[.)](?:\s|$))")
_SPECIAL = re.compile(
    r"(?P<number>\[(?:\d+|\.\.\.|…)\](?![(\[:]))"  # harmless and frequent: not escaped
    r"|[\\`\[\]]|<(?=[a-zA-Z/!?])|~~|(?<!\s)\*|\*(?!\s)|(?<!\w)_|_(?!\w)|&(?=#?\w+;)"
    r"|\$(?=.*\$(?!\d))"
)
_CLOSING = re.compile(r"(?:^|(?<=\s))(?=#+$)")  # of a heading


def read(source: str, suffix: str = ".md") -> Spliced:
    """Return the skeleton of a Markdown file: CommonMark with tables, footnotes and mathematics.

    Raises IntegrityError for a paragraph with far more syntax than text.
    """
    return Spliced(source, _found(source), suffix)


def write(passage: Passage, pairs: Sequence[Pair], lang: str) -> str:
    """Return the translation of a passage as Markdown."""
    text = _write_inside(passage, pairs, lang)
    number = _NUMBER.match(text)
    at = number.end() if number else 0
    return f"{text[:at]}\\{text[at:]}" if _START.match(text, at) else text


def escape(text: str) -> str:
    """Return `text` with escapes, so that Markdown renders it unchanged."""
    return _SPECIAL.sub(lambda found: found[0] if found["number"] else f"\\{found[0]}", text)


def _write_inside(passage: Passage, pairs: Sequence[Pair], lang: str) -> str:
    """Return the translation of a passage that does not begin a line."""
    return fill(passage, pairs, lang, escape).replace("\n", " ")


def _write_heading(passage: Passage, pairs: Sequence[Pair], lang: str) -> str:
    return _CLOSING.sub(r"\\", _write_inside(passage, pairs, lang))


def _write_cell(passage: Passage, pairs: Sequence[Pair], lang: str) -> str:
    text = fill(passage, pairs, lang, _escape_cell).replace("\n", " ")
    return re.sub(r"(?<!\\)\|", r"\\|", text)  # in code


def _escape_cell(text: str) -> str:
    # A backslash before a bar escapes it even if the backslash is itself escaped.
    return re.sub(r"\\\\(?=\||$)", "&#92;", escape(text)).replace("|", "\\|")


def _found(source: str) -> Iterator[tuple[Passage, Slot]]:
    lines = _Lines(source)
    heading, tag = "", ""
    count = 0
    # The parser knows only the fences of YAML, which have the same length.
    known = _TOML.sub(lambda found: f"---{found[1]}---\n", source)
    for token in located_parser().parse(known):
        if token.type.endswith("_open"):
            tag = token.tag
        if token.map is None:
            continue
        is_heading = bool(re.fullmatch("h[1-6]", tag))
        if token.type == "html_block":
            found = _html(lines, token.map)
        elif token.type == "inline":
            cell = tag in ("td", "th")
            found = _inline(
                lines, token, _write_cell if cell else _write_heading if is_heading else write
            )
        else:
            continue
        for passage, slot in found:
            if token.type == "inline" and is_heading:
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

    def find(self, content: str, map: Sequence[int]) -> list[int] | None:
        """Return the place of each character of a block's content, and of its end."""
        start, end = self.span(map)
        at = max(start, self._at)
        places: list[int] = []
        for raw in content.split("\n"):
            line = raw.strip()
            found = self._line(line, at, end)
            if found is None:
                return None
            indent = raw.index(line)
            places += [found[0]] * indent + found[:-1]
            at = found[-1]
            places += [at] * (len(raw) - indent - len(line) + 1)  # and of the line break
        self._at = at
        return places

    def _line(self, line: str, start: int, end: int) -> list[int] | None:
        """Return the place of each character of a line, and of its end; in cells \\| is a bar."""
        if (at := self.source.find(line, start, end)) >= 0:
            return list(range(at, at + len(line) + 1))
        at = self.source.find(line.replace("|", "\\|"), start, end)
        if at < 0:
            return None
        places = []
        for character in line:
            at += character == "|"
            places.append(at)
            at += 1
        return [*places, at]


def _html(lines: _Lines, map: Sequence[int]) -> Iterator[tuple[Passage, Slot]]:
    """Yield the passages of an HTML block."""
    start, end = lines.span(map)
    skeleton = html.read(lines.source[start:end])
    for passage, slot in zip(skeleton.passages, skeleton.slots, strict=True):
        yield passage, replace(slot, start=start + slot.start, end=start + slot.end)


def _inline(lines: _Lines, token: Inline, write: Write) -> Iterator[tuple[Passage, Slot]]:
    """Yield the passages of a block, one for each of its lines that ends in a hard break."""
    assert token.map is not None
    places = lines.find(token.content, token.map)
    if places is None:
        return
    for run in _passage_runs(tokens(token)):
        placed = [replace(each, start=places[each.start], end=places[each.end]) for each in run]
        found = passage_in(placed, lines.source, write, keep_lines=True)
        if found is not None:
            yield found


def _passage_runs(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    """Yield the tokens of each passage of a block.

    Hard breaks divide it, as do lines that are syntax in a dialect of Markdown.
    """
    run: list[Token] = []
    for number, line in enumerate(_by_line(tokens)):
        text = "".join(token.text for token in line).strip()
        alone = _ALONE.fullmatch(text) or (number == 0 and _ALERT.fullmatch(text))
        if alone or line[0].name == "br" or _ITEM.match(text):
            yield run
            run = []
        run += [] if alone else _after(_ITEM, line)
    yield run


def _by_line(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    """Yield the tokens of each line; a line after the first begins with its break."""
    line: list[Token] = []
    for token in tokens:
        if line and (token.name == "br" or token.text == "\n"):
            yield line
            line = []
        line.append(token)
    if line:
        yield line


def _after(pattern: re.Pattern[str], line: list[Token]) -> list[Token]:
    """Return the tokens of a line after the match of a pattern at its start."""
    start = list(takewhile(lambda token: token.kind == "text", line))
    found = pattern.match("".join(token.text for token in start))
    if found is None:
        return line
    rest, size = list(line), found.end()
    while rest and rest[0].kind == "text" and size >= len(rest[0].text):
        size -= len(rest.pop(0).text)
    if rest and size:
        rest[0] = replace(rest[0], start=rest[0].start + size, text=rest[0].text[size:])
    return rest
