"""Word documents (.docx): the text of paragraphs, tables, headers, footers and notes.

A paragraph keeps its style, as do links and emphasis whose words the translation contains. Tabs,
line breaks, pictures and fields stay in their places.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import groupby, takewhile

from lxml import etree

from lcm_cli.documents.formats.archive import Archive, Part, member, opened, parsed
from lcm_cli.documents.formats.marks import pieces
from lcm_cli.documents.formats.skeleton import Mark, Pair, Passage
from lcm_cli.errors import IntegrityError

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_SPACE = "{http://www.w3.org/XML/1998/namespace}space"
_PARTS = re.compile(r"word/(document|header\d*|footer\d*|footnotes|endnotes)\.xml")
_HEADING = re.compile(r"heading|title|berschrift|titre|t.?tulo|kop", re.IGNORECASE)
_REFERENCES = (f"{_W}footnoteReference", f"{_W}endnoteReference", f"{_W}commentReference")
_WRAPPERS = tuple(f"{_W}{name}" for name in ("hyperlink", "ins", "moveTo", "smartTag"))
_WORDS = re.compile(r"\w")


@dataclass
class _Run:
    """A run of text of one style, or a reference to a note, which has no text."""

    element: etree._Element
    text: str = ""

    @property
    def link(self) -> etree._Element | None:
        """The hyperlink around the run."""
        above = self.element.iterancestors(f"{_W}hyperlink", f"{_W}p")
        nearest = next(above, None)
        return nearest if nearest is not None and nearest.tag == f"{_W}hyperlink" else None

    @property
    def style(self) -> bytes:
        """The run's properties, for comparison; spelling and revision marks do not count."""
        own = self.element.find(f"{_W}rPr")
        return b"" if own is None else etree.tostring(own)


@dataclass
class _Stretch:
    """Consecutive runs without a tab, break, picture or field between them."""

    runs: list[_Run] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(run.text for run in self.runs)

    @property
    def anchor(self) -> etree._Element:
        """The first of the elements to replace: siblings that contain exactly these runs."""
        outer = [run.element if run.link is None else run.link for run in self.runs]
        above = [[each, *each.iterancestors()][::-1] for each in outer]
        depth = next(
            n
            for n, level in enumerate(zip(*above, strict=False))
            if len(set(level)) > 1 or level[0] in outer
        )
        return above[0][depth]


class _XmlPart:
    """A part of the document with its passages."""

    def __init__(self, data: bytes, path: str, name: str) -> None:
        self._source = (data, path, name)
        self._root = root = parsed(data, path, name)
        self._stretches: list[_Stretch] = []
        self.passages: list[Passage] = []
        heading = ""
        for run in list(root.iter(f"{_W}r")):
            _split(run)
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
        """Return the XML with its text replaced."""
        part = _XmlPart(*self._source)  # elements are replaced in place: parse a new tree
        for passage, stretch, pairs in zip(part.passages, part._stretches, sentences, strict=True):
            _replace(stretch, passage, pairs, lang)
        done: bytes = etree.tostring(
            part._root, xml_declaration=True, encoding="UTF-8", standalone=True
        )
        return done


def read(data: bytes, name: str) -> Archive:
    """Return the skeleton of a Word document. Raises IntegrityError if it is damaged."""
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


def _split(run: etree._Element) -> None:
    """Split a run with text and other elements into runs with one element each."""
    own, *children = run if run.find(f"{_W}rPr") is not None else (None, *run)
    if len(children) < 2 or run.find(f"{_W}t") is None:
        return
    for child in children:
        part = etree.Element(run.tag, dict(run.attrib))
        if own is not None:
            part.append(deepcopy(own))
        part.append(child)
        run.addprevious(part)
    _detach(run)


