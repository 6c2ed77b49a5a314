"""Plain text: paragraphs, headings and list items are translated, everything else is copied.

A wrapped paragraph is rewrapped at the same width.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence

from lcm_cli.documents.formats.skeleton import Pair, Passage, Slot, Spliced
from lcm_cli.text.blocks import blocks
from lcm_cli.text.languages import gap

_WORDS = re.compile(r"\w")


def read(source: str, suffix: str = ".txt") -> Spliced:
    """Return the skeleton of a plain text."""
    return Spliced(source, _blocks(source), suffix)


def read_lines(source: str, suffix: str = ".txt") -> Spliced:
    """Return the skeleton of a text with a sentence on each line."""
    return Spliced(source, _lines(source), suffix)


def _blocks(source: str) -> Iterator[tuple[Passage, Slot]]:
    for block in blocks(source):
        slot = Slot(block.start, block.end, _write)
        yield Passage(source[block.start : block.end], block.paragraph), slot


def _lines(source: str) -> Iterator[tuple[Passage, Slot]]:
    paragraph, filled = -1, False
    for found in re.finditer(r"[^\n]*\n?", source):
        line = found[0].strip()
        paragraph += bool(line) and not filled
        filled = bool(line)
        if line:
            start = found.start() + found[0].index(line)
            yield Passage(line, paragraph), Slot(start, start + len(line), _write)


def _write(passage: Passage, pairs: Sequence[Pair], lang: str) -> str:
    text = gap(lang).join(new for _, new in pairs)
    lines = passage.text.split("\n")
    if len(lines) == 1 or not gap(lang):
        return text
    indent = re.match(r"\s*", lines[1])
    return textwrap.fill(
        text,
        max(map(len, lines)),
        subsequent_indent=indent[0] if indent else "",
        break_long_words=False,
        break_on_hyphens=False,
    )
