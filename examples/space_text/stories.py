"""Readers of whole stories in their publishers' formats: for concept models, and as sentences."""

import csv
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from clean import ENGLISH, LANGUAGES, Line, is_sentence, sentences, tidy
from parallel import TEST_STORIES, storybooks
from spelling import modern

TINYSTORIES = 11_000  # of two million, which are very similar
SHORTEST, LONGEST = 5, 60  # sentences; longer tales are split into parts of about equal length


@dataclass(frozen=True)
class Story:
    """A story or a part of one; its translations and its parts have the same `work`."""

    id: str
    work: str
    lang: str
    title: str
    sentences: list[str]
    licence: str
    attribution: str = ""

    def row(self) -> dict[str, object]:
        """Return the story, with a split, in the format of `lcm embed` and make_pairs.py."""
        row = {key: value for key, value in vars(self).items() if value and key != "work"}
        return {**row, "split": _split(self.work)}


def _split(work: str) -> str:
    """Return the split of a work: one in 32 is for validation and one in 32 for testing."""
    if work in TEST_STORIES:
        return "test"
    return {0: "dev", 1: "test"}.get(zlib.crc32(work.encode()) % 32, "train")


def sentences_of(read: Callable[[Path], Iterator[Story]]) -> Callable[[Path], Iterator[Line]]:
    """Return a function that yields the sentences of the stories in a folder."""

    def lines(folder: Path) -> Iterator[Line]:
        for story in read(folder):
            yield from ({story.lang: [text]} for text in story.sentences if is_sentence(text, 2))

    return lines


def tinystories(folder: Path) -> Iterator[Story]:
    """Yield the first stories of the text files, in which <|endoftext|> follows each story."""
    number = 0
    for path in sorted(folder.glob("**/*.txt")):
        for text in _parts(path, "<|endoftext|>"):
            if number == TINYSTORIES:
                return
            if tidy(text) and "â€" not in text:  # a sign of text that was decoded wrongly
                number += 1
                name = f"tiny-{number:05}"
                yield Story(name, name, ENGLISH, "", sentences(text), "CDLA-Sharing-1.0")


def _parts(path: Path, mark: str) -> Iterator[str]:
    """Yield the texts between marks, line by line: the file may be larger than memory."""
    lines: list[str] = []
    with path.open(encoding="utf-8") as file:
        for line in file:
            before, found, after = line.partition(mark)
            lines.append(before)
            if found:
                yield "".join(lines)
                lines = [after]
    yield "".join(lines)


def fairytaleqa(folder: Path) -> Iterator[Story]:
    """Yield the stories in data-by-origin/section-stories/*/*-story.csv: section, text."""
    for path in sorted(folder.glob("**/data-by-origin/section-stories/*/*-story.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            text = " ".join(row["text"] for row in csv.DictReader(file))
        name = path.stem.removesuffix("-story")
        title = name.replace("-", " ").capitalize()
        yield from in_parts(f"ftqa-{name}", ENGLISH, title, sentences(text), "Apache-2.0")


def wikinews(folder: Path) -> Iterator[Story]:
    """Yield the articles in JSON Lines: id, title, abstract (the whole text)."""
    for path in sorted(folder.glob("**/*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            article = json.loads(line)
            name, text = f"wikinews-{article['id']}", sentences(article["abstract"])
            yield Story(name, name, LANGUAGES["fr"], tidy(article["title"]), text, "CC-BY-2.5")


def whole_storybooks(folder: Path) -> Iterator[Story]:
    """Yield the storybooks in each language."""
    for work, versions in storybooks(folder).items():
        for code, book in versions.items():
            cut = [text for page in book.pages for text in sentences(page)]
            name = f"{work}-{code[:3]}"
            yield Story(name, work, code, book.title, cut, "CC-BY-4.0", book.attribution)


_BOOK = re.compile(r"\*\*\* ?START OF.*?\*\*\*(.*?)\*\*\* ?END OF", re.S)
_LANGUAGE = re.compile(r"^Language: (\w+)", re.M)
_NAMES = {"English": "en", "German": "de", "French": "fr", "Spanish": "es", "Dutch": "nl"}
_FRONT = re.compile(
    r"(?i)preface|introduction|contents|vorwort|inhalt|préface|table|índice|voorrede|voorwoord|inhoud"
)
_NO_TEXT = re.compile(r"(?i)\[footnote|produced by|transcriber")
_MARKS = re.compile(r"_|\[\d+\]|\[Illustration[^\]]*\]")


def gutenberg(folder: Path) -> Iterator[Story]:
    """Yield the tales of Project Gutenberg's plain texts, which are separated by blank lines."""
    for path in sorted(folder.glob("**/*.txt")):
        text = path.read_text(encoding="utf-8-sig").replace("\r\n", "\n")
        book, language = _BOOK.search(text), _LANGUAGE.search(text)
        short = _NAMES.get(language[1]) if language else None
        if not book or not short:
            continue
        licence, title, number = f"public domain (Project Gutenberg, {path.stem})", "", 0
        for chapter in re.split(r"\n(?:[ \t]*\n){3,}", book[1]):
            heading, found = _tale(chapter, LANGUAGES[short])
            title = heading or title
            if len(found) >= SHORTEST and not _FRONT.match(title):
                number += 1
                name = f"{path.stem}-{number:03}"
                yield from in_parts(name, LANGUAGES[short], title, found, licence)
                title = ""


def _tale(chapter: str, code: str) -> tuple[str, list[str]]:
    """Return the last heading before the text of a chapter, and its sentences."""
    title = ""
    found: list[str] = []
    for paragraph in map(tidy, re.split(r"\n[ \t]*\n", chapter)):
        paragraph = _MARKS.sub("", paragraph).replace("--", "—").strip()
        if not paragraph or _NO_TEXT.match(paragraph):
            continue
        if paragraph.isupper() or not re.search(r"[.!?…;:,][\"'“”’«»)]*$", paragraph):
            heading = paragraph.strip(".")
            heading = modern(heading.capitalize() if heading.isupper() else heading, code)
            title = title if found else heading
        else:
            found += sentences(modern(paragraph, code))
    return title, found


def in_parts(name: str, code: str, title: str, text: list[str], licence: str) -> Iterator[Story]:
    """Yield a tale, split into parts of about equal length if it is long."""
    parts = -(-len(text) // LONGEST)
    for part in range(parts):
        cut = text[part * len(text) // parts : (part + 1) * len(text) // parts]
        suffix = f"-p{part + 1}" if parts > 1 else ""
        yield Story(name + suffix, name, code, title, cut, licence)
