"""The structure of plain text: headings, list items, lines of dialogue and wrapped prose.

Text consists of blocks with layout between them: blank lines, indentation, bullets, list numbers,
the marks of headings, and rules such as `* * *`. A translator copies the layout and replaces the
blocks. The marks are those of Markdown, but since most text is not Markdown, a line only counts as
an item if its neighbours support that.

Only a line feed ends a line. Other characters that Unicode counts as line ends (U+2028, NEL,
vertical tab, form feed, a lone carriage return) are white space. A form feed alone on its line
therefore separates paragraphs.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from lcm_cli.text.abbreviations import NEVER

INVISIBLE = "\u00ad\u200b\u2060\ufeff"  # soft hyphen, zero width space, word joiner, BOM
TAIL = 40  # characters at the end of a line that decide whether it ends a sentence
SURE_BULLETS = "•‣◦▪▫●○■□◆◇▶►➤➢✓✔✗✘☐☑☒✅❌"  # prose has no use for these at the start of a line
NARROW = 40  # characters; text is not wrapped to less, so shorter lines were broken on purpose


@dataclass(frozen=True)
class Block:
    """A stretch of text that no sentence crosses: a heading, a list item, a run of prose.

    `start` and `end` are offsets in the whole text. A block begins and ends with a character other
    than white space and may contain line breaks, which count as spaces. `paragraph`
    counts from 0; blank lines separate paragraphs.
    """

    start: int
    end: int
    paragraph: int


def blocks(text: str) -> list[Block]:
    """Return the blocks of `text`, in order.

    - A bullet (- * + · – — → or one of SURE_BULLETS) and white space begin an item, as do the em
      dashes of dialogue, with or without a space. The bullet or dash is layout. Inside a paragraph,
      this holds for bullets such as • anywhere, and for other marks after an item, after a line
      that ends a sentence or ends with a colon, and before a line with the same mark; otherwise
      the dash belongs to wrapped prose.
    - A number ("1.", "2)", "(3)", "a)", "ii)") begins an item under the same conditions, if the
      text also has the item before or after it. A lone number is prose: "3. Oktober".
    - A heading has one to six # before it, or a line of = or - below it.
    - A line of three or more of the same mark (* * *, -----) is layout.
    - Lines of prose are joined, since a sentence may be wrapped anywhere, as are verse and
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


@dataclass(slots=True)
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
_BULLET = re.compile(
    rf"([-*+·–—―→{SURE_BULLETS}])\ufe0f?\s+(?=\S)|([—―])(?=[^\s—―])"  # U+FE0F: as an emoji
)
_NUMBER = re.compile(r"(\(?)(\d{1,3}(?=[.)])|[a-zA-Z](?=\))|[ivx]{2,5}(?=\)))([.)])\s+(?=\S)")
_GERMAN_DATE = re.compile(
    r"\d+\.\s+(Januar|Februar|März|April|Mai|Juni|Juli|August|September|Oktober|November|Dezember)"
)
_FREE = re.compile(r"[.!?…:;。！？।။។؟۔][\"'”’»›)\]」』）*_]*$")  # a list may follow
_END = re.compile(r"[.!?…。！？।။។؟۔][\"'”’»›)\]」』）*_]*$")
_UNSPACED = re.compile(
    "[\u0e00-\u109f\u1780-\u17ff\u2e80-\uabff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_NUMERALS = "i ii iii iv v vi vii viii ix x xi xii xiii xiv xv xvi xvii xviii xix xx"
_ROMAN = {numeral: number for number, numeral in enumerate(_NUMERALS.split(), 1)}


def _places(text: str) -> Iterator[tuple[int, str]]:
    """Yield each line with its offset."""
    start = 0
    for line in text.split("\n"):
        yield start, line
        start += len(line) + 1


def _line(start: int, raw: str) -> _Line:
    text = raw.strip()
    if text and (text[0] in INVISIBLE or text[-1] in INVISIBLE):
        text = raw.strip(_SPACES)
    if not text:
        return _Line(start, start, "", 0, "blank")
    indent = raw.index(text)
    line = _Line(start + indent, start + indent + len(text), text, indent)
    if text[0].isalpha() and ")" not in text[:6]:
        return line
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
    if all(line.kind in ("text", "blank") and not line.mark for line in lines):
        return lines
    _number(lines)
    inside = ""  # the mark of the item that the line belongs to
    before = _Line(0, 0, "", 0, "blank")
    for at, line in enumerate(lines):
        after = lines[at + 1] if at + 1 < len(lines) else before
        underlined = after.kind == "rule" and _UNDERLINE.fullmatch(after.text)
        if line.kind == "item?":
            paired = line.mark == inside or (after.kind == "item?" and after.mark == line.mark)
            sure = paired or line.mark in SURE_BULLETS or _free(before)
            line.kind = "item" if sure else "text"
        elif line.kind == "heading?" or (line.kind == "text" and underlined):
            line.kind = "heading" if _free(before) else "text"
        inside = line.mark if line.kind == "item" else inside if line.kind == "text" else ""
        before = line
    for line in lines:
        if line.kind in ("item", "heading") and line.item_start:
            _trim(line)
    return lines


def _free(before: _Line) -> bool:
    """Return whether a list or heading may follow a line."""
    return before.kind != "text" or bool(_FREE.search(before.text[-TAIL:]))


def _trim(line: _Line) -> None:
    """Move the marks of an item or heading out of its text."""
    rest = line.text[line.item_start - line.end :]
    line.start = line.end - len(rest.lstrip(_SPACES))
    text = line.text.rstrip("#")
    shorter = text.rstrip(_SPACES)
    if (
        line.kind == "heading"
        and shorter != text
        and line.end - len(line.text) + len(shorter) > line.start
    ):
        line.end += len(shorter) - len(line.text)


def _number(lines: Sequence[_Line]) -> None:
    """Mark numbered lines whose predecessor or successor exists as possible items."""
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
    if len(lines) == 1 and lines[0].kind != "rule":
        yield lines[0].start, lines[0].end
        return
    width = max(NARROW, *[line.indent + len(line.text) for line in lines])
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
    under_item = item is not None and line.indent <= item.indent
    if not under_item:
        if not _ends(before):
            return True
        if all_end or (line.indent > before.indent and before is not item):
            return False
    word = 1 if _UNSPACED.match(line.text) else len(line.text.split(maxsplit=1)[0])
    return before.indent + len(before.text) + 1 + word > width


def _ends(line: _Line) -> bool:
    """Return whether a line ends a sentence, judging by its last word."""
    tail = line.text[-TAIL:]
    if tail[-1].isalnum() or not _END.search(tail):
        return False
    word = tail.split()[-1]
    return not (word.endswith(".") and (len(word) == 2 or word[:-1].casefold() in NEVER))
