"""Readers of parallel text in its publishers' formats."""

import csv
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clean import ENGLISH, LANGUAGES, Line, fits, sentences, tidy

Pair = tuple[str, str, str]  # English sentence, language code, its translation

TATOEBA = {"deu": "deu_Latn", "fra": "fra_Latn", "spa": "spa_Latn", "nld": "nld_Latn"}


def tatoeba_pairs(folder: Path) -> list[Pair]:
    """Return the pairs in deu.txt, fra.txt ...: tab-separated English, translation, attribution."""
    pairs: list[Pair] = []
    for name, code in TATOEBA.items():
        for path in folder.glob(f"**/{name}.txt"):
            with path.open(encoding="utf-8") as file:
                rows = (line.rstrip("\n").split("\t") for line in file)
                pairs += [(tidy(row[0]), code, tidy(row[1])) for row in rows if len(row) > 1]
    return list(dict.fromkeys(pairs))


def split(pairs: list[Pair], dev: int) -> tuple[list[Pair], list[Pair]]:
    """Split off `dev` pairs per language whose sentences occur nowhere else; return both parts."""
    uses = Counter(text for english, _, other in pairs for text in (english, other))
    alone = [pair for pair in pairs if uses[pair[0]] == uses[pair[2]] == 1]
    chosen: set[Pair] = set()
    for code in TATOEBA.values():
        candidates = [pair for pair in alone if pair[1] == code and fits(pair[0] + pair[2])]
        chosen.update(random.Random(0).sample(candidates, min(dev, len(candidates))))
    return [pair for pair in pairs if pair not in chosen], [p for p in pairs if p in chosen]


def grouped(pairs: list[Pair]) -> Iterator[Line]:
    """Yield a line for each English sentence, with its translations into all languages."""
    lines: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for english, code, other in pairs:
        lines[english][code].append(other)
    for english, others in lines.items():
        yield {ENGLISH: [english], **others}


@dataclass(frozen=True)
class Storybook:
    """A story in one language; its pages show the same pictures in every language."""

    title: str
    pages: list[str]
    attribution: str


FREE = ("CCBY", "PUBLICDOMAIN")
# Both repositories of a collection number their stories alike.
COLLECTIONS = {"asp": ("asp-source", "global-asp"), "pb": ("pb-source", "global-pb")}
# Reserved for testing in all languages: examples/eval.jsonl is taken from these.
TEST_STORIES = {f"asp-{number:04}" for number in (1, 66, 87, 95, 156, 158, 201, 210, 324, 327)}


def storybooks(folder: Path) -> dict[str, dict[str, Storybook]]:
    """Return the stories with a free licence, by number and language code."""
    found: dict[str, dict[str, Storybook]] = defaultdict(dict)
    for collection, repositories in COLLECTIONS.items():
        for repository in repositories:
            for short, code in LANGUAGES.items():
                for path in sorted((folder / repository / short).glob("[0-9]*_*.md")):
                    story = _storybook(path.read_text(encoding="utf-8"))
                    if story:
                        found[f"{collection}-{path.name[:4]}"].setdefault(code, story)
    return found


def _storybook(text: str) -> Storybook | None:
    """Parse a story in Markdown: "# TITLE", pages after lines of "##", metadata in the last."""
    first, *pages, last = re.split(r"^##[ \t]*$", text, flags=re.M) if "##" in text else (text, "")
    data = dict(re.findall(r"^\* ([^:\n]+): *(.+)$", last, flags=re.M))
    licence = re.sub(r"[^A-Z]", "", data.get("License", "").upper())
    if licence not in FREE or not pages:
        return None
    makers = [f"{role.lower()}: {data[role]}" for role in ("Text", "Translation") if role in data]
    title = tidy(first.strip().lstrip("#").split("\n")[0])
    return Storybook(title, [tidy(page) for page in pages if page.strip()], "; ".join(makers))


def storybook_sentences(folder: Path) -> Iterator[Line]:
    """Yield the sentences of the stories, aligned where pages have equally many sentences."""
    for pages in _parallel_pages(folder):
        cut = {code: sentences(page) for code, page in pages.items()}
        for size in sorted({len(parts) for parts in cut.values()}):
            alike = {code: parts for code, parts in cut.items() if len(parts) == size}
            for number in range(size):
                yield {code: [parts[number]] for code, parts in alike.items()}


def storybook_pages(folder: Path) -> Iterator[Line]:
    """Yield whole pages of several sentences, in several languages."""
    for pages in _parallel_pages(folder):
        if len(pages) > 1 and any(len(sentences(page)) > 1 for page in pages.values()):
            yield {code: [page] for code, page in pages.items()}


def _parallel_pages(folder: Path) -> Iterator[dict[str, str]]:
    """Yield the pages of the stories, aligned where versions have equally many pages."""
    for number, versions in storybooks(folder).items():
        if number in TEST_STORIES:
            continue
        for size in sorted({len(story.pages) for story in versions.values()}):
            alike = {c: story.pages for c, story in versions.items() if len(story.pages) == size}
            for page in range(size):
                yield {code: pages[page] for code, pages in alike.items()}


BIBLES = {
    "NHEB": "eng_Latn",
    "BBE": "eng_Latn",
    "OEB": "eng_Latn",
    "GerMenge": "deu_Latn",
    "FreCrampon": "fra_Latn",
    "FreSynodale1921": "fra_Latn",
    "SpaRV": "spa_Latn",
    "NlCanisius1939": "nld_Latn",
}


def bible(folder: Path) -> Iterator[Line]:
    """Yield verses in English and another language, from CSV files (Book, Chapter, Verse, Text).

    Translations sometimes number verses differently: a text more than twice or less than half as
    long as the English verse is taken to be another verse.
    """
    verses: dict[tuple[str, ...], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, code in BIBLES.items():
        for path in folder.glob(f"**/{name}.csv"):
            with path.open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    if text := tidy(re.sub(r"[\[\]¶]", "", row["Text"])).replace(" 's ", "'s "):
                        verses[row["Book"], row["Chapter"], row["Verse"]][code].append(text)
    for translations in verses.values():
        english = translations.pop(ENGLISH, [])
        others = {
            code: near
            for code, texts in translations.items()
            if (near := [text for text in texts if english and like_long(english[0], text)])
        }
        if others:
            yield {ENGLISH: english, **others}


def like_long(one: str, other: str) -> bool:
    """Return whether neither text is more than twice as long as the other."""
    return len(one) <= 2 * len(other) and len(other) <= 2 * len(one)


TICO19 = {"fr": "fra_Latn", "es-LA": "spa_Latn"}


def tico19(folder: Path) -> Iterator[Line]:
    """Yield the sentences of dev.en-fr.tsv, test.en-es-LA.tsv ...

    Their columns are sourceLang, targetLang, sourceString, targetString, and the origin.
    """
    pairs = []
    for path in sorted(folder.glob("**/*.en-*.tsv")):
        with path.open(encoding="utf-8") as file:
            for source, target, english, other, *_ in (line.split("\t") for line in file):
                if source == "en" and target in TICO19:
                    pairs.append((tidy(english), TICO19[target], tidy(other)))
    return grouped(pairs)