def _stretches(paragraph: etree._Element) -> Iterator[_Stretch]:
    """Yield the stretches of a paragraph, without those of paragraphs inside it (text boxes)."""
    stretch = _Stretch()
    depth, link = 0, False  # nesting of fields; whether the field is a hyperlink
    for run in paragraph.iter(f"{_W}r"):
        above = list(takewhile(lambda each: each.tag != f"{_W}p", run.iterancestors()))
        owner = above[-1].getparent() if above else run.getparent()
        if owner is not paragraph or any(each.tag == f"{_W}del" for each in above):
            continue
        simple = any(each.tag == f"{_W}fldSimple" for each in above)
        for child in run:
            if child.tag == f"{_W}t" and not simple:
                if not depth or link:
                    stretch.runs.append(_Run(run, child.text or ""))
                continue
            if child.tag in _REFERENCES and stretch.runs and not depth:
                stretch.runs.append(_Run(run))
                continue
            if child.tag == f"{_W}fldChar":
                kind = child.get(f"{_W}fldCharType")
                depth += {"begin": 1, "end": -1}.get(kind or "", 0)
                link = link and depth > 0
            elif child.tag == f"{_W}instrText":
                link = "HYPERLINK" in (child.text or "")
            elif child.tag in (f"{_W}rPr", f"{_W}lastRenderedPageBreak"):
                continue
            yield stretch
            stretch = _Stretch()
    yield stretch


def _marks(stretch: _Stretch) -> Iterator[Mark]:
    """Yield a mark for each run that is a link or differs in style from most of the text."""
    base = _base(stretch)
    at = 0
    for number, run in enumerate(stretch.runs):
        end = at + len(run.text)
        kept = run.link is not None or not run.text
        if kept or run.style != base.style:
            yield Mark(at, end, str(number), "", kept)
        at = end


def _base(stretch: _Stretch) -> _Run:
    """Return the longest run of the most common style."""
    sizes: dict[bytes, int] = {}
    plain = [run for run in stretch.runs if run.link is None] or stretch.runs
    for run in plain:
        sizes[run.style] = sizes.get(run.style, 0) + len(run.text)
    style = max(sizes, key=lambda each: sizes[each])
    return max((run for run in plain if run.style == style), key=lambda run: len(run.text))


def _runs(
    stretch: _Stretch, passage: Passage, pairs: Sequence[Pair], lang: str
) -> Iterator[tuple[_Run, str]]:
    """Yield the texts of a stretch's translation, each with the run that sets its style."""
    base = _base(stretch)
    text = passage.text
    yield base, text[: len(text) - len(text.lstrip())]
    for piece in pieces(passage, pairs, lang):
        yield stretch.runs[int(piece.marks[-1].before)] if piece.marks else base, piece.text
    yield base, text[len(text.rstrip()) :]


def _replace(stretch: _Stretch, passage: Passage, pairs: Sequence[Pair], lang: str) -> None:
    """Put the translation of a stretch in place of its runs."""
    anchor = stretch.anchor
    for _, same in groupby(_runs(stretch, passage, pairs, lang), lambda pair: id(pair[0])):
        parts = list(same)
        run, text = parts[0][0], "".join(part for _, part in parts)
        if text or not run.text:
            anchor.addprevious(_element(run, text))
    for run in stretch.runs:
        _detach(run.element)


def _element(run: _Run, text: str) -> etree._Element:
    """Return a run with other text, in its link if it has one."""
    element = deepcopy(run.element)
    element.tail = None
    for words in element.findall(f"{_W}t"):
        words.text = text
        if text != text.strip():
            words.set(_SPACE, "preserve")
    if run.link is None:
        return element
    link = etree.Element(run.link.tag, dict(run.link.attrib))
    link.append(element)
    return link


def _detach(element: etree._Element) -> None:
    """Remove an element, and any wrappers that this leaves empty."""
    parent = element.getparent()
    if parent is None:
        return
    parent.remove(element)
    if len(parent) == 0 and parent.tag in _WRAPPERS:
        _detach(parent)
