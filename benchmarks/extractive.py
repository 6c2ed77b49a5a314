"""Compare extractive summarization methods, which choose sentences by concepts, on stories.

    python benchmarks/extractive.py stories.jsonl.xz --space tiny --split test

The file has one JSON object per line: {id, lang, title, pages, split}. There are no reference
summaries; the three measures below do not depend on the concepts:

- covers: cosine of the summary and the whole story, as TF-IDF vectors of character 4-grams;
- title: the same for the summary and the title, which states the topic of the story;
- repeats: the same between the sentences of the summary, on average (lower is better).

Every summary has the same share of the story's words. Differences from the first method are given
with their standard error.
"""

import argparse
import itertools
import json
import lzma
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lcm_cli.errors import NotFoundError
from lcm_cli.space import Space, load_space
from lcm_cli.text.languages import find_language
from lcm_cli.text.length import count_words
from lcm_cli.text.segment import segment
from lcm_cli.writing.extractive import opening_weights, rank_sentences


@dataclass
class Story:
    lang: str
    title: str
    sentences: list[str]
    concepts: np.ndarray
    grams: Counter[str]


# A method maps concepts (S, D) to the sentence numbers, best first.
def centroid_with_opening(concepts: np.ndarray) -> Iterator[int]:
    return rank_sentences(concepts, opening_weights(len(concepts)))


def lead(concepts: np.ndarray) -> Iterator[int]:
    return iter(range(len(concepts)))


def chance(concepts: np.ndarray) -> Iterator[int]:
    return iter(np.random.default_rng(abs(int(1e6 * concepts[0, 0]))).permutation(len(concepts)))


def lexrank(concepts: np.ndarray) -> Iterator[int]:
    """Rank by continuous LexRank (Erkan and Radev 2004), with maximal marginal relevance."""
    similar_SS = np.maximum(_cosines(concepts), 0)
    step_SS = similar_SS / similar_SS.sum(axis=1, keepdims=True)
    rank_S = np.ones(len(concepts)) / len(concepts)
    for _ in range(100):
        rank_S = 0.15 / len(concepts) + 0.85 * rank_S @ step_SS
    return _mmr(rank_S, similar_SS)


def pacsum(concepts: np.ndarray) -> Iterator[int]:
    """Rank by PacSum (Zheng and Lapata 2019), with maximal marginal relevance.

    Similarity to later sentences counts for a sentence, similarity to earlier ones against it.
    """
    similar_SS = _cosines(concepts)
    low, high = similar_SS.min(), similar_SS.max()
    edges_SS = np.maximum(similar_SS - (low + 0.3 * (high - low)), 0)
    after_S, before_S = np.triu(edges_SS, 1).sum(axis=1), np.tril(edges_SS, -1).sum(axis=1)
    return _mmr(1.3 * after_S - 0.3 * before_S, similar_SS)


def facility(concepts: np.ndarray) -> Iterator[int]:
    """Rank by facility location (Lin and Bilmes 2011).

    Every sentence of the story should have a similar one in the summary.
    """
    similar_SS = np.maximum(_cosines(concepts), 0)
    covered_S = np.zeros(len(concepts))
    gain_S = np.zeros(len(concepts))
    for _ in concepts:
        gain_S[:] = np.where(gain_S < 0, -1, np.maximum(similar_SS, covered_S).sum(axis=1))
        best = int(gain_S.argmax())
        covered_S = np.maximum(covered_S, similar_SS[best])
        gain_S[best] = -1  # already chosen
        yield best


METHODS: dict[str, Callable[[np.ndarray], Iterator[int]]] = {
    "centroid, opening weighted (lcm)": centroid_with_opening,
    "centroid (Gholipour Ghalandari 2017)": rank_sentences,
    "LexRank + MMR": lexrank,
    "PacSum + MMR": pacsum,
    "facility location": facility,
    "the first sentences": lead,
    "random sentences": chance,
}


def _cosines(concepts: np.ndarray) -> np.ndarray:
    units = concepts / np.linalg.norm(concepts, axis=1, keepdims=True)
    return units @ units.T


def _mmr(score_S: np.ndarray, similar_SS: np.ndarray) -> Iterator[int]:
    """Rank by maximal marginal relevance (Carbonell and Goldstein 1998), with equal weights."""
    score_S, similar_SS = _scaled(score_S), _scaled(similar_SS)
    redundant_S = np.zeros(len(score_S))
    left = list(range(len(score_S)))
    while left:
        best = max(left, key=lambda i: score_S[i] - redundant_S[i])
        redundant_S = np.maximum(redundant_S, similar_SS[best])
        left.remove(best)
        yield best


