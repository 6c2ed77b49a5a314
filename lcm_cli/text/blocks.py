"""The structure of plain text: headings, list items, lines of dialogue and wrapped prose.

Text consists of blocks, and of layout between them: blank lines, indentation, bullets, list
numbers, the marks of headings, and rules such as `* * *`. A translator copies the layout and
replaces the blocks. The marks are those of Markdown, read leniently, since most text is not
Markdown: a line is only taken for an item if its neighbours support that.

Only a line feed ends a line. Other characters that Unicode counts as line ends (U+2028, NEL,
vertical tab, form feed, a lone carriage return) are white space. Thus a form feed separates
paragraphs if it is alone on its line.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from lcm_cli.text.sentence_ends import NEVER

INVISIBLE = "\u00ad\u200b\u2060\ufeff"  # soft hyphen, zero width space, word joiner, BOM
NARROW = 40  # characters; no text is wrapped to less, so shorter lines end where they mean to


@dataclass(frozen=True)
class Block:
    """A stretch of text that no sentence crosses: a heading, a list item, a run of prose.

    `start` and `end` are offsets in the whole text. A block begins and ends with a character other
    than white space and may contain line breaks, which mean no more than a space. `paragraph`
    counts from 0; blank lines separate paragraphs.
    """

    start: int
    end: int
    paragraph: int


def blocks(text: str) -> list[Block]:
    """Return the blocks of `text`, in order.

    - A bullet (- * + • ‣ · – —) and white space begin an item, as do the em dashes of dialogue,
      with or without a space. The bullet or dash is layout. Inside a paragraph, this holds after an
      item, after a line that ends a sentence or with a colon, and if the next line is such an item
      as well; otherwise the dash belongs to wrapped prose.
    - A number ("1.", "2)", "(3)", "a)", "ii)") begins an item under the same conditions, if the
      text also has the item before or after it. A lone number is prose: "3. Oktober".
    - A heading has one to six # before it, or a line of = or - below it.
    - A line of three or more of the same mark (* * *, -----) is layout.
    - The lines of prose are joined, as a sentence may be wrapped anywhere, and so are verse and
      addresses. But a line ends its block if it ends a sentence and was broken on purpose: the next
      word would have fitted, the next line is indented, or all lines of the run end sentences.
    - A line under an item continues it if it is indented, or if its first word would not have
      fitted on the line above.
    """
    lines = _classified([_line(*place) for place in _places(text)])
    found, paragraph = [], 0
    for blank, group in groupby(lines, lambda line: line.kind == "blank"):
        spans = [] if blank else list(_spans(list(group)))
        found += [Block(start, end, paragraph) for start, end in spans]
        paragraph += bool(spans)
    return found


@dataclass
class _Line:
    """A line: `start` and `end` enclose its text, without white space and marks."""

    start: int
    end: int
    text: str
    indent: int
    kind: str = "text"  # or "blank", "rule", "item", "heading"
    mark: str = ""  # the bullet, or the shape of the list number such as "#)"
    item_start: int = 0  # of the text after the mark


_SPACES = "".join(filter(str.isspace, map(chr, range(0x3001)))) + INVISIBLE
_RULE = re.compile(r"([-*_=~#+•·–—])(?:\s*\1){2,}")
_UNDERLINE = re.compile(r"={3,}|-{3,}")
_HEADING = re.compile(r"#{1,6}\s+(?=\S)")
_HEADING_END = re.compile(r"\s+#+$")
_BULLET = re.compile(r"([-*+•‣·–—―])\s+(?=\S)|([—―])(?=[^\s—―])")
_NUMBER = re.compile(r"(\(?)(\d{1,3}(?=[.)])|[a-zA-Z](?=\))|[ivx]{2,5}(?=\)))([.)])\s+(?=\S)")
_GERMAN_DATE = re.compile(
    r"\d+\.\s+(Januar|Februar|März|April|Mai|Juni|Juli|August|September|Oktober|November|Dezember)"
)
_FREE = re.compile(r"[.!?…:;。！？।။។؟۔][\"'”’»›)\]」』）*_]*$")  # a list may follow
_END = re.compile(r"[.!?…。！？।။។؟۔][\"'”’»›)\]」』）*_]*$")
_LAST_WORD = re.compile(r"(\S+)\.$")
_UNSPACED = re.compile(
    "[\u0e00-\u109f\u1780-\u17ff\u2e80-\uabff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_ROMAN = {
    numeral: number
    for number, numeral in enumerate(
        "i ii iii iv v vi vii viii ix x xi xii xiii xiv xv xvi xvii xviii xix xx".split(), 1
    )
}


def _places(text: str) -> Iterator[tuple[int, str]]:
    """Yield each line with its offset."""
    start = 0
    for line in text.split("\n"):
        yield start, line
        start += len(line) + 1


def _line(start: int, raw: str) -> _Line:
    text = raw.strip(_SPACES)
    if not text:
        return _Line(start, start, "", 0, "blank")
    indent = raw.index(text)
    line = _Line(start + indent, start + indent + len(text), text, indent)
    if _RULE.fullmatch(text):
        line.kind = "rule"
    elif text[0] == "#" and (mark := _HEADING.match(text)):
        line.kind = "heading?"
        line.item_start = line.start + mark.end()
    elif bullet := _BULLET.match(text):
        line.kind, line.mark = "item?", bullet[1] or bullet[2]
        line.item_start = line.start + bullet.end()
    elif number := _NUMBER.match(text):
        line.mark = number[1] + "#" + number[3]
        line.item_start = line.start + number.end()
    return line


def _classified(lines: list[_Line]) -> list[_Line]:
    """Decide which lines are items and headings, and move their marks into the layout."""
    _number(lines)
    inside = ""  # the mark of the item that the line belongs to
    before = _Line(0, 0, "", 0, "blank")
    for at, line in enumerate(lines):
        after = lines[at + 1] if at + 1 < len(lines) else before
        free = before.kind != "text" or bool(_FREE.search(before.text))
        if line.kind == "item?":
            paired = line.mark == inside or (after.kind == "item?" and after.mark == line.mark)
            line.kind = "item" if free or paired else "text"
        elif line.kind == "heading?":
            line.kind = "heading" if free else "text"
        elif line.kind == "text" and free and _UNDERLINE.fullmatch(after.text):
            line.kind = "heading"
        inside = line.mark if line.kind == "item" else inside if line.kind == "text" else ""
        before = line
    for line in lines:
        if line.kind in ("item", "heading") and line.item_start:
            line.start = line.item_start
        if line.kind == "heading" and line.item_start:
            line.end -= len(_closing_marks(line))
    return lines


def _closing_marks(line: _Line) -> str:
    """Return the # at the end of a heading, with the white space before them."""
    found = _HEADING_END.search(line.text)
    return found.group() if found and line.end - len(found.group()) > line.start else ""


