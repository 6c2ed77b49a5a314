"""The skeleton of a document's file: the passages to translate, and everything around them.

A format reads a file into a `Skeleton`. Its passages hold all text that a reader of the document
sees; markup, code, times and table structure are not part of them, and `render` returns these
unchanged around the new text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

Pair: TypeAlias = "tuple[str, str]"  # a sentence of a passage, and the one that replaces it


@dataclass(frozen=True)
class Mark:
    """Markup around the characters [start, end) of a passage, such as `**` or a link.

    A `kept` mark (a link, code, an image) appears in every translation, with its own words in
    parentheses if they cannot be found there; emphasis may be lost with the words that it marks.
    A `verbatim` mark holds code, whose characters are neither translated nor escaped. If the words
    inside change, `renamed` takes the place of `after`, unless it is empty.
    """

    start: int
    end: int
    before: str
    after: str
    kept: bool = False
    verbatim: bool = False
    renamed: str = ""


@dataclass(frozen=True)
class Passage:
    """A piece of running text: a paragraph, a heading, a table cell, the cues of a sentence.

    `text` may be wrapped: a newline in it counts as a space. `place` tells a reader where it is
    ("page 3", "0:01:23", a heading); it is empty if unknown. Passages with the same `paragraph`
    belong together.
    """

    text: str
    paragraph: int = 0
    place: str = ""
    marks: tuple[Mark, ...] = ()


class Skeleton(Protocol):
    """A file with its passages."""

    @property
    def passages(self) -> Sequence[Passage]:
        """The passages, in reading order; none is blank."""
        ...

    @property
    def suffix(self) -> str:
        """The suffix of a file in the format that `render` returns, with its dot."""
        ...

    @property
    def is_text(self) -> bool:
        """Whether `render` returns text in UTF-8, fit for a terminal."""
        ...

    def render(self, sentences: Sequence[Sequence[Pair]], lang: str) -> bytes:
        """Return the file with the text of its passages replaced.

        `sentences` holds the sentences of each passage with their replacements, which are in the
        language with code `lang`.
        """
        ...


Write: TypeAlias = Callable[[Passage, Sequence[Pair], str], str]


@dataclass(frozen=True)
class Slot:
    """The place [start, end) of a passage in the source of its file.

    `write` returns its replacement: the source of the passage with other sentences, in the language
    with the given code.
    """

    start: int
    end: int
    write: Write


class Spliced:
    """A skeleton that copies the source of its file around the slots of the passages."""

    def __init__(
        self,
        source: str,
        found: Iterable[tuple[Passage, Slot]],
        suffix: str,
        encoding: str = "utf-8",
    ) -> None:
        self.source = source
        self.passages, self.slots = [], []
        for passage, slot in found:
            self.passages.append(passage)
            self.slots.append(slot)
        self.suffix = suffix
        self.is_text = encoding == "utf-8"
        self._encoding = encoding

    def spliced(self, sentences: Sequence[Sequence[Pair]], lang: str) -> str:
        """Return the source with the text of its passages replaced."""
        parts, at = [], 0
        for passage, slot, pairs in zip(self.passages, self.slots, sentences, strict=True):
            parts += [self.source[at : slot.start], slot.write(passage, pairs, lang)]
            at = slot.end
        return "".join([*parts, self.source[at:]])

    def render(self, sentences: Sequence[Sequence[Pair]], lang: str) -> bytes:
        """Return the file with the text of its passages replaced."""
        # Only HTML may have an encoding other than UTF-8; it has references for other characters.
        return self.spliced(sentences, lang).encode(self._encoding, "xmlcharrefreplace")
