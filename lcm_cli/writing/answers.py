"""Answers about documents: their sentences in each language, and the source of each sentence.

Shapes: N sentences, D concept dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Literal

import numpy as np

from lcm_cli.pipeline import Prepared, prose
from lcm_cli.progress import Progress
from lcm_cli.space.similarity import cosines
from lcm_cli.text.languages import gap
from lcm_cli.text.length import Length
from lcm_cli.writing.links import hide
from lcm_cli.writing.refusal import Refusal

if TYPE_CHECKING:
    from lcm_cli.space import Space

Task = Literal["summarize", "expand"]
AUTO, EXTRACTIVE = "auto", "extractive"  # names for the space's own model, and for no model


@dataclass(frozen=True)
class Citation:
    """A source sentence of the document; `index` counts from 1, `place` is a page, time or heading.

    `similarity` holds, by language code, the cosine of its concept to the answer's sentence in that
    language, encoded again.
    """

    index: int
    text: str
    similarity: dict[str, float] = field(default_factory=dict)
    place: str = ""


@dataclass(frozen=True)
class AnswerSentence:
    """A sentence of an answer: its text by language code, and its nearest source sentences.

    A quoted sentence has one source, whose similarity measures how much of the meaning its decoded
    text keeps: 1 in its own language, empty unless requested. A generated sentence may be far from
    all of its sources; the nearest is first.
    """

    texts: dict[str, str]
    sources: tuple[Citation, ...]


@dataclass(frozen=True)
class Answer:
    """A summary or an expansion of one document.

    `total` is the number of sentences in the document, `method` how the answer was made, `model`
    the model that was used. `fallback` is the reason why its answer was refused. `length` is the
    requested length or the default; None if the model decided.
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
        each: Prepared,
        method: str,
        sentences: tuple[AnswerSentence, ...],
        length: Length | None,
        model: str | None = None,
    ) -> "Answer":
        """Return an answer to the document `each`."""
        document = each.document
        wanted = None if length is None else str(length)
        total = len(document.sentences)
        return cls(document.id, document.lang, method, total, sentences, wanted, model)

    @property
    def texts(self) -> dict[str, str]:
        """The whole text by language code."""
        codes = self.sentences[0].texts if self.sentences else ()
        return {code: _text([each.texts[code] for each in self.sentences], code) for code in codes}


def _text(sentences: Sequence[str], code: str) -> str:
    """Return sentences as running text, in which a heading has its own line."""
    # One that ends in a letter or digit is taken for a heading, in languages with spaces between
    # sentences.
    headings = [text[-1:].isalnum() and gap(code) == " " for text in sentences]
    # Paragraph numbers that grow after each heading; the blank lines between become line breaks.
    lines = accumulate(headings[:-1], initial=0)
    return prose(sentences, code, list(lines)).replace("\n\n", "\n")


def with_fallbacks(answers: Sequence[Answer], quoted: Sequence[Answer]) -> list[Answer]:
    """Replace the refused answers, in order, with those `quoted` from their documents."""
    rest = iter(quoted)
    return [
        answer
        if answer.fallback is None
        else replace(next(rest), model=answer.model, fallback=answer.fallback)
        for answer in answers
    ]


def quote_all(
    window: Sequence[Prepared],
    chosen: Sequence[Sequence[int]],
    space: "Space",
    to: Sequence[str],
    method: str,
    length: Length | None,
    *,
    cite: bool = False,
    progress: Progress | None = None,
) -> list[Answer]:
    """Return answers of the `chosen` sentences of each document, by their indices from 0.

    A sentence is quoted in its own language and decoded into others, all documents together, with
    its links and emoji hidden (see `links`); the text of speech is always decoded. `to` holds
    language codes; if empty, each document stays in its own language. `cite` measures the
    similarities; `progress` receives the number of sentences decoded.
    """
    rows = [(each, n) for each, own in zip(window, chosen, strict=True) for n in own]
    if not rows:
        return [Answer.of(each, method, (), length) for each in window]
    concepts_ND = np.stack([each.concepts[n] for each, n in rows])
    foreign = [
        [code for code in to or [each.document.lang] if _is_decoded(each, code)] for each, _ in rows
    ]
    sources = [each.document.sentences[n] for each, n in rows]
    langs = [each.document.lang for each, _ in rows]
    limits = space.limits(sources, langs)
    written = [  # to be decoded; speech has no links
        source if codes and not each.document.times else ""
        for (each, _), source, codes in zip(rows, sources, foreign, strict=True)
    ]
    masks, concepts_ND = hide(written, langs, concepts_ND, space)
    decoded = decode_each(concepts_ND, foreign, limits, space, progress)
    encoded = encode_each(decoded, space) if cite else None
    quoted = []
    for row, (each, n) in enumerate(rows):
        own, source = each.document.lang, each.document.sentences[n]
        restored = {code: masks[row].restore(text) for code, text in decoded[row].items()}
        texts = {code: restored.get(code, source) for code in to or [own]}
        similarity = {}
        if encoded is not None:
            near = {
                code: _cosine(again_D, concepts_ND[row]) for code, again_D in encoded[row].items()
            }
            similarity = {code: near.get(code, 1.0) for code in texts}  # 1: in its own words
        quoted.append(AnswerSentence(texts, (Citation(n + 1, source, similarity, each.place(n)),)))
    rest = iter(quoted)
    return [
        Answer.of(each, method, tuple(islice(rest, len(own))), length)
        for each, own in zip(window, chosen, strict=True)
    ]


def _is_decoded(each: Prepared, code: str) -> bool:
    """Return whether a document's sentences are decoded into a language, rather than quoted."""
    return code != each.document.lang or bool(each.document.times)


def decode_each(
    concepts_ND: np.ndarray,
    to: Sequence[Sequence[str]],
    limits: Sequence[int],
    space: "Space",
    progress: Progress | None = None,
) -> list[dict[str, str]]:
    """Decode each concept into languages of its own; return its texts by language code.

    `to` and `limits` hold the codes and the most tokens for each concept. Concepts with the same
    codes share one call; `progress` receives the number of sentences decoded.
    """
    texts: list[dict[str, str]] = [{} for _ in concepts_ND]
    for codes in dict.fromkeys(map(tuple, to)):
        if not codes:
            continue
        rows = [n for n, own in enumerate(to) if tuple(own) == codes]
        row_limits = [limits[n] for n in rows]
        found = space.decode(concepts_ND[rows], codes, limits=row_limits, progress=progress)
        for code, decoded in found.items():
            for n, best in zip(rows, decoded, strict=True):
                texts[n][code] = best[0].text
    return texts


def encode_each(texts: Sequence[dict[str, str]], space: "Space") -> list[dict[str, np.ndarray]]:
    """Encode each sentence in each of its languages, in one call; concepts (D,) by code."""
    rows = [(n, code) for n, own in enumerate(texts) for code in own]
    found = space.encode([texts[n][code] for n, code in rows], [code for _, code in rows])
    encoded: list[dict[str, np.ndarray]] = [{} for _ in texts]
    for (n, code), concept_D in zip(rows, found.concepts, strict=True):
        encoded[n][code] = concept_D
    return encoded


def _cosine(left_D: np.ndarray, right_D: np.ndarray) -> float:
    """Return the cosine of two concepts."""
    return float(cosines(left_D[None], right_D[None])[0, 0])
