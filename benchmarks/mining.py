"""Measure mining and alignment in the bundled space: precision, recall and F1.

    python benchmarks/mining.py --tatoeba parallel_ccby.tsv.xz --stories storybooks_ccby.jsonl.xz \
        --flores flores200_devtest.jsonl.xz

`--tatoeba` has the columns split, language 1, language 2, text 1 and text 2 (Tatoeba, CC-BY 2.0
FR); its pairs of the split "dev" are to be found, each language alone, and then among 2,000
sentences on either side that belong to other pairs of the split "train". `--flores` has an object
{"lang", "sentences"} per line (FLORES-200 devtest, CC-BY-SA 4.0). `--stories` has an object {"id",
"lang", "pages"} per line (African Storybook and Global Storybooks, CC-BY 4.0): the pages of all
stories in two languages are two shuffled piles. The sides are shuffled with a fixed seed. A found
pair counts if its texts are a pair of the data.

The alignment drops 15 % of the sentences of FLORES on each side, and joins 10 % with their
neighbours; a link of several sentences counts once for each pair in it. Markdown tables for
docs/search.md.
"""

import argparse
import json
import lzma
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from lcm_cli.search.alignment import Side, align
from lcm_cli.search.mining import THRESHOLD, mine
from lcm_cli.space import Space, load_space