def _number(lines: Sequence[_Line]) -> None:
    """Mark the numbered lines that have a predecessor or a successor as possible items."""
    last: dict[tuple[str, str], tuple[int, _Line]] = {}
    for line in lines:
        if line.kind != "text" or not line.mark or _GERMAN_DATE.match(line.text):
            continue
        found = _NUMBER.match(line.text)
        for kind, value in _values(found[2] if found else ""):
            known = last.get((line.mark, kind))
            if known and known[0] + 1 == value:
                line.kind = known[1].kind = "item?"
            last[line.mark, kind] = value, line


def _values(number: str) -> Iterator[tuple[str, int]]:
    """Yield the values of a list number: "i" is the first Roman number and the ninth letter."""
    if number.isdecimal():
        yield "digits", int(number)
    elif len(number) == 1:
        yield ("lower" if number.islower() else "upper"), ord(number.lower()) - ord("a") + 1
    if number in _ROMAN:
        yield "roman", _ROMAN[number]


def _spans(lines: list[_Line]) -> Iterator[tuple[int, int]]:
    """Yield the offsets of the blocks of a paragraph."""
    width = max(NARROW, *(line.indent + len(line.text) for line in lines))
    all_end = all(_ends(line) for line in lines if line.kind == "text")
    item: _Line | None = None  # the item that the current block belongs to
    start, before = -1, None
    for line in lines:
        if before and start >= 0 and not _continues(line, before, item, width, all_end):
            yield start, before.end
            start = -1
        if line.kind == "rule":
            before = item = None
            continue
        if start < 0:
            start, item = line.start, line if line.kind == "item" else None
        before = line
    if before and start >= 0:
        yield start, before.end


def _continues(line: _Line, before: _Line, item: _Line | None, width: int, all_end: bool) -> bool:
    """Return whether a line belongs to the block of the line before it."""
    if line.kind != "text" or before.kind == "heading":
        return False
    word = 1 if _UNSPACED.match(line.text) else len(line.text.split(maxsplit=1)[0])
    fits = before.indent + len(before.text) + 1 + word <= width
    if item and line.indent <= item.indent and fits:
        return False
    indented = line.indent > before.indent and before is not item
    return not (_ends(before) and (fits or indented or all_end))


def _ends(line: _Line) -> bool:
    """Return whether a line ends a sentence, as far as its last word shows."""
    if not _END.search(line.text):
        return False
    word = _LAST_WORD.search(line.text)
    return not (word and (len(word[1]) == 1 or word[1].casefold() in NEVER))
