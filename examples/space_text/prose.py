"""Readers of monolingual text in its publishers' formats."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

from clean import LANGUAGES, Line, is_sentence, sample, sentences, tidy
from spelling import modern

# The maximum numbers of sentences per language; French Common Voice has several hundred thousand.
COMMON_VOICE = 90_000
NOVELS = 40_000


def common_voice(folder: Path) -> Iterator[Line]:
    """Yield the lines of de/*.txt, fr/*.txt ... that are sentences."""
    for short, code in LANGUAGES.items():
        texts = (
            text
            for path in sorted((folder / short).glob("*.txt"))
            for text in map(tidy, path.read_text(encoding="utf-8").splitlines())
            if is_sentence(text)
        )
        yield from ({code: [text]} for text in sample(texts, COMMON_VOICE))


ELTEC = {"eng": "eng_Latn", "deu": "deu_Latn", "fra": "fra_Latn", "spa": "spa_Latn"}
_PARAGRAPHS = "{*}text/{*}body//{*}p"


def novels(folder: Path) -> Iterator[Line]:
    """Yield sentences of the novels in ELTeC-deu/level1/*.xml ... (TEI)."""
    for language, code in ELTEC.items():
        texts = (
            text
            for path in sorted((folder / f"ELTeC-{language}").glob("level1/*.xml"))
            for paragraph in ET.parse(path).getroot().iterfind(_PARAGRAPHS)
            for text in sentences(modern("".join(paragraph.itertext()), code))
            if is_sentence(text, fewest=5, most=30)
        )
        yield from ({code: [text]} for text in sample(texts, NOVELS))


def germeval(folder: Path) -> Iterator[Line]:
    """Yield the sentences of NER-de-dev.tsv and NER-de-test.tsv: number, token, tag, tag."""
    for path in sorted(folder.glob("**/NER-de-*.tsv")):
        for block in path.read_text(encoding="utf-8").split("\n\n"):
            rows = [line.split("\t") for line in block.split("\n") if not line.startswith("#")]
            text = joined([row[1] for row in rows if len(row) > 1])
            if is_sentence(text):
                yield {"deu_Latn": [text]}


def joined(tokens: list[str]) -> str:
    """Join tokens into text, without spaces before commas or after opening brackets and quotes."""
    text, quoted, tight = "", False, True
    for token in tokens:
        mark = token == '"'
        closes = (mark and quoted) or bool(re.fullmatch(r"[,.;:!?…%)\]}“”»]+", token))
        text += token if closes or tight else f" {token}"
        tight = (mark and not quoted) or token in ("(", "[", "{", "„", "«")
        quoted ^= mark
    return text


def ancora(folder: Path) -> Iterator[Line]:
    """Yield the sentences of es_ancora-ud-dev.conllu and -test.conllu, from "# text = ..."."""
    for path in sorted(folder.glob("**/*.conllu")):
        found = re.findall(r"^# text = (.+)$", path.read_text(encoding="utf-8"), flags=re.M)
        yield from ({"spa_Latn": [text]} for text in map(tidy, found) if is_sentence(text))
