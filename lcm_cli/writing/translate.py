"""Translation sentence by sentence, with a measure of confidence for each sentence.

A translation is encoded again: the cosine of its concept with that of the source shows how much of
the meaning it keeps. docs/translate.md explains the checks and reports how well they work.

Shapes: S distinct sentences, D concept dim.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Literal

import numpy as np

from lcm_cli.documents import Document
from lcm_cli.pipeline import Prepared, prose
from lcm_cli.progress import Progress
from lcm_cli.space.similarity import cosines
from lcm_cli.writing.glossary import Glossary, occurs
from lcm_cli.writing.links import Masked, hide
from lcm_cli.writing.refusal import refuse_sentence
from lcm_cli.writing.retained import is_copied, lost_parts

if TYPE_CHECKING:
    from lcm_cli.space import Space, Text

Doubt = Literal["far", "empty", "repetition", "language"]

DOUBTS: dict[Doubt, str] = {
    "far": "its meaning may differ from the source",
    "empty": "the translation has no words",
    "repetition": "the translation repeats itself",
    "language": "the translation is in another language",
}
# The cosine below which a translation is doubtful, by the fingerprint of a space. Measured with
# benchmarks/translation_checks.py for `tiny`; the default for other spaces has not been measured.
NEAR = {"231a6eea29c30b44": 0.74}
UNMEASURED = 0.6
MOST_SIMILAR_OF = 3  # likeliest texts that may replace a translation that is far
RETRY_NGRAM = 3  # length of the runs of tokens that may not repeat in a second search


@dataclass(frozen=True)
class TranslateOptions:
    """Options for translating.

    `n_best` is the number of alternatives to return for each sentence, `no_repeat_ngram` the length
    of the runs of tokens that may not repeat (0: no limit).
    """

    n_best: int = 1
    no_repeat_ngram: int = 0
    glossary: Glossary | None = None
    beam: int = 5


@dataclass(frozen=True)
class Candidate:
    """An alternative translation: its length-normalized log probability and its similarity."""

    text: str
    score: float
    similarity: float


@dataclass(frozen=True)
class Rendering:
    """The translation of one sentence into one language.

    `similarity` is the cosine of the sentence's concept with that of `text`, encoded again; 1 for a
    copied sentence. `doubt` is the reason to distrust it. `lost` holds the missing numbers, units,
    negations and terms of the glossary, as written in the source. `candidates` are the n best, if
    more than one was requested, best first.
    """

    text: str
    similarity: float = 1.0
    doubt: Doubt | None = None
    lost: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()


@dataclass(frozen=True)
class Translation:
    """A document and its sentences' translations by language code."""

    document: Document
    sentences: dict[str, list[Rendering]]

    def text(self, lang: str, one_per_line: bool = False) -> str:
        """Return the text in one language, with the paragraphs of the document."""
        said = [rendering.text for rendering in self.sentences[lang]]
        return prose(said, lang, self.document.paragraphs, one_per_line)


@dataclass(frozen=True)
class _Source:
    """A sentence to translate; its links and emoji are hidden."""

    text: str
    lang: str
    masked: Masked
    concept_D: np.ndarray
    limit: int  # most tokens of a translation


@dataclass
class _Option:
    """One of several translations of a sentence, its links still hidden."""

    text: str
    score: float
    refused: bool
    lost: int  # number of missing parts
    similarity: float = float("nan")  # until it is encoded again

    @property
    def new(self) -> bool:
        return math.isnan(self.similarity)


@dataclass
class _Draft:
    """The translation of one sentence into one language: the first of its options."""

    source: _Source
    code: str
    options: list[_Option]
    doubt: Doubt | None = None

    @property
    def best(self) -> _Option:
        return self.options[0]


def translate_all(
    window: Sequence[Prepared],
    space: "Space",
    to: Sequence[str],
    options: TranslateOptions | None = None,
    *,
    progress: Progress | None = None,
) -> list[Translation]:
    """Translate embedded documents together into the languages with the codes `to`.

    `progress` receives the number of sentences decoded, counted once for each language.
    """
    concepts: dict[tuple[str, str], np.ndarray] = {}  # equal sentences are translated once
    for each in window:
        document = each.document
        for text, concept_D in zip(document.sentences, each.concepts, strict=True):
            concepts.setdefault((document.lang, text), concept_D)
    copied = {key for key in concepts if is_copied(key[1], key[0])}
    rest = {key: concept_D for key, concept_D in concepts.items() if key not in copied}
    if progress:
        # Copies and repetitions count as done at once.
        progress(len(to) * (sum(len(each.document.sentences) for each in window) - len(rest)))
    found = _Translator(space, options or TranslateOptions(), progress).renderings(rest, to)
    found |= {(*key, code): Rendering(key[1]) for key in copied for code in to}
    return [
        Translation(
            each.document,
            {
                code: [found[each.document.lang, s, code] for s in each.document.sentences]
                for code in to
            },
        )
        for each in window
    ]


def threshold(space: "Space") -> float:
    """Return the cosine below which a translation in `space` is doubtful."""
    return NEAR.get(space.fingerprint, UNMEASURED)


