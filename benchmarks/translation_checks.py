"""Measure how well `lcm translate` recognizes wrong translations and retains numbers.

    python benchmarks/translation_checks.py pairs.tsv.xz --flores flores.jsonl.xz --space tiny

The first file has lines of split, two language codes and two sentences that translate each other;
pairs of the split `dev` are used in both directions. The second, optional, has an object per line:
{lang, sentences}, the sentences parallel across languages; the first --sentences of them are used
from and to the first language of the space. Prints three tables:

- thresholds: the share of translations below a cosine, among good ones (chrF of 40 or more against
  the reference), poor ones (chrF below 20), and references made wrong: another sentence's, one
  without its second half, and one without its negation;
- numbers: how many sentences with digits keep all of them, in the likeliest of the five best
  translations and in the one that `lcm translate` chooses;
- false alarms: how many references the checks refuse.
"""

import argparse
import json
import lzma
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lcm_cli.evaluation.metrics import sentence_chrf
from lcm_cli.space import DecodeOptions, Space, load_space
from lcm_cli.space.similarity import unit_length
from lcm_cli.writing.refusal import refuse_sentence
from lcm_cli.writing.retained import lost_parts, numbers

GOOD, POOR = 40, 20  # chrF
THRESHOLDS = (0.60, 0.65, 0.70, 0.72, 0.74, 0.76, 0.80)
_NEGATIONS = {
    "eng": r"\b(?:not|never) |n['’]t\b",
    "deu": r"\b(?:nicht|nie) ",
    "fra": r"\bne |n['’](?=\w)| (?:pas|jamais)\b",
    "spa": r"\b(?:[Nn]o|nunca) (?=\w)",
    "nld": r"\b(?:niet|nooit) ",
}


@dataclass(frozen=True)
class Pair:
    """A sentence and its reference translation."""

    corpus: str
    source_lang: str
    lang: str
    source: str
    reference: str


def read_pairs(path: Path, languages: Sequence[str]) -> list[Pair]:
    """Return the pairs of the split `dev`, in both directions."""
    found = []
    with lzma.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            split, left, right, one, two = line.rstrip("\n").split("\t")
            if split == "dev" and left in languages and right in languages:
                found.append(Pair("pairs", left, right, one, two))
                found.append(Pair("pairs", right, left, two, one))
    return found


def read_flores(path: Path, languages: Sequence[str], count: int) -> list[Pair]:
    """Return pairs from and to the first language."""
    texts = {}
    with lzma.open(path, "rt", encoding="utf-8") as file:
        for record in map(json.loads, file):
            if record["lang"] in languages:
                texts[record["lang"]] = record["sentences"][:count]
    first, *others = languages
    found = []
    for lang in others:
        for one, two in zip(texts[first], texts[lang], strict=True):
            found.append(Pair("flores", first, lang, one, two))
            found.append(Pair("flores", lang, first, two, one))
    return found


def translated(pairs: Sequence[Pair], concepts: np.ndarray, space: Space) -> list[list[str]]:
    """Return the five best translations of each source, the likeliest first."""
    texts: list[list[str]] = [[] for _ in pairs]
    for code in dict.fromkeys(pair.lang for pair in pairs):
        rows = [n for n, pair in enumerate(pairs) if pair.lang == code]
        limits = space.limits([pairs[n].source for n in rows], [pairs[n].source_lang for n in rows])
        found = space.decode(concepts[rows], [code], DecodeOptions(n_best=5), limits=limits)
        for n, best in zip(rows, found[code], strict=True):
            texts[n] = [text.text for text in best]
    return texts


