"""Summaries: the sentences that stand best for a document, in its own language and in others."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lcm_cli.documents import Document
from lcm_cli.length import Length, count_words, taken
from lcm_cli.models.extractive import METHOD, opening_weights, rank
from lcm_cli.pipeline import Embedded, Progress, embed, find_languages, prepare, prose

if TYPE_CHECKING:
    from lcm_cli.space import Space


@dataclass(frozen=True)
class Sentence:
    """One sentence of a summary: its source, and what became of it in each language.

    `index` counts from 1. `similarity` is the cosine between the source's concept and that of the
    text in each language, encoded again: how much of the meaning has arrived. 1 where the text is
    the source itself; empty if it was not asked for.
    """

    index: int
    text: str
    texts: dict[str, str]
    similarity: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """A summary of one document. `total` is the number of sentences that it was chosen from."""

    id: str
    lang: str
    method: str
    total: int
    sentences: tuple[Sentence, ...]

    @property
    def summaries(self) -> dict[str, str]:
        """The whole text in each language."""
        codes = self.sentences[0].texts if self.sentences else ()
        return {code: prose([s.texts[code] for s in self.sentences], code) for code in codes}


def summarize(
    document: Document,
    space: "Space",
    to: Sequence[str] = (),
    length: str = "3",
    *,
    cite: bool = False,
    source: str = "auto",
) -> Summary:
    """Summarize one document, given as text or as sentences.

    `to` names languages (default the document's own), `source` that of a document which does not
    say. `cite` measures the similarity of each summary sentence to its source.
    """
    codes = find_languages(to, space.languages, space.name)
    wanted = Length.parse(length)
    lang = source if source == "auto" else space.find_language(source)
    prepared = prepare(document, space.languages, space.name, lang)
    return summarize_all(embed([prepared], space), space, codes, wanted, cite=cite)[0]


def summarize_all(
    window: Sequence[Embedded],
    space: "Space",
    to: Sequence[str],
    length: Length,
    *,
    cite: bool = False,
    progress: Progress | None = None,
) -> list[Summary]:
    """Summarize embedded documents; the sentences of all of them are decoded together.

    `to` holds language codes, none for each document's own. `progress` is told the number of
    sentences decoded.
    """
    chosen = [choose(each, length) for each in window]
    jobs = [
        _Job(each.document.lang, each.document.sentences[i], each.concepts[i], to)
        for each, indices in zip(window, chosen, strict=True)
        for i in indices
    ]
    _decode(jobs, space, progress)
    if cite:
        _compare(jobs, space)
    rest = iter(jobs)
    return [
        Summary(
            id=each.document.id,
            lang=each.document.lang,
            method=METHOD,
            total=len(each.document.sentences),
            sentences=tuple(next(rest).sentence(i) for i in indices),
        )
        for each, indices in zip(window, chosen, strict=True)
    ]


def choose(embedded: Embedded, length: Length) -> list[int]:
    """Return which sentences make the summary, in their order; at least one."""
    words = [count_words(sentence) for sentence in embedded.document.sentences]
    # What has no words (a line of stars, say) is nothing to quote.
    weights = opening_weights(len(words)) * (np.array(words) > 0)
    ranking = rank(embedded.concepts, weights)
    return taken(ranking, words, length)


@dataclass
class _Job:
    """One sentence of a summary on its way into the languages `to`."""

    lang: str
    source: str
    concept_D: np.ndarray
    to: Sequence[str]
    texts: dict[str, str] = field(default_factory=dict)
    similarity: dict[str, float] = field(default_factory=dict)

    @property
    def missing(self) -> tuple[str, ...]:
        """The languages that it must be decoded into."""
        return tuple(code for code in self.to if code != self.lang)

    def sentence(self, index: int) -> Sentence:
        """Return the result for the sentence at `index`, counted from 0."""
        order = self.to or [self.lang]
        texts = {code: self.texts.get(code, self.source) for code in order}
        similarity = {code: self.similarity[code] for code in texts if self.similarity}
        return Sentence(index + 1, self.source, texts, similarity)


def _decode(jobs: Sequence[_Job], space: "Space", progress: Progress | None) -> None:
    """Fill in the texts, in one call for all the sentences that go into the same languages."""
    for codes in dict.fromkeys(job.missing for job in jobs):
        same = [job for job in jobs if job.missing == codes]
        if not codes:
            continue
        concepts = np.stack([job.concept_D for job in same])
        limits = space.limits([job.source for job in same], [job.lang for job in same])
        found = space.decode(concepts, codes, limits=limits, progress=progress)
        for code, texts in found.items():
            for job, best in zip(same, texts, strict=True):
                job.texts[code] = best[0].text


def _compare(jobs: Sequence[_Job], space: "Space") -> None:
    """Fill in the similarities: encode what was decoded, all of it in one call."""
    pairs = [(job, code) for job in jobs for code in job.texts]
    again = space.encode([job.texts[code] for job, code in pairs], [code for _, code in pairs])
    for (job, code), concept_D in zip(pairs, again.concepts, strict=True):
        job.similarity[code] = _cosine(concept_D, job.concept_D)
    for job in jobs:
        job.similarity[job.lang] = 1.0  # said in its own words


def _cosine(a_D: np.ndarray, b_D: np.ndarray) -> float:
    lengths = float(np.linalg.norm(a_D) * np.linalg.norm(b_D))
    return float(a_D @ b_D) / lengths if lengths else 0.0
