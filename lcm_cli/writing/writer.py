"""Continuations of documents: a model predicts the next concepts, and its space decodes them.

A `Writer` pairs a model with the space of its concepts. Without a space it reads concepts and
returns concepts, without text.

Shapes: S prompt concepts, N generated concepts, D concept dim.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lcm_cli.documents import Document, SpaceInfo, check_space
from lcm_cli.documents.document import check_plans
from lcm_cli.errors import IntegrityError, UsageError
from lcm_cli.models.checkpoint import check_model_space
from lcm_cli.models.config import SonarLLMConfig, SpaceRef
from lcm_cli.models.diffusion import Denoised
from lcm_cli.models.diffusion_lcm import DiffusionLCM
from lcm_cli.models.generate import (
    Continuation,
    GenerateOptions,
    StopReason,
    check_prompt,
    generate_concepts,
)
from lcm_cli.models.interface import ConceptModel
from lcm_cli.pipeline import (
    embed,
    find_languages,
    prepare_documents,
    prose,
    space_info,
    text_needs_space,
    without_target,
)
from lcm_cli.space import DecodeOptions, Space
from lcm_cli.text.paragraphs import order

MODEL_LANG = "eng_Latn"  # in which training encodes begin, end, break and task texts
MIN_TOKENS = 64  # lowest token limit of a decoded sentence


@dataclass(frozen=True)
class DenoisingStep:
    """The model's estimate of a concept at one denoising step.

    `step` counts from 1. `noise` is the noise scale sigma_t of the step's input (1: pure noise),
    `similarity` the cosine of the estimate to the final concept. `text` is the estimate decoded
    into the first language; None without a space.
    """

    step: int
    noise: float
    similarity: float
    text: str | None = None


@dataclass(frozen=True)
class WrittenSentence:
    """A generated concept (D,) and its text by language code; `steps` if it was traced.

    `index` counts from 1.
    """

    index: int
    concept_D: np.ndarray
    texts: dict[str, str]
    steps: tuple[DenoisingStep, ...] = ()


@dataclass(frozen=True)
class WrittenPlan:
    """A generated plan: the concept (D,) of what a paragraph is about, and its text by language.

    `before` is the index of the paragraph's first sentence.
    """

    before: int
    concept_D: np.ndarray
    texts: dict[str, str]


@dataclass(frozen=True)
class WrittenContinuation:
    """The continuation of one document.

    `prompt` is the number of concepts that the model read, `stop` the reason why it stopped,
    `score` the judge's score of the chosen candidate (None without candidates). `breaks` holds the
    numbers of sentences after which a paragraph ends, `plans` the plans of new paragraphs.
    """

    id: str
    lang: str
    prompt: int
    sentences: tuple[WrittenSentence, ...]
    stop: StopReason
    score: float | None = None
    breaks: tuple[int, ...] = ()
    plans: tuple[WrittenPlan, ...] = ()

    @property
    def paragraphs(self) -> list[int]:
        """The paragraph of each sentence, from 0."""
        ends = set(self.breaks) - {0}
        return [sum(end < each.index for end in ends) for each in self.sentences]

    @property
    def texts(self) -> dict[str, str]:
        """The whole continuation by language code."""
        codes = self.sentences[0].texts if self.sentences else ()
        return {
            code: prose([s.texts[code] for s in self.sentences], code, self.paragraphs)
            for code in codes
        }

    def document(self) -> Document:
        """Return the continuation, of at least one sentence, as a document with concepts."""
        lang = next(iter(self.sentences[0].texts), "")
        sentences = [s.texts[lang] for s in self.sentences] if lang else []
        concepts_ND = np.stack([s.concept_D for s in self.sentences])
        paragraphs = self.paragraphs
        return Document(
            self.id, lang, sentences=sentences, paragraphs=paragraphs, concepts=concepts_ND
        )


# Receives each sentence once it is final, with the number of its document (from 0).
OnSentence = Callable[[int, WrittenSentence], None]


def own_language(space: Space) -> str:
    """Return the language of begin, end, break and task texts: English if the space has it."""
    return MODEL_LANG if MODEL_LANG in space.languages else space.languages[0]


def generate(
    document: Document,
    model: ConceptModel,
    space: Space | None = None,
    to: Sequence[str] = (),
    options: GenerateOptions | None = None,
    *,
    source: str = "auto",
    trace: bool = False,
    on_sentence: Callable[[WrittenSentence], None] | None = None,
) -> WrittenContinuation:
    """Continue one document, given as text, as sentences, or with concepts.

    `to` names the target languages (default: the document's own), `source` the language of a
    document that does not say its own. `trace` records every denoising step. `on_sentence` receives
    each sentence once it is final. Raises as `Writer.continue_all` does.
    """
    writer = Writer(model, space)
    codes = [] if space is None else find_languages(to, space.languages, space.name)
    if document.concepts is None:
        if space is None:
            raise text_needs_space(document)
        lang = source if source == "auto" else space.find_language(source)
        document = without_target(document, keep_plans=model.config.plans)
        prepared = prepare_documents(document, space.languages, space.name, lang)
        document = embed([prepared], space)[0].document

    def on_numbered(number: int, sentence: WrittenSentence) -> None:
        if on_sentence is not None:
            on_sentence(sentence)

    streaming = None if on_sentence is None else on_numbered
    return writer.continue_all([document], codes, options, trace=trace, on_sentence=streaming)[0]


def sampler(model: ConceptModel, **given: Any) -> Any:
    """Return the model's sampling options, set to those of `given` that are not None.

    Raises UsageError for an option that this kind of model does not have.
    """
    wanted = {key: value for key, value in given.items() if value is not None}
    known = [each.name for each in dataclasses.fields(model.Options)]
    for key in wanted:
        if key not in known:
            kind = model.config.architecture
            hint = f"it has: {', '.join(f'--{name}' for name in given if name in known)}"
            raise UsageError(f"a {kind} model has no --{key.replace('_', '-')}", hint)
    return model.options(**wanted)


@dataclass
class _DenoisingTrace:
    """The denoising steps of the concept being generated."""

    model: DiffusionLCM
    seen: list[Denoised] = field(default_factory=list)

    def take(self, concept_D: Tensor) -> tuple[list[Tensor], list[DenoisingStep]]:
        """Return each raw x0 (D,) that led to a concept, with its description, and forget them."""
        schedule = self.model.schedule
        # A break and a plan may precede the concept: its own steps begin at the last step 0.
        first = max((n for n, each in enumerate(self.seen) if each.index == 0), default=0)
        seen = self.seen[first:]
        x0_ND = [self.model.normalizer.denormalize(each.x0)[0] for each in seen]
        steps = [
            DenoisingStep(
                number,
                (1 - schedule.alpha(each.t)) ** 0.5,
                float(torch.cosine_similarity(x0_D, concept_D, dim=0)),
            )
            for number, (each, x0_D) in enumerate(zip(seen, x0_ND, strict=True), start=1)
        ]
        self.seen.clear()
        return x0_ND, steps


@dataclass(frozen=True)
class _Prompt:
    """A document to continue, the concepts (S, D) that the model reads, and target languages."""

    number: int
    document: Document
    concepts_SD: Tensor
    to: list[str]


class Writer:
    """A concept model and its space; the space is None if it is not available."""

    def __init__(self, model: ConceptModel, space: Space | None = None) -> None:
        """Raise IntegrityError if the model belongs to another space."""
        self.model, self.space = model, space
        self.end_D: Tensor | None = None
        self.break_D: Tensor | None = None
        self.begin_SD = torch.zeros(0, model.config.concept_dim)
        if space is None:
            return
        config = model.config
        check_model_space(config, SpaceRef(space.name, space.fingerprint), space.dim)
        self.end_D = self.encode([config.end_text])[0]
        if config.break_text:
            self.break_D = self.encode([config.break_text])[0]
        if isinstance(config, SonarLLMConfig) and config.begin_text:
            self.begin_SD = self.encode([config.begin_text])

    @property
    def space_info(self) -> SpaceInfo:
        """The space of the model's concepts; name and fingerprint are empty if unknown."""
        if self.space is not None:
            return space_info(self.space)
        config = self.model.config
        return SpaceInfo(config.space.name, config.space.fingerprint, config.concept_dim)

    def prompt(self, document: Document) -> Tensor:
        """Return the concepts that the model reads of a document with concepts, (S, D).

        A model trained with breaks reads them between paragraphs, and one trained with plans also
        reads the document's plans. Raises IntegrityError for plans that do not fit.
        """
        assert document.concepts is not None
        own_SD = torch.from_numpy(np.array(document.concepts, dtype=np.float32))
        if own_SD.shape[1:] != self.begin_SD.shape[1:]:
            return own_SD  # of another width: `check` has the better message
        if self.break_D is not None:
            own_SD = self._with_breaks(document, own_SD, self.break_D)
        return torch.cat([self.begin_SD, own_SD])

    def _with_breaks(self, document: Document, own_SD: Tensor, break_D: Tensor) -> Tensor:
        plans_PD, given = own_SD[:0], document.plans
        if self.model.config.plans and given is not None and given.concepts is not None:
            check_plans(document)
            plans_PD = torch.from_numpy(np.array(given.concepts, dtype=np.float32))
        rows = order(document.paragraphs, len(own_SD), len(plans_PD))
        # Without the final break: the model decides whether the last paragraph is complete.
        return torch.cat([own_SD, plans_PD, break_D[None]])[torch.from_numpy(rows[:-1])]

    def check(
        self, document: Document, to: Sequence[str], options: GenerateOptions
    ) -> tuple[Tensor, list[str]]:
        """Return the prompt of a document with concepts, and the languages to write in.

        Raises as `continue_all` does.
        """
        expected = self.space_info
        if expected.fingerprint:  # otherwise any concepts of the model's width are accepted
            check_space(document.space, replace(expected, name=expected.name or "the model"))
        prompt_SD = self.prompt(document)
        check_prompt(self.model.config, prompt_SD, options, document.label)
        if self.space is None:
            return prompt_SD, []
        if not to and not document.lang:
            raise UsageError(
                f"the language of {document.label} is unknown", "name a target language: --to LANG"
            )
        return prompt_SD, list(to) or [self.space.find_language(document.lang)]

    def continue_all(
        self,
        documents: Sequence[Document],
        to: Sequence[str] = (),
        options: GenerateOptions | None = None,
        *,
        trace: bool = False,
        on_sentence: OnSentence | None = None,
    ) -> list[WrittenContinuation]:
        """Continue documents with concepts: all together, or one by one for a `trace`.

        `to` holds language codes; if empty, each document continues in its own language.
        `on_sentence` receives each sentence once it is final. Raises UsageError for an empty or
        overlong prompt, options that do not suit the model, or no target language; IntegrityError
        for NaN (in the prompt or from the model) or concepts of another space.
        """
        options = options or GenerateOptions()
        prompts = [
            _Prompt(number, document, *self.check(document, to, options))
            for number, document in enumerate(documents)
        ]
        if not trace:
            return self._continue(prompts, options, on_sentence)
        if not isinstance(self.model, DiffusionLCM):
            kind = self.model.config.architecture
            raise UsageError(f"a {kind} model has no denoising steps to trace")
        if options.candidates > 1:
            raise UsageError("a trace follows one candidate", "drop --candidates or --trace")
        steps = _DenoisingTrace(self.model)
        return [self._continue([one], options, on_sentence, steps)[0] for one in prompts]

    def predict(
        self, prompts: Sequence[Tensor], options: GenerateOptions, **callbacks: Any
    ) -> list[Continuation]:
        """Continue prompts (S, D) with the texts that end documents and paragraphs.

        `callbacks` and errors are those of `generate_concepts`.
        """
        return generate_concepts(
            self.model,
            prompts,
            options,
            end=self.end_D,
            breaks=self.break_D,
            reencode=None if self.space is None else self.reencode,
            **callbacks,
        )

    def _continue(
        self,
        prompts: Sequence[_Prompt],
        options: GenerateOptions,
        on_sentence: OnSentence | None,
        trace: _DenoisingTrace | None = None,
    ) -> list[WrittenContinuation]:
        written: list[list[WrittenSentence]] = [[] for _ in prompts]

        def write(row: int, concept_D: Tensor) -> None:
            prompt, index = prompts[row], len(written[row]) + 1
            if trace is None:
                written[row] += self._sentences(prompt, [concept_D], index)
            else:
                written[row].append(self._traced(prompt, concept_D, index, trace))
            if on_sentence is not None:
                on_sentence(prompt.number, written[row][-1])

        # Without a listener all concepts of a document are decoded together at the end.
        at_once = on_sentence is not None or trace is not None
        found = self.predict(
            [prompt.concepts_SD for prompt in prompts],
            options,
            on_concept=write if at_once else None,
            watch=None if trace is None else trace.seen.append,
        )
        if trace is not None:
            trace.seen.clear()  # of the concept that stopped the text
        for prompt, each, sentences in zip(prompts, found, written, strict=True):
            if not sentences:
                sentences += self._sentences(prompt, list(each.concepts_SD))
        return [
            self._continued(prompt, each, sentences)
            for prompt, each, sentences in zip(prompts, found, written, strict=True)
        ]

    def _continued(
        self, prompt: _Prompt, found: Continuation, sentences: list[WrittenSentence]
    ) -> WrittenContinuation:
        document = prompt.document
        texts = self.decode([plan_D for _, plan_D in found.plans], document, prompt.to)
        plans = [
            WrittenPlan(before + 1, plan_D.float().cpu().numpy(), text)
            for (before, plan_D), text in zip(found.plans, texts, strict=True)
        ]
        return WrittenContinuation(
            document.id,
            document.lang,
            len(prompt.concepts_SD),
            tuple(sentences),
            found.reason,
            found.score,
            found.breaks,
            tuple(plans),
        )

    def _sentences(
        self, prompt: _Prompt, concepts_ND: Sequence[Tensor], first: int = 1
    ) -> list[WrittenSentence]:
        """Decode concepts into sentences numbered from `first`."""
        rows = [_finite(concept_D, prompt.document.label) for concept_D in concepts_ND]
        texts = self.decode(concepts_ND, prompt.document, prompt.to)
        pairs = zip(rows, texts, strict=True)
        return [WrittenSentence(n, row_D, text) for n, (row_D, text) in enumerate(pairs, first)]

    def _traced(
        self, prompt: _Prompt, concept_D: Tensor, index: int, trace: _DenoisingTrace
    ) -> WrittenSentence:
        """Decode a concept, and greedily each denoising step that led to it."""
        (sentence,) = self._sentences(prompt, [concept_D], index)
        x0_ND, steps = trace.take(concept_D)
        # The last step is the concept itself.
        texts = self.decode(x0_ND[:-1], prompt.document, prompt.to[:1], beam=1)
        texts.append(sentence.texts)
        steps = [
            replace(step, text=next(iter(text.values()), None))
            for step, text in zip(steps, texts, strict=True)
        ]
        return replace(sentence, steps=tuple(steps))

    def decode(
        self, concepts_ND: Sequence[Tensor], document: Document, to: Sequence[str], **search: Any
    ) -> list[dict[str, str]]:
        """Return each concept's text by language; `search` holds fields of DecodeOptions.

        Without a space there is no text.
        """
        if self.space is None or not concepts_ND:
            return [{} for _ in concepts_ND]
        rows_ND = torch.stack(list(concepts_ND)).float().cpu().numpy()
        limits = [token_limit(document, self.space)] * len(rows_ND)
        found = self.space.decode(rows_ND, list(to), DecodeOptions(**search), limits=limits)
        return [{code: found[code][n][0].text for code in to} for n in range(len(rows_ND))]

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Encode end, break, begin and task texts in the model's own language, (N, D)."""
        assert self.space is not None
        return torch.from_numpy(self.space.encode(texts, own_language(self.space)).concepts)

    def reencode(self, concepts_BD: Tensor) -> Tensor:
        """Decode concepts greedily in the model's own language and encode the texts, (B, D)."""
        assert self.space is not None
        # The limit depends on nothing in the batch, so a continuation does not either.
        lang, rows_BD = own_language(self.space), concepts_BD.float().cpu().numpy()
        limits = [MIN_TOKENS] * len(rows_BD)
        found = self.space.decode(rows_BD, [lang], DecodeOptions(beam=1), limits=limits)[lang]
        return self.encode([best[0].text for best in found])


def token_limit(document: Document, space: Space) -> int:
    """Return the most tokens of a generated sentence: generous for the document's longest one."""
    if not document.sentences or not document.lang:
        return MIN_TOKENS
    return max(MIN_TOKENS, *space.limits(document.sentences, document.lang))


def _finite(concept_D: Tensor, label: str) -> np.ndarray:
    """Return a concept as an array. Raises IntegrityError for NaN or infinite values."""
    row_D = concept_D.float().cpu().numpy()
    if not np.isfinite(row_D).all():
        raise IntegrityError(
            f"the model predicts NaN or infinite concepts for {label}",
            "its weights are damaged, an option is too extreme, or it needs --precision float32",
        )
    return np.asarray(row_D)
