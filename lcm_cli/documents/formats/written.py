"""Line ends and byte order marks, which text loses as it is read."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from lcm_cli.documents.formats.layout import Layout, Pair, Passage


class AsWritten:
    """A layout whose file gets the byte order mark and the line ends of `data`, its source.

    In a file with different line ends, all become the most frequent one.
    """

    def __init__(self, layout: Layout, data: bytes, *, line_ends: bool = True) -> None:
        self._layout = layout
        self._mark = codecs.BOM_UTF8 if data.startswith(codecs.BOM_UTF8) else b""
        self._end = _line_end(data) if line_ends else b"\n"

    @property
    def passages(self) -> Sequence[Passage]:
        return self._layout.passages

    @property
    def suffix(self) -> str:
        return self._layout.suffix

    @property
    def is_text(self) -> bool:
        return self._layout.is_text

    def render(self, sentences: Sequence[Sequence[Pair]], lang: str) -> bytes:
        """Return the file with other text in its passages."""
        done = self._layout.render(sentences, lang)
        return self._mark + (done if self._end == b"\n" else done.replace(b"\n", self._end))


def _line_end(data: bytes) -> bytes:
    """Return the most frequent line end."""
    both = data.count(b"\r\n")
    counts = {b"\n": data.count(b"\n") - both, b"\r\n": both, b"\r": data.count(b"\r") - both}
    return max(counts, key=lambda end: counts[end])