PIVOT = "eng_Latn"
OTHERS = ("deu_Latn", "fra_Latn", "spa_Latn", "nld_Latn")
STORIES = {"fra_Latn": "eng_Latn", "spa_Latn": "deu_Latn"}  # few stories are in other pairs
CODES = {"eng_Latn": "en", "deu_Latn": "de", "fra_Latn": "fr", "spa_Latn": "es"}
DISTRACTORS = 2000
THRESHOLDS = [round(float(x), 2) for x in np.arange(1.0, 1.41, 0.02)]
Pairs = list[tuple[str, str]]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    for name in ("tatoeba", "stories", "flores"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--limit", type=int, default=1_000_000, help="pairs of a set")
    options = parser.parse_args()
    space = load_space("tiny", device="cpu")
    curves: dict[str, list[np.ndarray]] = {}
    print("| pairs | languages | pairs | others | F1 | precision | recall | best F1 | at |")
    print("|---|---|---|---|---|---|---|---|---|")
    for lang in OTHERS:
        for name, pivot, pairs, extra in _sets(options, lang):
            pairs, extra = pairs[: options.limit], extra[: options.limit]
            curve = _curve(space, pivot, lang, pairs, extra)
            curves.setdefault(name, []).append(curve)
            _print_best(f"{name} | {pivot[:3]}-{lang[:3]}", pairs, extra, curve)
    print("\n| threshold |", " | ".join(curves), "| mean |")
    print("|---|" + "---|" * (len(curves) + 1))
    means = np.stack([np.mean([c[:, 0] for c in each], axis=0) for each in curves.values()])
    for number, threshold in enumerate(THRESHOLDS):
        cells = [*means[:, number], means[:, number].mean()]
        print(f"| {threshold:.2f} | {' | '.join(f'{100 * cell:.1f}' for cell in cells)} |")
    print("\n| skip |", " | ".join(OTHERS), "| mean |")
    print("|---|" + "---|" * (len(OTHERS) + 1))
    documents = [_damaged(space, _flores(options.flores, lang), lang) for lang in OTHERS]
    for skip in (0.3, 0.35, 0.4, 0.42, 0.45, 0.5):
        scores = [_alignment_f1(*each, skip) for each in documents]
        cells = [*scores, float(np.mean(scores))]
        print(f"| {skip} | {' | '.join(f'{100 * cell:.1f}' for cell in cells)} |", flush=True)


def _sets(options: argparse.Namespace, lang: str) -> Iterator[tuple[str, str, Pairs, Pairs]]:
    rng = np.random.default_rng(0)
    with lzma.open(options.tatoeba, "rt", encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line in file]
    rows = [row for row in rows if row[1:3] == [PIVOT, lang]]
    dev = [(row[3], row[4]) for row in rows if row[0] == "dev"]
    rest = [(row[3], row[4]) for row in rows if row[0] == "train"]
    chosen = [rest[i] for i in rng.choice(len(rest), 2 * DISTRACTORS, replace=False)]
    # English sentences of one half and the others of the other half: no pair among them.
    extra = [(chosen[i][0], chosen[i + DISTRACTORS][1]) for i in range(DISTRACTORS)]
    flores = _flores(options.flores, lang)
    yield "Tatoeba", PIVOT, dev, []
    yield "Tatoeba + 2,000", PIVOT, dev, extra
    yield "FLORES", PIVOT, flores, []
    yield "FLORES + 2,000", PIVOT, flores, extra
    if lang in STORIES:
        yield "stories", STORIES[lang], _pages(options.stories, STORIES[lang], lang), []


def _flores(path: str, lang: str) -> Pairs:
    with lzma.open(path, "rt", encoding="utf-8") as file:
        texts = {line["lang"]: line["sentences"] for line in map(json.loads, file)}
    return list(zip(texts[PIVOT], texts[lang], strict=True))


def _pages(path: str, pivot: str, lang: str) -> Pairs:
    with lzma.open(path, "rt", encoding="utf-8") as file:
        stories = {(story["lang"], story["id"]): story["pages"] for story in map(json.loads, file)}
    pairs = []
    for (own, id), pages in stories.items():
        others = stories.get((CODES[pivot], id), [])
        if own == CODES[lang] and len(pages) == len(others):
            pairs += list(zip(others, pages, strict=True))
    # The encoder reads 256 tokens: pages that are much longer are left out.
    return [(a, b) for a, b in pairs if 0 < len(a) <= 250 and 0 < len(b) <= 250]


def _encode(space: Space, texts: list[str], lang: str) -> np.ndarray:
    """Return concepts, each computed once in the whole run."""
    new = [text for text in dict.fromkeys(texts) if (lang, text) not in _known]
    for text, concept in zip(new, space.encode(new, lang).concepts, strict=True):
        _known[lang, text] = concept
    return np.stack([_known[lang, text] for text in texts])


_known: dict[tuple[str, str], np.ndarray] = {}


def _curve(space: Space, pivot: str, lang: str, pairs: Pairs, extra: Pairs) -> np.ndarray:
    """Return F1, precision and recall at each threshold, (thresholds, 3)."""
    rng = np.random.default_rng(1)
    sides = [[pair[side] for pair in [*pairs, *extra]] for side in (0, 1)]
    order = [rng.permutation(len(side)) for side in sides]
    concepts = [
        _encode(space, [side[i] for i in places], code)
        for side, places, code in zip(sides, order, (pivot, lang), strict=True)
    ]
    gold = set(pairs)
    found = [
        (pair.score, (sides[0][order[0][pair.x]], sides[1][order[1][pair.y]]))
        for pair in mine(*concepts, threshold=0.0)
    ]
    # A sentence is paired once: more translations of it cannot be found.
    most = min(len({pair[0] for pair in gold}), len({pair[1] for pair in gold}))
    rows = []
    for threshold in THRESHOLDS:
        taken = [pair for score, pair in found if score >= threshold]
        rows.append(_scores(sum(pair in gold for pair in taken), len(taken), most))
    return np.array(rows)


def _scores(hits: int, found: int, wanted: int) -> tuple[float, float, float]:
    precision, recall = hits / max(1, found), hits / wanted
    return 2 * precision * recall / max(1e-9, precision + recall), precision, recall


def _print_best(name: str, pairs: Pairs, extra: Pairs, curve: np.ndarray) -> None:
    default = THRESHOLDS.index(THRESHOLD)
    best = int(curve[:, 0].argmax())
    cells = [f"{100 * value:.1f}" for value in (*curve[default], curve[best, 0])]
    sizes = f"{len(set(pairs))} | {len(extra)}"
    print(f"| {name} | {sizes} | {' | '.join(cells)} | {THRESHOLDS[best]} |", flush=True)


def _damaged(space: Space, pairs: Pairs, lang: str) -> tuple[Side, Side, set[tuple[int, int]]]:
    """Return two versions of a document, with sentences left out and joined, and the true links."""
    rng = np.random.default_rng(2)
    sides, groups = [], []
    for side, code in ((0, PIVOT), (1, lang)):
        kept = [i for i in range(len(pairs)) if rng.random() > 0.15]
        joined: list[list[int]] = []
        for i in kept:
            if joined and len(joined[-1]) == 1 and joined[-1][0] == i - 1 and rng.random() < 0.1:
                joined[-1].append(i)
            else:
                joined.append([i])
        texts = [" ".join(pairs[i][side] for i in group) for group in joined]
        both = [f"{a} {b}" for a, b in pairwise(texts)]
        sides.append(Side.of(*(_encode(space, each, code) for each in (texts, both))))
        groups.append(joined)
    gold = {
        (x, y)
        for x, own in enumerate(groups[0])
        for y, other in enumerate(groups[1])
        if set(own) & set(other)
    }
    return sides[0], sides[1], gold


def _alignment_f1(x: Side, y: Side, gold: set[tuple[int, int]], skip: float) -> float:
    found = {
        (link.x + i, link.y + j)
        for link in align(x, y, skip)
        for i in range(link.x_count)
        for j in range(link.y_count)
    }
    return _scores(len(found & gold), len(found), len(gold))[0]


if __name__ == "__main__":
    main()