def wrong_references(pairs: Sequence[Pair]) -> dict[str, list[tuple[int, str]]]:
    """Return wrong variants of references by kind, each with the number of its pair."""
    wrong: dict[str, list[tuple[int, str]]] = {"another's": [], "half": [], "no negation": []}
    for lang in dict.fromkeys(pair.lang for pair in pairs):
        own = [n for n, pair in enumerate(pairs) if pair.lang == lang]
        own.sort(key=lambda n: len(pairs[n].reference))  # take one of similar length
        for place, n in enumerate(own):
            other = own[place + 3 if place + 3 < len(own) else place - 3]
            wrong["another's"].append((n, pairs[other].reference))
    for n, pair in enumerate(pairs):
        words = pair.reference.split()
        if len(words) >= 6:
            wrong["half"].append((n, " ".join(words[: len(words) // 2]) + "."))
        pattern = _NEGATIONS.get(pair.lang[:3])
        affirmed = re.sub(pattern, "", pair.reference) if pattern else pair.reference
        if affirmed != pair.reference:
            wrong["no negation"].append((n, affirmed))
    return wrong


def print_thresholds(
    pairs: Sequence[Pair], texts: Sequence[Sequence[str]], concepts: np.ndarray, space: Space
) -> None:
    """Print the share of each kind of translation that lies below each threshold."""
    units = unit_length(concepts)

    def similarities(rows: Sequence[tuple[int, str]]) -> np.ndarray:
        codes = [pairs[n].lang for n, _ in rows]
        again = space.encode([text for _, text in rows], codes).concepts
        found: np.ndarray = (units[[n for n, _ in rows]] * unit_length(again)).sum(axis=1)
        return found

    first = similarities([(n, best[0]) for n, best in enumerate(texts)])
    chrf = np.array(
        [sentence_chrf(best[0], p.reference) for p, best in zip(pairs, texts, strict=True)]
    )
    kinds = {"good": first[chrf >= GOOD], "poor": first[chrf < POOR]}
    kinds |= {name: similarities(rows) for name, rows in wrong_references(pairs).items()}
    print(f"| below | {' | '.join(f'{k} ({len(v)})' for k, v in kinds.items())} |")
    print(f"|---|{'---|' * len(kinds)}")
    for limit in THRESHOLDS:
        shares = " | ".join(f"{(found < limit).mean():.1%}" for found in kinds.values())
        print(f"| {limit:.2f} | {shares} |")


def print_numbers(pairs: Sequence[Pair], texts: Sequence[Sequence[str]]) -> None:
    """Print how many sentences with digits keep all their numbers, and their mean chrF."""
    print("\n| corpus | sentences with digits | likeliest | chosen | chrF, likeliest | chosen |")
    print("|---|---|---|---|---|---|")
    for corpus in dict.fromkeys(pair.corpus for pair in pairs):
        rows = [
            (pair, best, min(best, key=lambda text, pair=pair: len(_lost(pair, text))))
            for pair, best in zip(pairs, texts, strict=True)
            if pair.corpus == corpus and any(numbers(pair.source))
        ]
        if rows:
            kept = np.array(
                [[_keeps(pair, best[0]), _keeps(pair, chosen)] for pair, best, chosen in rows]
            ).mean(axis=0)
            chrf = np.array(
                [[sentence_chrf(t, p.reference) for t in (best[0], c)] for p, best, c in rows]
            ).mean(axis=0)
            shares = f"{kept[0]:.0%} | {kept[1]:.0%} | {chrf[0]:.1f} | {chrf[1]:.1f}"
            print(f"| {corpus} | {len(rows)} | {shares} |")


def print_false_alarms(pairs: Sequence[Pair], space: Space) -> None:
    """Print how many references the checks refuse or find incomplete."""
    refused = lacking = 0
    for pair in pairs:
        refused += (
            refuse_sentence(pair.reference, pair.lang, pair.source, space.languages) is not None
        )
        lacking += bool(_lost(pair, pair.reference))
    count = len(pairs)
    print(f"\n{count} references: {refused / count:.2%} refused, {lacking / count:.1%} incomplete")


def _lost(pair: Pair, text: str) -> list[str]:
    return lost_parts(pair.source, pair.source_lang, text, pair.lang)


def _keeps(pair: Pair, text: str) -> bool:
    return not any(part[0].isdecimal() for part in _lost(pair, text))


def main() -> None:
    """Translate the pairs and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--flores", type=Path)
    parser.add_argument("--sentences", type=int, default=100)
    parser.add_argument("--most", type=int, help="use at most this many of the pairs")
    parser.add_argument("--space", default="tiny")
    given = parser.parse_args()
    space = load_space(given.space)
    pairs = read_pairs(given.pairs, space.languages)[: given.most]
    if given.flores:
        pairs += read_flores(given.flores, space.languages, given.sentences)
    concepts = space.encode([p.source for p in pairs], [p.source_lang for p in pairs]).concepts
    texts = translated(pairs, concepts, space)
    print_thresholds(pairs, texts, concepts, space)
    print_numbers(pairs, texts)
    print_false_alarms(pairs, space)


if __name__ == "__main__":
    main()
