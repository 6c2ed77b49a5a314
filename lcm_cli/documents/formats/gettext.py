"""Message catalogs of GNU gettext (.po, .pot): the messages without a translation are filled in.

Each filled message is marked as fuzzy, gettext's word for "to be checked by a person".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lcm_cli.documents.formats.layout import Mark, Pair, Passage
from lcm_cli.documents.formats.marks import fill
from lcm_cli.errors import IntegrityError
from lcm_cli.text.languages import short_tag

if TYPE_CHECKING:
    import polib

# Placeholders of C, Python and brace formats: %s, %(name)d, %1$s, {0}, {name}; and mnemonics.
_PLACEHOLDER = re.compile(
    r"%(?:\(\w+\)|\d+\$)?[-+#0]*\d*(?:\.\d+)?[hlL]*[a-zA-Z]|\{\w*(?:[:!][^{}]*)?\}"
)
_WORDS = re.compile(r"\w")


class Catalog:
    """The layout of a catalog: a passage for each text that lacks a translation."""

    is_text = True
    suffix = ".po"

    def __init__(self, source: str, name: str) -> None:
        import polib

        try:
            # Without a line break polib would open a file of that name.
            self._entries = polib.pofile(f"{source}\n")
        except (OSError, ValueError, IndexError, AttributeError, TypeError) as error:
            reason = str(error).replace("Syntax error in po file ", "").strip()
            raise IntegrityError(f"{name} is not a message catalog: {reason}") from error
        self._todo: list[tuple[polib.POEntry, int]] = []  # an entry, and the number of its form
        self.passages: list[Passage] = []
        for entry in self._entries:
            if entry.obsolete or entry.translated():
                continue
            forms = [entry.msgid, entry.msgid_plural] if entry.msgid_plural else [entry.msgid]
            for form, text in enumerate(forms):
                if _WORDS.search(_PLACEHOLDER.sub("", text)):
                    self._todo.append((entry, form))
                    self.passages.append(_passage(text, len(self.passages), entry))

    def render(self, sentences: Sequence[Sequence[Pair]], lang: str) -> bytes:
        """Return the catalog with translations of its untranslated messages."""
        for passage, (entry, form), pairs in zip(self.passages, self._todo, sentences, strict=True):
            text = fill(passage, pairs, lang, str)
            if not entry.msgid_plural:
                entry.msgstr = _edges(entry.msgid, text)
            elif form == 0:
                entry.msgstr_plural = {0: _edges(entry.msgid, text)}
            else:
                entry.msgstr_plural |= dict.fromkeys(self._plurals(), _edges(entry.msgid, text))
            if "fuzzy" not in entry.flags:
                entry.flags.append("fuzzy")
        self._entries.metadata["Language"] = short_tag(lang)
        done = str(self._entries)
        self._clear()
        return f"{done}\n".encode()

    def _plurals(self) -> range:
        """Return the numbers of the plural forms, from 1."""
        found = re.search(
            r"nplurals\s*=\s*(\d{1,2})", self._entries.metadata.get("Plural-Forms", "")
        )
        return range(1, int(found[1]) if found else 2)

    def _clear(self) -> None:
        """Make the catalog ready for another language."""
        for entry, _ in self._todo:
            entry.msgstr = ""
            if entry.msgid_plural:
                entry.msgstr_plural = dict.fromkeys(entry.msgstr_plural, "")
            if "fuzzy" in entry.flags:
                entry.flags.remove("fuzzy")


def _passage(text: str, number: int, entry: polib.POEntry) -> Passage:
    place = f"line {entry.linenum}" if entry.linenum else ""
    core = text.strip("\n")
    marks = (
        Mark(found.start(), found.end(), "", "", kept=True, verbatim=True)
        for found in _PLACEHOLDER.finditer(core)
    )
    return Passage(core, number, place, tuple(marks))


def _edges(msgid: str, text: str) -> str:
    """Give a translation the line breaks at the ends of its message, which gettext compares."""
    start = "\n" if msgid.startswith("\n") else ""
    end = "\n" if msgid.endswith("\n") else ""
    return f"{start}{text.strip()}{end}"