class _Translator:
    """Translates distinct sentences that contain something to translate."""

    def __init__(
        self, space: "Space", options: TranslateOptions, progress: Progress | None
    ) -> None:
        self._space, self._options, self._progress = space, options, progress
        self._near = threshold(space)

    def renderings(
        self, concepts: Mapping[tuple[str, str], np.ndarray], to: Sequence[str]
    ) -> dict[tuple[str, str, str], Rendering]:
        """Translate the sentences, by language and text; return them by source and target."""
        sources = self._sources(concepts)
        drafts = self._decoded(sources, to)
        self._measure([(d, d.options[: self._options.n_best]) for d in drafts])
        self._judge(drafts)
        self._try_again([draft for draft in drafts if draft.doubt])
        return {(d.source.lang, d.source.text, d.code): self._rendering(d) for d in drafts}

    def _sources(self, concepts: Mapping[tuple[str, str], np.ndarray]) -> list[_Source]:
        """Return the sentences with links and emoji hidden; encode those that have any again."""
        if not concepts:
            return []
        langs, texts = zip(*concepts, strict=True)
        masks, concepts_SD = hide(texts, langs, np.stack(list(concepts.values())), self._space)
        limits = self._space.limits([masked.text for masked in masks], langs)
        return [
            _Source(*each) for each in zip(texts, langs, masks, concepts_SD, limits, strict=True)
        ]

    def _decoded(self, sources: Sequence[_Source], to: Sequence[str]) -> list[_Draft]:
        found = self._decode(sources, to, self._options.no_repeat_ngram, self._progress)
        return [
            _Draft(source, code, self._ranked(source, code, texts))
            for code in to
            for source, texts in zip(sources, found[code], strict=True)
        ]

    def _decode(
        self, sources: Sequence[_Source], to: Sequence[str], ngram: int, progress: Progress | None
    ) -> "dict[str, list[list[Text]]]":
        from lcm_cli.space import DecodeOptions

        if not sources:
            return {code: [] for code in to}
        # Beam search finds as many texts as it has beams anyway.
        beam = max(self._options.beam, self._options.n_best)
        search = DecodeOptions(beam=beam, n_best=beam, no_repeat_ngram=ngram)
        concepts_SD = np.stack([source.concept_D for source in sources])
        limits = [source.limit for source in sources]
        return self._space.decode(concepts_SD, to, search, limits=limits, progress=progress)

    def _ranked(self, source: _Source, code: str, texts: "Sequence[Text]") -> list[_Option]:
        """Return the options that a search found, the most complete first; ties by likelihood."""
        options = [
            _Option(
                text.text,
                text.score,
                refuse_sentence(text.text, code, source.text) is not None,
                len(self._lost(source, code, text.text)) + source.masked.count_lost(text.text),
            )
            for text in texts
        ]
        # Searches return the likeliest first, and the sort is stable.
        return sorted(options, key=lambda option: (option.refused, option.lost))

    def _measure(self, drafts: Sequence[tuple[_Draft, Sequence[_Option]]]) -> None:
        """Set the similarity of options whose similarity is unknown, encoding them in one call."""
        rows = [(d, option) for d, options in drafts for option in options if option.new]
        encoded = self._space.encode(
            [option.text for _, option in rows], [draft.code for draft, _ in rows]
        )
        for (draft, option), concept_D in zip(rows, encoded.concepts, strict=True):
            near = cosines(draft.source.concept_D[None], concept_D[None])
            option.similarity = float(near[0, 0])

    def _judge(self, drafts: Sequence[_Draft]) -> None:
        for draft in drafts:
            draft.doubt = self._refusal(draft, draft.best)
            if draft.doubt is None and draft.best.similarity < self._near:
                draft.doubt = "far"

    def _try_again(self, drafts: Sequence[_Draft]) -> None:
        """Choose the most similar option for doubtful drafts; search refused ones again."""
        refused = [draft for draft in drafts if draft.doubt != "far"]
        # Drafts are in the order of their languages, as `groupby` needs.
        for code, group in groupby(refused, key=lambda draft: draft.code):
            own = list(group)
            found = self._decode([draft.source for draft in own], [code], RETRY_NGRAM, None)[code]
            for draft, texts in zip(own, found, strict=True):
                draft.options += self._ranked(draft.source, code, texts)
        for draft in drafts:
            if draft.doubt == "far":
                del draft.options[max(MOST_SIMILAR_OF, self._options.n_best) :]
        self._measure([(draft, draft.options) for draft in drafts])
        for draft in drafts:
            if draft.doubt == "language":  # so far checked only for the first option
                for option in draft.options:
                    option.refused = self._refusal(draft, option) is not None
            draft.options.sort(key=lambda o: (o.refused, o.lost, -o.similarity))
        self._judge(drafts)

    def _refusal(self, draft: _Draft, option: _Option) -> Doubt | None:
        languages = self._space.languages
        return refuse_sentence(option.text, draft.code, draft.source.text, languages)

    def _rendering(self, draft: _Draft) -> Rendering:
        source, masked = draft.source, draft.source.masked
        candidates = tuple(
            Candidate(masked.restore(option.text), option.score, option.similarity)
            for option in draft.options[: self._options.n_best]
        )
        return Rendering(
            masked.restore(draft.best.text),
            draft.best.similarity,
            draft.doubt,
            tuple(self._lost(source, draft.code, draft.best.text)),
            candidates if self._options.n_best > 1 else (),
        )

    def _lost(self, source: _Source, code: str, text: str) -> list[str]:
        """Return the parts of `source` that a translation lacks; the links of both are hidden."""
        lost = lost_parts(source.masked.text, source.lang, text, code)
        glossary = self._options.glossary
        terms = glossary.found(source.masked.text, source.lang, code) if glossary else []
        return lost + [term.term for term in terms if not occurs(term.translation, text, code)]
