"""Parts of a sentence that its translation must retain: numbers, units and negations."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import cache

from lcm_cli.text.languages import UNSPACED, language
from lcm_cli.writing.links import without_links

LONGEST_WORD = 80  # characters; the longest German and Dutch compounds in use are shorter

# "1,000", "1.000", "1 000" and "1'000" are one number.
_NUMBER = re.compile(
    r"(?P<whole>[1-9]\d{0,2}(?P<mark>[.,'’ \u00a0\u2009\u202f])\d{3}(?:(?P=mark)\d{3})*(?!\d))"
    r"(?:[.,](?P<fraction>\d+))?"
    r"|(?P<plain>\d+(?:[.,:/’'-]\d+)*)"
)

# Units next to a number, each with the beginnings of words that may replace it.
_UNITS = {
    "%": r"per ?cent|pour ?cent|prozent|por ciento|procent",
    "°C": r"°|degr|grad|celsius",
    "°F": r"°|degr|grad|fahrenheit",
    "€": r"eur",
    "$": r"dollar|dólar|usd",
    "£": r"pound|pfund|livre|libra|pond",
    "km/h": r"kmh|km|kilom|kph",
    "mph": r"mile|meile|milla|mijl",
    "km": r"kilom",
    "cm": r"centim|zentim",
    "mm": r"millim|milím",
    "m": r"met(?:er|re|ro)|mètre|metro",
    "kg": r"kilo",
    "g": r"gram",
    "ml": r"mill?il",
    "l": r"lit",
}
# The longest first, so that "km/h" is not read as "km".
_SYMBOL = "|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True))
_GAP = "[ \u00a0\u2009\u202f]?"
_UNIT = re.compile(rf"\d{_GAP}({_SYMBOL})(?!\w)|(?<!\w)([€$£]){_GAP}(?=\d)")

_NEGATIONS = {
    # "isn't it?" at the end of a sentence is not a negation.
    "eng": r"not|no|never|none|nobody|nothing|nowhere|neither|nor|without|cannot"
    r"|\w+n['’]t(?! (?:I|you|he|she|it|we|they|there)\?)",
    "deu": r"nicht|kein\w*|nein|nie|niemals|niemand\w*|nichts|nirgend\w*|weder|ohne",
    "fra": r"ne|n['’]|non|pas|jamais|rien|aucune?|nulle?|sans|ni",
    "spa": r"no|nunca|jamás|nadie|nada|ning[uú]n\w*|ni|sin|tampoco",
    "nld": r"niet|nee|geen|nooit|niemand|niets|nergens|noch|zonder",
}


def is_copied(text: str, lang: str) -> bool:
    """Return whether a sentence has nothing to translate and is copied unchanged.

    This applies to links, to text without letters, and, in a language that separates words, to a
    single run of letters and digits that is too long for a word.
    """
    if not any(map(str.isalpha, without_links(text))):
        return True
    long = re.fullmatch(rf"\W*\w{{{LONGEST_WORD + 1},}}\W*", text)
    return long is not None and language(lang).script not in UNSPACED


def lost_parts(source: str, source_lang: str, text: str, lang: str) -> list[str]:
    """Return the numbers, units and negations of `source` that its translation `text` lacks.

    They are given as written in the source. Numbers may differ in their separators, and units
    may be spelt out. Negations and units are checked only between languages with a table.
    """
    lost = _lost_numbers(source, text)
    lost += [unit for unit in _units(source) if not _has_unit(unit, text, lang)]
    negation, kept = _negation(source_lang), _negation(lang)
    if negation and kept and (found := negation.search(source)) and not kept.search(text):
        lost.append(found[0])
    return lost


def numbers(text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield each number as it is written, and its runs of digits without thousands separators.

    Dates, times and decimals have several runs: "3,14" and "3.14" are both ("3", "14").
    """
    # Digits of any script as ASCII, one for one, so that positions stay those of `text`.
    plain = "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
    for found in _NUMBER.finditer(plain):
        if found["whole"]:
            runs = ["".join(re.findall(r"\d", found["whole"]))]
            runs += [found["fraction"]] if found["fraction"] else []
        else:
            runs = re.findall(r"\d+", found["plain"])
        # Leading zeros count only in fractions and minutes: "03.12.2020" is "3/12/2020".
        decimal = len(runs) == 2 and re.fullmatch(r"\d+[.,:]\d+", found["plain"] or "0.0")
        runs = [run if decimal and i else run.lstrip("0") or "0" for i, run in enumerate(runs)]
        yield text[found.start() : found.end()], tuple(runs)


def _lost_numbers(source: str, text: str) -> list[str]:
    # A number of the translation stands for one of the source: "2 of 2" needs two.
    left = Counter(run for _, runs in numbers(text) for run in runs)
    lost = []
    for written, runs in numbers(source):
        needed = Counter(runs)
        if needed <= left:
            left -= needed
        else:
            lost.append(written)
    return lost


def _units(text: str) -> list[str]:
    return list(dict.fromkeys(found[1] or found[2] for found in _UNIT.finditer(text)))


def _has_unit(unit: str, text: str, lang: str) -> bool:
    """Return whether `text` has a unit, as a symbol or, in languages with a table, as a word."""
    if re.search(rf"(?<![^\W\d_]){re.escape(unit)}(?![^\W\d_])", text):
        return True
    return _negation(lang) is None or bool(re.search(rf"\b(?:{_UNITS[unit]})", text, re.IGNORECASE))


@cache
def _negation(lang: str) -> re.Pattern[str] | None:
    """Return the pattern of a language's negations, None if it has no table."""
    words = _NEGATIONS.get(lang[:3])
    # A word may follow the apostrophe of an elision.
    end = r"(?:(?<=['’])|(?!\w))"
    return re.compile(rf"(?<!\w)(?:{words}){end}", re.IGNORECASE) if words else None
