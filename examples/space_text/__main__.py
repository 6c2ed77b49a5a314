"""Build the training text of the bundled space from the files that its sources publish.

RAW has a folder for each source, with the files that `--sources` lists; missing sources are
skipped. Each source becomes a file of JSON Lines in OUT: one object per line, language code ->
sentence, or a list of sentences with the same meaning.

    python examples/space_text --sources
    python examples/space_text RAW OUT --dev 500 --held-out examples/eval*.jsonl
    python examples/space_text RAW OUT --stories

`--stories` writes OUT/stories.jsonl instead: whole stories, for `lcm embed` and make_pairs.py.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import parallel
import prose
import stories
from clean import ENGLISH, HeldOut, Line, cleaned, texts_in
from manual import business_docs
from sources import BOOKS, SOURCES

T = TypeVar("T")

# The name of each file in OUT, its folder in RAW, and the function that reads it.
SENTENCES: dict[str, tuple[str, Callable[[Path], Iterator[Line]]]] = {
    "storybooks": ("storybooks", parallel.storybook_sentences),
    "storybook_pages": ("storybooks", parallel.storybook_pages),
    "tinystories": ("tinystories", stories.sentences_of(stories.tinystories)),
    "bible": ("bible", parallel.bible),
    "business_docs": ("business_docs", business_docs),
    "tico19": ("tico19", parallel.tico19),
    "common_voice": ("common_voice", prose.common_voice),
    "novels": ("novels", prose.novels),
    "germeval": ("germeval", prose.germeval),
    "ancora": ("ancora", prose.ancora),
    "wikinews": ("wikinews", stories.sentences_of(stories.wikinews)),
    "gutenberg": ("gutenberg", stories.sentences_of(stories.gutenberg)),
    "fairytaleqa": ("fairytaleqa", stories.sentences_of(stories.fairytaleqa)),
}
STORIES = {
    "storybooks": stories.whole_storybooks,
    "tinystories": stories.tinystories,
    "gutenberg": stories.gutenberg,
    "fairytaleqa": stories.fairytaleqa,
    "wikinews": stories.wikinews,
}


def main(given: argparse.Namespace) -> None:
    """Run the command line."""
    if given.sources:
        print(listing())
        return
    if not given.raw or not given.out:
        sys.exit("error: give RAW and OUT, or --sources\nhint: see --help")
    if not any((given.raw / source.folder).is_dir() for source in SOURCES):
        sys.exit(f"error: no source in {given.raw}\nhint: --sources lists what to put there")
    given.out.mkdir(parents=True, exist_ok=True)
    if given.stories:
        write(given.out / "stories.jsonl", whole_stories(given.raw))
    else:
        held_out = HeldOut()
        for path in given.held_out:
            held_out.add(texts_in(path))
        build(given.raw, given.out, held_out, given.dev)


def build(raw: Path, out: Path, held_out: HeldOut, dev: int) -> None:
    """Write a file for each source found in `raw`."""
    if (raw / "tatoeba").is_dir():
        train, kept = parallel.split(parallel.tatoeba_pairs(raw / "tatoeba"), dev)
        if kept:
            write(out / "dev.jsonl", ({ENGLISH: e, code: t} for e, code, t in kept))
            held_out.add(text for english, _, other in kept for text in (english, other))
        write(out / "tatoeba.jsonl", written(cleaned(parallel.grouped(train), held_out)))
    for name, (folder, read) in SENTENCES.items():
        if (raw / folder).is_dir():
            lines = as_published(raw / folder, read)
            write(out / f"{name}.jsonl", written(cleaned(lines, held_out)))


def as_published(folder: Path, read: Callable[[Path], Iterator[T]]) -> Iterator[T]:
    """Yield the content of a source. Raises ValueError, with its folder, for another format."""
    try:
        yield from read(folder)
    except (ValueError, LookupError, SyntaxError) as error:  # XML errors are SyntaxErrors
        raise ValueError(f"{folder} is not in its publisher's format: {error!r}") from error


def whole_stories(raw: Path) -> Iterator[Mapping[str, object]]:
    """Yield the stories of all sources found in `raw`."""
    for name, read in STORIES.items():
        if (raw / name).is_dir():
            yield from (story.row() for story in as_published(raw / name, read))


def written(lines: Iterable[Line]) -> Iterator[Mapping[str, object]]:
    """Yield lines in the output format: a single sentence of a language is not in a list."""
    for line in lines:
        yield {code: texts[0] if len(texts) == 1 else texts for code, texts in line.items()}


def write(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write JSON Lines, and report their number."""
    beside = path.with_name(f".{path.name}.partial")
    count = 0
    try:
        with beside.open("w", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    print(f"{path}: {count} lines", file=sys.stderr)


def listing() -> str:
    """Return the list of sources: addresses, files and terms."""
    found = []
    for source in SOURCES:
        found.append(f"{source.folder}: {source.what}")
        found += [f"  from  {source.where}", f"  put   {source.put}"]
        found += [f"  terms {source.licence}", f"  name  {source.attribution}", ""]
        if source.folder == "gutenberg":
            found[-1:] = [*(f"  {name}: {numbers}" for name, numbers in BOOKS.items()), ""]
    return "\n".join(found).rstrip()


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python examples/space_text", description=__doc__, formatter_class=raw
    )
    parser.add_argument("raw", metavar="RAW", nargs="?", type=Path, help="a folder for each source")
    parser.add_argument("out", metavar="OUT", nargs="?", type=Path, help="the output folder")
    parser.add_argument("--sources", action="store_true", help="list the sources to download")
    parser.add_argument(
        "--dev", type=int, default=0, metavar="N", help="hold out N pairs per language"
    )
    parser.add_argument(
        "--held-out",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="files of sentences to exclude",
    )
    parser.add_argument("--stories", action="store_true", help="write whole stories instead")
    return parser


if __name__ == "__main__":
    try:
        main(arguments().parse_args())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
