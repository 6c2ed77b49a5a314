"""Line ends and byte order marks, which reading removes from a text and writing restores."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from lcm_cli.documents.formats.skeleton import Pair, Passage, Skeleton


@dataclass(frozen=True)
class TextForm:
    """The byte order mark of a text file, and its most frequent line end."""

    mark: bytes = b""
    line_end: bytes = b"\n"

    @classmethod
    def of(cls, data: bytes) -> TextForm:
        """Return the form of a file with this content."""
        both = data.count(b"\r\n")
        counts = {b"\n": data.count(b"\n") - both, b"\r\n": both, b"\r": data.count(b"\r") - both}
        mark = codecs.BOM_UTF8 if data.startswith(codecs.BOM_UTF8) else b""
        return cls(mark, max(counts, key=lambda end: counts[end]))


class AsWritten:
    """A skeleton whose file is written in a given form, with uniform line ends."""

    def __init__(self, skeleton: Skeleton, form: TextForm) -> None:
        self._skeleton = skeleton
        self._form = form

    @property
    def passages(self) -> Sequence[Passage]:
        return self._skeleton.passages

    @property
    def suffix(self) -> str:
        return self._skeleton.suffix

    @property
    def is_text(self) -> bool:
        return self._skeleton.is_text

    def render(self, sentences: Sequence[Sequence[Pair]], lang: str) -> bytes:
        """Return the file with the text of its passages replaced."""
        done = self._skeleton.render(sentences, lang)
        end = self._form.line_end
        return self._form.mark + (done if end == b"\n" else done.replace(b"\n", end))