def _scaled(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / max(float(np.ptp(values)), 1e-9)


def read(path: Path, split: str, space: Space) -> list[Story]:
    """Return the stories of `split` with ten or more sentences in a language of `space`."""
    stories = []
    with lzma.open(path, "rt", encoding="utf-8") as file:
        records = [record for record in map(json.loads, file) if record["split"] == split]
    for record in records:
        try:
            lang = find_language(record["lang"], space.languages).code
        except NotFoundError:
            continue
        sentences = [piece.text for piece in segment("\n\n".join(record["pages"]), lang)]
        if len(sentences) >= 10:
            concepts = space.encode(sentences, lang).concepts
            story = Story(lang, record["title"], sentences, concepts, grams(sentences))
            stories.append(story)
    return stories


def grams(texts: list[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for text in texts:
        words = "".join(c if c.isalnum() else " " for c in text.casefold()).split()
        padded = f" {' '.join(words)} "
        counts.update(padded[i : i + 4] for i in range(len(padded) - 3))
    return counts


def rarity(stories: list[Story]) -> dict[str, dict[str, float]]:
    """Return the inverse document frequency of every 4-gram, by language."""
    weights: dict[str, dict[str, float]] = {}
    for lang in {story.lang for story in stories}:
        same = [set(story.grams) for story in stories if story.lang == lang]
        counts = Counter(gram for found in same for gram in found)
        weights[lang] = {gram: np.log((1 + len(same)) / n) + 0.1 for gram, n in counts.items()}
    return weights


def weighted(counts: Counter[str], weights: dict[str, float]) -> dict[str, float]:
    """Return the TF-IDF vector of 4-gram counts, scaled to length 1."""
    most = max(weights.values())
    vector = {gram: (1 + np.log(n)) * weights.get(gram, most) for gram, n in counts.items()}
    norm = np.sqrt(sum(value * value for value in vector.values())) or 1.0
    return {gram: float(value / norm) for gram, value in vector.items()}


def dot(a: dict[str, float], b: dict[str, float]) -> float:
    return sum(value * b.get(gram, 0.0) for gram, value in a.items())


def chosen(story: Story, method: Callable[[np.ndarray], Iterator[int]], share: float) -> list[str]:
    words = [count_words(sentence) for sentence in story.sentences]
    left, found = share * sum(words), []
    for i in method(story.concepts):
        if words[i] <= left or not found:
            found.append(int(i))
            left -= words[i]
        if left < min(words):
            break
    return [story.sentences[i] for i in sorted(found)]


def measure(story: Story, summary: list[str], weights: dict[str, float]) -> tuple[float, ...]:
    parts = [grams([sentence]) for sentence in summary]
    whole = weighted(sum(parts, Counter[str]()), weights)
    vectors = [weighted(part, weights) for part in parts]
    repeats = [dot(a, b) for a, b in itertools.combinations(vectors, 2)]
    return (
        dot(whole, weighted(story.grams, weights)),
        dot(whole, weighted(grams([story.title]), weights)),
        float(np.mean(repeats)) if repeats else 0.0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("stories", type=Path)
    parser.add_argument("--space", default="tiny")
    parser.add_argument("--split", default="test")
    parser.add_argument("--share", type=float, default=0.2)
    given = parser.parse_args()
    stories = read(given.stories, given.split, load_space(given.space))
    weights = rarity(stories)
    print(
        f"{len(stories)} stories in {', '.join(sorted(weights))}; {given.share:.0%} of the words\n"
    )
    print("| method | covers | title | repeats |\n|---|---|---|---|")
    first = None
    for name, method in METHODS.items():
        rows = [measure(s, chosen(s, method, given.share), weights[s.lang]) for s in stories]
        scores = np.array(rows)
        first = scores if first is None else first
        cells = [f"{mean:.3f}" for mean in scores.mean(axis=0)]
        if scores is not first:
            errors = (scores - first).std(axis=0) / np.sqrt(len(scores))
            differences = (scores - first).mean(axis=0)
            cells = [
                f"{cell} ({d:+.3f} ± {e:.3f})"
                for cell, d, e in zip(cells, differences, errors, strict=True)
            ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
