"""Compare sentence segmenters on the hard cases of tests/data/segmentation.jsonl.

    pip install pysbd wtpsplit
    python benchmarks/segmentation.py
    python benchmarks/segmentation.py --errors dev        # what lcm gets wrong
    python benchmarks/segmentation.py --speed book.txt    # in the language en

Systems that are not installed, or whose weights are not on this machine, are named and skipped.
A boundary is the number of characters other than white space before the end of a sentence; the end
of the text does not count. Boundaries are pooled over texts (micro-average). Half of the texts,
chosen by a hash, are for development (dev); the rules of lcm were written without the other half
(test). The result is a pair of Markdown tables for docs/segmentation.md.
"""

import argparse
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lcm_cli.errors import LcmError
from lcm_cli.text.segment import segment

CASES = Path(__file__).parents[1] / "tests" / "data" / "segmentation.jsonl"
CODES = {"en": "eng_Latn", "de": "deu_Latn", "fr": "fra_Latn", "es": "spa_Latn", "nl": "nld_Latn"}

Split = Callable[[str, str], Sequence[str]]  # text, language such as "en" -> sentences


@dataclass(frozen=True)
class Case:
    lang: str
    kind: str
    text: str
    sentences: list[str]

    @property
    def part(self) -> str:
        """Return "dev" or "test"."""
        return ("dev", "test")[hashlib.sha256(self.text.encode()).digest()[0] % 2]


def read_cases(path: Path = CASES) -> list[Case]:
    return [Case(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]


def boundaries(text: str, sentences: Iterable[str]) -> set[int]:
    """Return the boundaries of `sentences`, which may lack bullets and the like of `text`."""
    solid = "".join(text.split())
    found, at = set(), 0
    for sentence in sentences:
        for character in "".join(sentence.split()):
            place = solid.find(character, at)
            at = place + 1 if place >= 0 else at
        found.add(at)
    return found - {0, len(solid)}


@dataclass
class Score:
    right: int = 0
    found: int = 0
    gold: int = 0
    exact: int = 0
    texts: int = 0

    def add(self, gold: set[int], found: set[int]) -> None:
        self.right += len(gold & found)
        self.found += len(found)
        self.gold += len(gold)
        self.exact += gold == found
        self.texts += 1

    @property
    def f1(self) -> float:
        return 200 * self.right / max(self.found + self.gold, 1)

    def __str__(self) -> str:
        return f"{self.f1:.1f} ({100 * self.exact / max(self.texts, 1):.0f} %)"


def lcm() -> Split:
    return lambda text, lang: [one.text for one in segment(text, CODES[lang])]


def sentencex() -> Split:
    from sentencex import segment as split

    return lambda text, lang: split(lang, text)


def pysbd() -> Split:
    from pysbd import Segmenter

    segmenter = cache(lambda lang: Segmenter(language=lang, clean=False))
    return lambda text, lang: segmenter(lang).segment(text)


def sat() -> Split:
    from lcm_cli.text.sat import split

    split("Weights are loaded by the first call.")
    return lambda text, lang: split(text)


SYSTEMS = {"lcm": lcm, "sentencex": sentencex, "pysbd": pysbd, "wtpsplit sat-3l-sm": sat}


def load() -> dict[str, Split]:
    """Return the systems that work here; name the others."""
    found = {}
    for name, loader in SYSTEMS.items():
        try:
            found[name] = loader()
        except ImportError as error:
            print(f"{name}: not installed ({error.name})")
        except LcmError as error:
            print(f"{name}: weights not available ({error.message})")
    return found


def scores(split: Split, cases: Sequence[Case], key: Callable[[Case], str]) -> dict[str, Score]:
    found: dict[str, Score] = defaultdict(Score)
    for case in cases:
        gold = boundaries(case.text, case.sentences)
        given = boundaries(case.text, split(case.text, case.lang))
        for group in (key(case), "all"):
            found[group].add(gold, given)
    return found


def table(systems: dict[str, Split], cases: Sequence[Case], key: Callable[[Case], str]) -> None:
    """Print F1 and the share of exact texts, a row for each system."""
    results = {name: scores(split, cases, key) for name, split in systems.items()}
    groups = ["all", *dict.fromkeys(map(key, cases))]
    print("| system | " + " | ".join(groups) + " |")
    print("|---" * (len(groups) + 1) + "|")
    for name, result in results.items():
        print(f"| {name} | " + " | ".join(str(result[group]) for group in groups) + " |")
    print()


def errors(cases: Sequence[Case]) -> None:
    split = lcm()
    for case in cases:
        given = split(case.text, case.lang)
        if boundaries(case.text, given) != boundaries(case.text, case.sentences):
            print(f"{case.lang} {case.kind}: {' | '.join(given)!r}")


def speed(systems: dict[str, Split], path: Path) -> None:
    """Print seconds of processor time per megabyte of text."""
    text = path.read_text("utf-8")
    for name, split in systems.items():
        start = time.process_time()
        split(text, "en")
        taken = time.process_time() - start
        print(f"{name}: {taken / (len(text.encode()) / 1e6):.2f} s/MB")


def by_language(case: Case) -> str:
    return case.lang


def by_kind(case: Case) -> str:
    return case.kind


def main(argv: Sequence[str] | None = None) -> Any:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=Path, default=CASES)
    parser.add_argument("--errors", choices=["dev", "test"])
    parser.add_argument("--speed", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    cases = read_cases(args.cases)
    if args.errors:
        return errors([case for case in cases if case.part == args.errors])
    systems = load()
    if args.speed:
        return speed(systems, args.speed)
    for part in ("dev", "test"):
        chosen = [case for case in cases if case.part == part]
        print(f"\n{part}: {len(chosen)} texts; F1 (share of exact texts)\n")
        table(systems, chosen, by_language)
        table(systems, chosen, by_kind)


if __name__ == "__main__":
    main()
