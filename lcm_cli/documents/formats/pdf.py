"""PDF: the text of its pages, written as Markdown, since text on a page cannot be replaced."""

from __future__ import annotations

import io
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lcm_cli.documents.formats import markdown
from lcm_cli.documents.formats.skeleton import Passage, Slot, Spliced
from lcm_cli.errors import IntegrityError
from lcm_cli.text.blocks import blocks

if TYPE_CHECKING:
    from pypdf import PageObject

_WORDS = re.compile(r"\w")
_REPEATED = 0.5  # share of the pages that must have a running head or foot
_HEADING = 1.15  # least size of a heading, relative to the body text
_LIGATURES = str.maketrans(
    {chr(n): unicodedata.normalize("NFKC", chr(n)) for n in range(0xFB00, 0xFB07)}
)


@dataclass
class _Line:
    """A line of a page, and the largest size of its letters."""

    text: str
    size: float


def read(data: bytes, name: str) -> Spliced:
    """Return the skeleton of a PDF. Raises IntegrityError if it is damaged, locked or empty."""
    pages = _without_running_lines(_pages(data, name))
    if not any(_WORDS.search(line.text) for page in pages for line in page):
        hint = "if it is a scan, add a text layer first: ocrmypdf FILE NEW.pdf"
        raise IntegrityError(f"{name} has no text on its {len(pages)} pages", hint)
    body = _body_size(pages)
    source = ""
    found: list[tuple[Passage, Slot]] = []
    for number, page in enumerate(pages, start=1):
        start, text = len(source), _spaced(_markdown(page, body))
        for block in blocks(text):
            words = text[block.start : block.end]
            if _WORDS.search(words):
                slot = Slot(start + block.start, start + block.end, markdown.write)
                found.append((Passage(words, len(found), f"page {number}"), slot))
        source += f"{text}\n\n" if text else ""
    return Spliced(source.rstrip("\n") + "\n", found, ".md")


def _pages(data: bytes, name: str) -> list[list[_Line]]:
    from pypdf import PdfReader

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it logs every irregularity of a file
    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            hint = "unlock it: qpdf --decrypt --password=... FILE NEW.pdf"
            raise IntegrityError(f"{name} is locked by a password", hint)
        return [_lines(page) for page in reader.pages]
    except IntegrityError:
        raise
    except Exception as error:  # a damaged file can raise nearly anything
        reason = str(error) or type(error).__name__
        raise IntegrityError(f"{name} cannot be read as PDF: {reason}", "copy it again") from error


def _lines(page: PageObject) -> list[_Line]:
    """Return the lines of a page with the sizes of their letters."""
    sizes: dict[str, float] = {}

    def visit(text: str, _: Any, matrix: Sequence[float], __: Any, size: float) -> None:
        for part in text.split("\n"):
            if words := _tidy(part):
                sizes[words] = max(sizes.get(words, 0.0), abs(size * (matrix[3] or matrix[0])))

    lines = map(_tidy, page.extract_text(visitor_text=visit).split("\n"))
    return [_Line(line, max((sizes[p] for p in sizes if p in line), default=0.0)) for line in lines]


def _tidy(text: str) -> str:
    # Lone surrogates come from damaged fonts and cannot be encoded.
    return re.sub(r"[\ud800-\udfff\0]", "", text).translate(_LIGATURES).strip()


def _body_size(pages: Sequence[Sequence[_Line]]) -> float:
    """Return the size of most of the text."""
    counts: Counter[float] = Counter()
    for page in pages:
        for line in page:
            counts[line.size] += len(line.text)
    return max(counts, key=lambda size: counts[size])


def _markdown(page: Sequence[_Line], body: float) -> str:
    """Return the lines of a page, with the marks of headings."""
    lines: list[str] = []
    above = False  # whether the line above is a heading
    for line in page:
        heading = bool(line.text) and body > 0 and line.size >= _HEADING * body
        if heading and above:
            lines[-1] += f" {line.text}"
        elif heading:
            lines += ["", f"## {line.text}"]
        else:
            lines += ["", line.text] if above else [line.text]
        above = heading
    return "\n".join(lines).strip("\n")


def _spaced(text: str) -> str:
    """Return a text with a blank line between blocks, which are paragraphs in Markdown."""
    parts, at = [], 0
    for block in blocks(text):
        between = text[at : block.start]
        parts.append(between if "\n\n" in between or not at else between.replace("\n", "\n\n", 1))
        parts.append(text[block.start : block.end])
        at = block.end
    return "".join([*parts, text[at:]])


def _without_running_lines(pages: Sequence[list[_Line]]) -> list[list[_Line]]:
    """Return the pages without the first and last lines that most of them share."""
    kept = [[line for line in page] for page in pages]
    for end in (0, 0, -1, -1):  # up to two lines at each end
        shared = Counter(_pattern(page[end].text) for page in kept if page)
        for page in kept:
            if page and 1 < shared[_pattern(page[end].text)] > _REPEATED * len(pages):
                del page[end]
    return kept


def _pattern(line: str) -> str:
    return re.sub(r"\d+", "0", line)
