"""Search for the nearest sentences in documents with concepts, which are read in blocks.

Shapes: Q queries, N vectors of a block, D concept dim.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from lcm_cli.documents import Document
from lcm_cli.progress import Progress, ignore
from lcm_cli.search.exact import Nearest, Vectors
from lcm_cli.space.similarity import unit_length

BLOCK = 16_384  # sentences in memory at a time


@dataclass(frozen=True, eq=False)
class Hit:
    """A sentence found: its cosine to the query, and its number in its document, from 1.

    `text` is empty if the file holds concepts only.
    """

    score: float
    document: str
    number: int
    lang: str
    text: str
    concept: Vectors  # (D,)


def search_documents(
    documents: Iterable[Document], queries_QD: Vectors, k: int, progress: Progress = ignore
) -> list[list[Hit]]:
    """Return the `k` sentences nearest to each query, best first; fewer if there are fewer.

    Equal scores keep the order of the sentences. `progress` receives the number of sentences
    searched.
    """
    nearest = Nearest(queries_QD, k)
    kept: dict[int, tuple[Document, int]] = {}  # the nearest so far, by position
    for block in blocks(documents):
        first = nearest.count
        nearest.add(unit_length(np.concatenate([concepts_of(d) for d in block], dtype=np.float32)))
        lengths = np.cumsum([0, *(len(concepts_of(document)) for document in block)])
        old = kept
        kept = {}
        for position in np.unique(nearest.found()[1]).tolist():
            if position >= first:
                place = int(np.searchsorted(lengths, position - first, side="right")) - 1
                at = position - first - int(lengths[place])
                kept[position] = _alone(block[place], at), at
            elif position >= 0:
                kept[position] = old[position]
        progress(int(lengths[-1]))
    return [
        [
            _hit(score, *kept[position])
            for score, position in zip(*row, strict=True)
            if position >= 0
        ]
        for row in zip(*(each.tolist() for each in nearest.found()), strict=True)
    ]


def blocks(documents: Iterable[Document], rows: int = BLOCK) -> Iterator[list[Document]]:
    """Yield lists of documents with at least `rows` sentences each, except perhaps the last."""
    block: list[Document] = []
    count = 0
    for document in documents:
        block.append(document)
        count += len(concepts_of(document))
        if count >= rows:
            yield block
            block, count = [], 0
    if block:
        yield block


def merged(results: Sequence[list[list[Hit]]], k: int) -> list[list[Hit]]:
    """Return the `k` best hits of each query from the results of several searches."""
    together = (chain.from_iterable(parts) for parts in zip(*results, strict=True))
    return [sorted(hits, key=lambda hit: -hit.score)[:k] for hits in together]


def _alone(document: Document, at: int) -> Document:
    """Return a document with one sentence only, so that the memory of the others is freed."""
    sentences = document.sentences[at : at + 1]
    concepts = concepts_of(document)[at : at + 1].copy()
    return Document(document.id, document.lang, sentences=sentences, concepts=concepts)


def _hit(score: float, document: Document, at: int) -> Hit:
    text = document.sentences[0] if document.sentences else ""
    return Hit(score, document.id, at + 1, document.lang, text, concepts_of(document)[0])


def concepts_of(document: Document) -> Vectors:
    """Return the concepts of a document that has them, (S, D)."""
    assert document.concepts is not None
    return document.concepts
