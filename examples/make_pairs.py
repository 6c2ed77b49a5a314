"""Turn stories into supervised pairs (source, target) for finetuning a concept model.

Each line of the input is a story, {"id", "lang", "sentences": [...]} (or "text"), with a "title" if
there is one. Each line of the output is a pair, {"id", "lang", "task", "sentences": [...],
"target": [...]}, with the story's "split" if it has one.

    python examples/make_pairs.py stories.jsonl --target salience --length 3 > summaries.jsonl
    python examples/make_pairs.py stories.jsonl --task expand --target title > expansions.jsonl

The summary of a story is taken from the story, so that it contains nothing invented:

- salience: the sentences that `lcm summarize` chooses by their concepts, in text order;
- lead:     the first sentences;
- title:    the title; stories without one are skipped.

For "expand" the pair is reversed: from the summary to the whole story. Stories are skipped if the
summary would have more than half of their sentences.
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # to run without installation

import lcm_cli
from lcm_cli.documents import Document
from lcm_cli.errors import IntegrityError, LcmError
from lcm_cli.pipeline import embed, prepare_documents
from lcm_cli.text.languages import find_language
from lcm_cli.text.length import Length, count_words, taken
from lcm_cli.text.segment import segment
from lcm_cli.writing.summarize import choose_sentences

OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
TOGETHER = 64  # stories encoded at a time

Story = dict[str, Any]


def main(given: argparse.Namespace) -> None:
    """Write the pairs to standard output and their number to standard error."""
    length = Length.parse(given.length)
    space = lcm_cli.load_space(given.space) if given.target == "salience" else None
    stories = (story for path in given.stories for story in read(path, given.longest))
    seen, written = 0, 0
    while some := list(islice(stories, TOGETHER)):
        seen += len(some)
        for story, summary in zip(some, summaries(some, given.target, length, space), strict=True):
            if summary and 2 * len(summary) <= len(story["sentences"]):
                print(json.dumps(pair(story, summary, given.task), ensure_ascii=False))
                written += 1
    print(f"{written} pairs from {seen} stories", file=sys.stderr)


def read(path: Path, longest: int | None) -> Iterator[Story]:
    """Yield the stories in a file, truncated to `longest` sentences."""
    with OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                story = json.loads(line)
                lang = find_language(story["lang"]).code
                found = story["sentences"] if "sentences" in story else split(story["text"], lang)
                sentences = [sentence for sentence in found if sentence.strip()]
                yield {**story, "lang": lang, "sentences": sentences[:longest]}
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                form = 'write {"id": "a", "lang": "eng_Latn", "sentences": ["One.", "Two."]}'
                message = f"{path} line {number} is not a story: {error!r}"
                raise IntegrityError(message, form) from None


def split(text: str, lang: str) -> list[str]:
    """Return the sentences of a text."""
    return [piece.text for piece in segment(text, lang)]


def summaries(
    stories: Sequence[Story], target: str, length: Length, space: lcm_cli.Space | None
) -> list[list[str]]:
    """Return the summary of each story as sentences, an empty list if it has none."""
    if target == "title":
        return [[title] if (title := (s.get("title") or "").strip()) else [] for s in stories]
    if space is not None:
        return salient(stories, length, space)
    words = [[count_words(sentence) for sentence in story["sentences"]] for story in stories]
    return [
        [story["sentences"][i] for i in taken(range(len(counts)), counts, length)] if counts else []
        for story, counts in zip(stories, words, strict=True)
    ]


def salient(stories: Sequence[Story], length: Length, space: lcm_cli.Space) -> list[list[str]]:
    """Return the summary of each story by `lcm summarize`."""
    found: list[list[str]] = [[] for _ in stories]
    told = [number for number, story in enumerate(stories) if story["sentences"]]
    documents = [
        Document(str(number), lang=stories[number]["lang"], sentences=stories[number]["sentences"])
        for number in told
    ]
    window = [prepare_documents(document, space.languages, space.name) for document in documents]
    for number, each in zip(told, embed(window, space), strict=True):
        found[number] = [each.document.sentences[i] for i in choose_sentences(each, length)]
    return found


def pair(story: Story, summary: list[str], task: str) -> Story:
    """Return a training pair for a task."""
    source, target = story["sentences"], summary
    if task == "expand":
        source, target = target, source
    head: Story = {key: story[key] for key in ("id", "lang", "split") if key in story}
    return {**head, "task": task, "sentences": source, "target": target}


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("stories", nargs="+", type=Path, help="JSON Lines, also .gz or .xz")
    parser.add_argument("--task", choices=("summarize", "expand"), default="summarize")
    parser.add_argument("--target", choices=("salience", "lead", "title"), default="salience")
    parser.add_argument("--length", default="3", help="of a summary: 3, 20%% or 40w [default: 3]")
    parser.add_argument("--longest", type=int, metavar="N", help="truncate stories to N sentences")
    parser.add_argument("--space", default="tiny", help="the space in which salience is measured")
    return parser


if __name__ == "__main__":
    try:
        main(arguments().parse_args())
    except LcmError as error:
        sys.exit(f"error: {error.message}\nhint: {error.hint}")
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        sys.exit(f"error: {error}")
