"""Cleaning of text: normalization, sentence splitting, and the exclusion of held-out sentences."""

import gzip
import json
import lzma
import random
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

LANGUAGES = {
    "en": "eng_Latn",
    "de": "deu_Latn",
    "fr": "fra_Latn",
    "es": "spa_Latn",
    "nl": "nld_Latn",
}
ENGLISH = LANGUAGES["en"]
MAX_CHARACTERS = 250  # lcm cuts longer sentences before encoding them
MAX_WORDS = 45

Line = dict[str, list[str]]  # language code -> one sentence, or several with the same meaning


def tidy(text: str) -> str:
    """Return the text in NFC, without invisible characters, with single spaces."""
    text = re.sub("[\u00ad\u200b-\u200f\u2060\ufeff]", "", unicodedata.normalize("NFC", text))
    return " ".join(text.split())


def fits(sentence: str) -> bool:
    """Return whether a sentence is short enough for training and has a letter."""
    short = len(sentence) <= MAX_CHARACTERS and len(sentence.split()) <= MAX_WORDS
    return short and any(map(str.isalpha, sentence))


_QUOTES = "\"'“”„‚‘’«»‹›"
_OPENING = re.compile(rf"(?:[{_QUOTES}(\[¿¡—–-]\s?)*(?:\w)")
_CLOSING = re.compile(rf"[.!?…][{_QUOTES})\]\s]*$")


def is_sentence(text: str, fewest: int = 3, most: int = MAX_WORDS) -> bool:
    """Return whether a text is a whole sentence of `fewest` to `most` words.

    A sentence starts with a capital or a digit and ends with a full stop or similar mark, which
    excludes headings, addresses and single words.
    """
    start = _OPENING.match(text)
    if not start or start.group()[-1].islower() or not _CLOSING.search(text):
        return False
    return fewest <= len(text.split()) <= most and fits(text)


# French has a space before », German opens quotations with », without a space after it.
_END = re.compile(r"[.!?…](?:[\"'“”’«»)\]]|\s»(?=\s|$))*(?=\s)")
_ABBREVIATION = re.compile(
    r"(?<!\w)(?:[^\W\d_]|\d{1,2}|Mrs?|Ms|Dr|Prof|St|Capt|Col|Gen|Rev|Mme|Mlle|MM|Mgr|Sra?|Srta|Dña"
    r"|Nr|No|bzw|Hr|Frl|Dhr|Mevr|nr|vs|bv|Jr)\.$"
)


def sentences(text: str) -> list[str]:
    """Return the sentences of a text; line breaks have no meaning."""
    text = tidy(text)
    found, start = [], 0
    for end in (match.end() for match in _END.finditer(text)):
        opening = _OPENING.match(text, end + 1)
        continues = not opening or opening.group()[-1].islower()
        if not continues and not _ABBREVIATION.search(text[start:end]):
            found.append(text[start:end].strip())
            start = end
    return [sentence for sentence in (*found, text[start:].strip()) if sentence]


class HeldOut:
    """Sentences excluded from training data, whatever their case, spacing and punctuation."""

    def __init__(self) -> None:
        self._keys: set[str] = set()

    def add(self, texts: Iterable[str]) -> None:
        """Hold out texts and each of their sentences."""
        for text in texts:
            self._keys.update(map(_key, (text, *sentences(text))))

    def __contains__(self, text: str) -> bool:
        return any(_key(part) in self._keys for part in (text, *sentences(text)))


def _key(text: str) -> str:
    return "".join(filter(str.isalnum, tidy(text).casefold())) or text


def texts_in(path: Path) -> Iterator[str]:
    """Yield the texts in a file: all strings of JSON Lines, else the tab-separated fields."""
    opener: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opener(path, "rt", encoding="utf-8") as file:
        for line in file:
            if ".jsonl" in path.suffixes:
                yield from _strings(json.loads(line))
            else:
                yield from line.rstrip("\n").split("\t")


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def cleaned(lines: Iterable[Line], held_out: HeldOut) -> Iterator[Line]:
    """Yield the lines without unsuitable or held-out sentences, and without duplicates."""
    seen = set()
    for line in lines:
        kept = {}
        for code, texts in line.items():
            tidied = dict.fromkeys(map(tidy, texts))
            if good := [text for text in tidied if fits(text) and text not in held_out]:
                kept[code] = good
        mark = json.dumps(kept)
        if kept and mark not in seen:
            seen.add(mark)
            yield kept


def sample(texts: Iterable[str], at_most: int) -> list[str]:
    """Return at most `at_most` of the distinct texts, always the same ones, in their order."""
    distinct = list(dict.fromkeys(texts))
    if len(distinct) <= at_most:
        return distinct
    chosen = sorted(random.Random(0).sample(range(len(distinct)), at_most))
    return [distinct[number] for number in chosen]
