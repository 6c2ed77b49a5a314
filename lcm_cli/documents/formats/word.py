"""Word documents (.docx): the text of paragraphs, tables, headers, footers and notes.

A paragraph keeps its style, and so does a link or an emphasis whose words the translation contains.
Tabs, line breaks, pictures and fields stay in their places.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field

from lxml import etree

from lcm_cli.documents.formats.archive import Archive, Part, member, opened, parsed
from lcm_cli.documents.formats.layout import Mark, Pair, Passage
from lcm_cli.documents.formats.marks import pieces
from lcm_cli.errors import IntegrityError

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_SPACE = "{http://www.w3.org/XML/1998/namespace}space"
_PARTS = re.compile(r"word/(document|header\d*|footer\d*|footnotes|endnotes)\.xml")
_HEADING = re.compile(r"heading|title|berschrift|titre|t.?tulo|kop", re.IGNORECASE)
_WORDS = re.compile(r"\w")


@dataclass
class _Run:
    """A run of text of one style."""

    element: etree._Element
    text: str = ""

    @property
    def link(self) -> etree._Element | None:
        """The hyperlink around the run."""
        parent = self.element.getparent()
        return parent if parent is not None and parent.tag == f"{_W}hyperlink" else None

    @property
    def style(self) -> bytes:
        """The run's properties, to compare; spelling and revision marks do not count."""
        own = self.element.find(f"{_W}rPr")
        return b"" if own is None else etree.tostring(own)


@dataclass
class _Stretch:
    """Consecutive runs without a tab, break, picture or field between them."""

    runs: list[_Run] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(run.text for run in self.runs)


class _XmlPart:
    """A part of the document with its passages."""

    def __init__(self, data: bytes, path: str, name: str) -> None:
        self._source = (data, path, name)
        self._root = root = parsed(data, path, name)
        self._stretches: list[_Stretch] = []
        self.passages: list[Passage] = []
        heading = ""
        for paragraph in root.iter(f"{_W}p"):
            if any(above.tag.endswith("}Fallback") for above in paragraph.iterancestors()):
                continue
            found = [each for each in _stretches(paragraph) if _WORDS.search(each.text)]
            if found and _is_heading(paragraph):
                heading = " ".join(each.text.strip() for each in found)
            for each in found:
                self._stretches.append(each)
                self.passages.append(Passage(each.text, 0, heading, tuple(_marks(each))))

    def render(self, sentences: Sequence[Sequence[Pair]], lang: str) -> bytes:
        """Return the XML with other text."""
        part = _XmlPart(*self._source)  # the elements are replaced: start from new ones
        for passage, stretch, pairs in zip(part.passages, part._stretches, sentences, strict=True):
            _replace(stretch, passage, pairs, lang)
        done: bytes = etree.tostring(
            part._root, xml_declaration=True, encoding="UTF-8", standalone=True
        )
        return done


def read(data: bytes, name: str) -> Archive:
    """Return the layout of a Word document. Raises IntegrityError if it is damaged."""
    with opened(data, name) as archive:
        if "word/document.xml" not in archive.namelist():
            raise IntegrityError(f"{name} is not a Word document", "save it as .docx or as text")
        names = [path for path in archive.namelist() if _PARTS.fullmatch(path)]
        names.sort(key=lambda path: path != "word/document.xml")
        parts: dict[str, Part] = {
            path: _XmlPart(member(archive, path, name), path, name) for path in names
        }
    return Archive(data, parts, ".docx")


def _is_heading(paragraph: etree._Element) -> bool:
    style = paragraph.find(f"{_W}pPr/{_W}pStyle")
    return style is not None and bool(_HEADING.search(style.get(f"{_W}val", "")))


def _stretches(paragraph: etree._Element) -> Iterator[_Stretch]:
    """Yield the stretches of a paragraph, without those of paragraphs inside it (text boxes)."""
    stretch = _Stretch()
    depth, link = 0, False  # of nested fields, and whether the field is a hyperlink
    for run in paragraph.iter(f"{_W}r"):
        owner = next(run.iterancestors(f"{_W}p"), None)
        if owner is not paragraph or any(True for _ in run.iterancestors(f"{_W}del")):
            continue
        for child in run:
            if child.tag == f"{_W}t":
                if depth and not link:
                    continue
                if not stretch.runs or stretch.runs[-1].element is not run:
                    stretch.runs.append(_Run(run))
                stretch.runs[-1].text += child.text or ""
                continue
            if child.tag == f"{_W}fldChar":
                kind = child.get(f"{_W}fldCharType")
                depth += {"begin": 1, "end": -1}.get(kind or "", 0)
                link = link and depth > 0
            elif child.tag == f"{_W}instrText":
                link = "HYPERLINK" in (child.text or "")
            elif child.tag in (f"{_W}rPr", f"{_W}lastRenderedPageBreak"):
                continue
            if stretch.runs:
                yield stretch
            stretch = _Stretch()
    if stretch.runs:
        yield stretch


def _marks(stretch: _Stretch) -> Iterator[Mark]:
    """Yield a mark for each run that is a link or differs in style from most of the text."""
    base = _base(stretch)
    at = 0
    for number, run in enumerate(stretch.runs):
        end = at + len(run.text)
        if run.link is not None or run.style != base.style:
            yield Mark(at, end, str(number), "", kept=run.link is not None)
        at = end


def _base(stretch: _Stretch) -> _Run:
    """Return the longest run of the most common style."""
    sizes: dict[bytes, int] = {}
    plain = [run for run in stretch.runs if run.link is None] or stretch.runs
    for run in plain:
        sizes[run.style] = sizes.get(run.style, 0) + len(run.text)
    style = max(sizes, key=lambda each: sizes[each])
    return max((run for run in plain if run.style == style), key=lambda run: len(run.text))


def _replace(stretch: _Stretch, passage: Passage, pairs: Sequence[Pair], lang: str) -> None:
    """Put the translation of a stretch in place of its runs."""
    base = _base(stretch)
    text = passage.text
    edges = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
    new = [
        _element(stretch.runs[int(piece.marks[-1].before)] if piece.marks else base, piece.text)
        for piece in pieces(passage, pairs, lang)
    ]
    ends = [[_element(base, edge)] if edge else [] for edge in edges]
    first = stretch.runs[0]
    anchor = first.element if first.link is None else first.link
    for element in [*ends[0], *new, *ends[1]]:
        anchor.addprevious(element)
    for run in stretch.runs:
        _remove(run)


def _element(run: _Run, text: str) -> etree._Element:
    """Return a run with other text, in its link if it has one."""
    element = etree.Element(f"{_W}r")
    own = run.element.find(f"{_W}rPr")
    if own is not None:
        element.append(deepcopy(own))
    words = etree.SubElement(element, f"{_W}t")
    words.text = text
    words.set(_SPACE, "preserve")
    if run.link is None:
        return element
    link = etree.Element(run.link.tag, dict(run.link.attrib))
    link.append(element)
    return link


def _remove(run: _Run) -> None:
    """Remove the text of a run, and the run and its link if nothing else is in them."""
    link = run.link
    for words in run.element.findall(f"{_W}t"):
        run.element.remove(words)
    rest = [child for child in run.element if child.tag != f"{_W}rPr"]
    parent = run.element.getparent()
    if not rest and parent is not None:
        parent.remove(run.element)
    if link is not None and len(link) == 0 and (above := link.getparent()) is not None:
        above.remove(link)
