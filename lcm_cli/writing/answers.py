"""What a document became: the sentences of an answer in each language, and where they come from.

Shapes: N sentences of an answer, D concept dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from lcm_cli.pipeline import Embedded, prose
from lcm_cli.progress import Progress
from lcm_cli.space.similarity import cosines
from lcm_cli.text.length import Length
from lcm_cli.writing.refusal import Refusal

if TYPE_CHECKING:
    from lcm_cli.space import Space

Task = Literal["summarize", "expand"]
AUTO, EXTRACTIVE = "auto", "extractive"  # the space's own model, and none


@dataclass(frozen=True)
class Citation:
    """A sentence of the document. `index` counts from 1.

    `similarity` is the cosine between its concept and that of the answer's sentence in each
    language, encoded again.
    """

    index: int
    text: str
    similarity: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AnswerSentence:
    """One sentence of an answer: its text in each language, and the nearest source sentences.

    A quoted sentence has one source, and its similarity tells how much of the meaning arrived: 1
    where the text is the source itself; empty if it was not asked for. A generated sentence has the
    nearest first, and that one may be far away.
    """

    texts: dict[str, str]
    sources: tuple[Citation, ...]


@dataclass(frozen=True)
class Answer:
    """A summary or an expansion of one document.

    `total` is the number of the document's sentences. `method` says how the answer was made,
    `model` by which model; `fallback` is why the model's answer was refused and the document quoted
    instead. `length` is what was asked for, or the default; None if the model decided.
    """

    id: str
    lang: str
    method: str
    total: int
    sentences: tuple[AnswerSentence, ...]
    length: str | None = None
    model: str | None = None
    fallback: Refusal | None = None

    @classmethod
    def of(
        cls,
        each: Embedded,
        method: str,
        sentences: tuple[AnswerSentence, ...],
        length: Length | None,
        model: str | None = None,
    ) -> "Answer":
        """Return the answer to a document."""
        document = each.document
        wanted = None if length is None else str(length)
        total = len(document.sentences)
        return cls(document.id, document.lang, method, total, sentences, wanted, model)

    @property
    def texts(self) -> dict[str, str]:
        """The whole text in each language."""
        codes = self.sentences[0].texts if self.sentences else ()
        return {code: prose([s.texts[code] for s in self.sentences], code) for code in codes}


def quote_all(
    window: Sequence[Embedded],
    chosen: Sequence[Sequence[int]],
    space: "Space",
    to: Sequence[str],
    *,
    cite: bool = False,
    progress: Progress | None = None,
) -> list[tuple[AnswerSentence, ...]]:
    """Return sentences of the documents themselves, `chosen` of each, counted from 0.

    In its own language a sentence is quoted, in others it is decoded, all documents together. `to`
    holds language codes, none for each document's own. `cite` measures the similarities;
    `progress` is told the number of sentences decoded.
    """
    jobs = [
        _Job(i + 1, each.document.lang, each.document.sentences[i], each.concepts[i], to)
        for each, indices in zip(window, chosen, strict=True)
        for i in indices
    ]
    _decode(jobs, space, progress)
    if cite:
        _compare(jobs, space)
    rest = iter(jobs)
    return [tuple(next(rest).sentence() for _ in indices) for indices in chosen]


@dataclass
class _Job:
    """One sentence on its way into the languages `to`."""

    index: int
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

    def sentence(self) -> AnswerSentence:
        """Return the result."""
        order = self.to or [self.lang]
        texts = {code: self.texts.get(code, self.source) for code in order}
        similarity = {code: self.similarity[code] for code in texts if self.similarity}
        return AnswerSentence(texts, (Citation(self.index, self.source, similarity),))


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
        job.similarity[code] = float(cosines(concept_D[None], job.concept_D[None])[0, 0])
    for job in jobs:
        job.similarity[job.lang] = 1.0  # said in its own words
