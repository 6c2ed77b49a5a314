"""Glossaries: terms and their preferred translations."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lcm_cli.documents.encoding import decode_text
from lcm_cli.errors import IntegrityError, LcmError
from lcm_cli.text.languages import UNSPACED, find_language, language

# Names of the columns in a header, and the fields that they hold.
_COLUMNS = {"source": "term", "target": "translation", "language": "lang"}
_COLUMNS |= {name: name for name in _COLUMNS.values()}
_HINT = "each line has a term, a translation and, optionally, the language of the translation"


@dataclass(frozen=True)
class Term:
    """A term and its translation into the language with code `lang`, or into any if empty."""

    term: str
    translation: str
    lang: str = ""

    def __str__(self) -> str:
        return f"{self.term!r} -> {self.translation!r}"


@dataclass(frozen=True)
class Glossary:
    """Terms with preferred translations."""

    terms: tuple[Term, ...]

    def found(self, sentence: str, source_lang: str, lang: str) -> list[Term]:
        """Return the terms in a sentence that have a translation into the language `lang`."""
        return [
            term
            for term in self.terms
            if term.lang in ("", lang) and occurs(term.term, sentence, source_lang)
        ]


def occurs(phrase: str, text: str, lang: str) -> bool:
    """Return whether `text` has `phrase`, in any case; in whole words if `lang` separates words."""
    whole = language(lang).script not in UNSPACED
    return _pattern(phrase, whole).search(text.casefold()) is not None


def read_glossary(path: Path, languages: Sequence[str], where: str) -> Glossary:
    """Read a glossary in TSV or CSV, with or without a header.

    `languages` are the codes of the space called `where`. Raises IntegrityError, with the line, for
    a missing column, an empty cell, an unknown language, or two translations of one term.
    """
    rows = _rows(decode_text(path.read_bytes(), str(path)))
    order = _header(rows[0][1]) if rows else None
    terms: dict[tuple[str, str], Term] = {}
    for number, cells in rows[1:] if order else rows:
        place = f"{path} line {number}"
        term = _term(cells, order or (0, 1, 2), place, languages, where)
        other = terms.setdefault((term.term.casefold(), term.lang), term)
        if other.translation != term.translation:
            raise IntegrityError(
                f"{place} translates {term.term!r} as {term.translation!r}, an earlier line as"
                f" {other.translation!r}",
                "keep one of them",
            )
    return Glossary(tuple(terms.values()))


def _rows(text: str) -> list[tuple[int, list[str]]]:
    """Return the line number and the cells of each row that is not blank."""
    # The first line decides. Spreadsheets separate cells by semicolons where the comma marks
    # decimals; in TSV, quotation marks are text.
    first = next((line for line in text.split("\n") if line.strip()), "")
    tab = "\t" in first
    mark = ";" if ";" in first and "," not in first else ","
    reader = csv.reader(
        text.split("\n"),
        delimiter="\t" if tab else mark,
        quoting=csv.QUOTE_NONE if tab else csv.QUOTE_MINIMAL,
    )
    rows = ((reader.line_num, [cell.strip() for cell in row]) for row in reader)
    return [(number, cells) for number, cells in rows if any(cells)]


def _header(cells: Sequence[str]) -> tuple[int, ...] | None:
    """Return the columns of term, translation and language if `cells` name them; -1 for none."""
    names = [_COLUMNS.get(cell.casefold(), "") for cell in cells]
    if "" in names or not {"term", "translation"} <= set(names):
        return None
    return tuple(names.index(n) if n in names else -1 for n in ("term", "translation", "lang"))


def _term(
    cells: Sequence[str], order: Sequence[int], place: str, languages: Sequence[str], where: str
) -> Term:
    shown = " | ".join(cells)
    if not 2 <= len(cells) <= 3:
        raise IntegrityError(f"{place} does not have 2 or 3 columns: {shown!r}", _HINT)
    term, translation, lang = (cells[i] if 0 <= i < len(cells) else "" for i in order)
    if not term or not translation:
        what = "translation" if term else "term"
        raise IntegrityError(f"{place} has an empty {what}: {shown!r}", _HINT)
    try:
        code = find_language(lang, languages, where).code if lang else ""
    except LcmError as error:
        raise IntegrityError(f"{place}: {error.message}", error.hint) from error
    return Term(term, translation, code)


@cache
def _pattern(phrase: str, whole: bool) -> re.Pattern[str]:
    # The text is casefolded as well, and any run of blanks matches any other.
    words = r"\s+".join(map(re.escape, phrase.casefold().split()))
    return re.compile(rf"(?<!\w){words}(?!\w)" if whole else words)
