"""Message catalogs of GNU gettext (.po, .pot): missing translations are filled in.

Each of them is marked as fuzzy, gettext's term for a translation that a person must check.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from lcm_cli.documents.formats.marks import fill
from lcm_cli.documents.formats.skeleton import Mark, Pair, Passage, Slot, Spliced
from lcm_cli.errors import IntegrityError
from lcm_cli.text.blocks import blocks
from lcm_cli.text.languages import short_tag

if TYPE_CHECKING:
    import polib

# Placeholders of C, Python and brace formats: %s, %(name)d, %1$s, {0}, {name}; and mnemonics.
_PLACEHOLDER = re.compile(
    r"%(?:\(\w+\)|\d+\$)?[-+#0]*\d*(?:\.\d+)?[hlL]*[a-zA-Z]|\{\w*(?:[:!][^{}]*)?\}"
)
_WORDS = re.compile(r"\w")


class Catalog:
    """The skeleton of a catalog, with passages for each text that lacks a translation.

    Raises IntegrityError for a source that is not a catalog.
    """

    is_text = True
    suffix = ".po"

    def __init__(self, source: str, name: str) -> None:
        self._source, self._name = source, name
        self._texts = [_message(text) for _, _, text in _untranslated(self._parsed())]
        lines = (entry.linenum for entry, _, _ in _untranslated(self._parsed()))
        found = (
            replace(passage, place=f"line {line}")
            for line, text in zip(lines, self._texts, strict=True)
            for passage in text.passages
        )
        self.passages = [replace(passage, paragraph=n) for n, passage in enumerate(found)]

    def render(self, sentences: Sequence[Sequence[Pair]], lang: str) -> bytes:
        """Return the catalog with translations of its untranslated messages."""
        entries = self._parsed()
        plurals = _plurals(entries)
        rest = iter(sentences)
        for (entry, form, _), text in zip(_untranslated(entries), self._texts, strict=True):
            new = text.spliced(list(islice(rest, len(text.passages))), lang)
            if not entry.msgid_plural:
                entry.msgstr = new
            else:
                entry.msgstr_plural |= dict.fromkeys(range(form, plurals if form else 1), new)
            if "fuzzy" not in entry.flags:
                entry.flags.append("fuzzy")
        entries.metadata["Language"] = short_tag(lang)
        return f"{str(entries).rstrip()}\n".encode()

    def _parsed(self) -> polib.POFile:
        import polib

        try:
            # Without a line break polib would open a file of that name.
            return polib.pofile(f"{self._source}\n")
        except (OSError, ValueError, IndexError, AttributeError, TypeError) as error:
            reason = str(error).replace("Syntax error in po file ", "").strip()
            raise IntegrityError(f"{self._name} is not a message catalog: {reason}") from error


def _untranslated(entries: polib.POFile) -> list[tuple[polib.POEntry, int, str]]:
    """Return the untranslated texts: entry, number of the plural form, and text."""
    found = []
    for entry in entries:
        if entry.obsolete or entry.translated():
            continue
        forms = [entry.msgid, entry.msgid_plural] if entry.msgid_plural else [entry.msgid]
        found += [(entry, n, text) for n, text in enumerate(forms) if _has_words(text)]
    return found


def _has_words(text: str) -> bool:
    return bool(_WORDS.search(_PLACEHOLDER.sub("", text)))


def _plurals(entries: polib.POFile) -> int:
    """Return the number of plural forms."""
    found = re.search(r"nplurals\s*=\s*(\d{1,2})", entries.metadata.get("Plural-Forms", ""))
    return int(found[1]) if found else 2


def _message(text: str) -> Spliced:
    """Return the skeleton of a message; gettext compares the line breaks at its ends."""
    return Spliced(text, _blocks(text), ".txt")


def _blocks(text: str) -> Iterator[tuple[Passage, Slot]]:
    for block in blocks(text):
        words = text[block.start : block.end]
        if _has_words(words):
            marks = (
                Mark(*found.span(), "", "", kept=True, verbatim=True)
                for found in _PLACEHOLDER.finditer(words)
            )
            yield Passage(words, marks=tuple(marks)), Slot(block.start, block.end, _write)


def _write(passage: Passage, pairs: Sequence[Pair], lang: str) -> str:
    return fill(passage, pairs, lang, str)
