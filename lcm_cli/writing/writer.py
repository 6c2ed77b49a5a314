"""Continuing documents: their concepts in, a model's next concepts out, and these in words.

A `Writer` joins a model with the space of its concepts. Without a space there are no words:
concepts go in, and concepts come out.

Shapes: S concepts of a prompt, N concepts that were made, D concept dim.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lcm_cli.documents import Document
from lcm_cli.documents.document import check_plans
from lcm_cli.errors import IntegrityError, UsageError
from lcm_cli.models.checkpoint import check_model_space
from lcm_cli.models.config import SonarLLMConfig, SpaceRef
from lcm_cli.models.diffusion import Denoised
from lcm_cli.models.diffusion_lcm import DiffusionLCM
from lcm_cli.models.generate import Continuation, GenerateOptions, StopReason, check_prompt
from lcm_cli.models.generate import generate_concepts as run_model
from lcm_cli.models.interface import ConceptModel
from lcm_cli.pipeline import embed, find_languages, prepare_documents, prose
from lcm_cli.space import DecodeOptions, Space
from lcm_cli.text.paragraphs import order

# The language of begin and end texts, and of what a model hears of itself: that of the training.
OWN_LANG = "eng_Latn"
LEAST_TOKENS = 64  # that a sentence may have in any case


@dataclass(frozen=True)
class DenoisingStep:
    """A look into the making of a concept: what it was after one step of denoising.

    `step` counts from 1; `noise` is the share of noise that it was made from (s_t, 1 is nothing
    else), `similarity` the cosine to the concept that came out. `text` is what it says, in the
    first language; None without a space.
    """

    step: int
    noise: float
    similarity: float
    text: str | None = None


@dataclass(frozen=True)
class WrittenSentence:
    """A concept (D,) that a model made, its text in each language, and perhaps how it came about.

    `index` counts from 1.
    """

    index: int
    concept_D: np.ndarray
    texts: dict[str, str]
    steps: tuple[DenoisingStep, ...] = ()


@dataclass(frozen=True)
class WrittenPlan:
    """A concept (D,) that says what a new paragraph is about, and its text in each language.

    `before` is the index of the paragraph's first sentence.
    """

    before: int
    concept_D: np.ndarray
    texts: dict[str, str]


@dataclass(frozen=True)
class Continued:
    """What a model added to one document.

    `prompt` is the number of concepts that it read, `stop` why it went no further, `score` how the
    judge found the chosen candidate (None without candidates). `breaks` says after how many
    sentences a paragraph ends; `plans` are those of the paragraphs that begin.
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
        """The whole continuation in each language."""
        codes = self.sentences[0].texts if self.sentences else ()
        return {
            code: prose([s.texts[code] for s in self.sentences], code, self.paragraphs)
            for code in codes
        }

    def document(self) -> Document:
        """Return the continuation as a document with concepts; it has at least one."""
        lang = next(iter(self.sentences[0].texts), "")
        sentences = [s.texts[lang] for s in self.sentences] if lang else []
        concepts_ND = np.stack([s.concept_D for s in self.sentences])
        paragraphs = self.paragraphs
        return Document(
            self.id, lang, sentences=sentences, paragraphs=paragraphs, concepts=concepts_ND
        )


# Told each sentence as soon as it is certain: the number of its document, from 0, and itself.
Told = Callable[[int, WrittenSentence], None]


def own_language(space: Space) -> str:
    """Return the language in which models are told of ends, breaks and tasks: English, if it can
    be."""
    return OWN_LANG if OWN_LANG in space.languages else space.languages[0]


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
) -> Continued:
    """Continue one document, given as text, as sentences, or with concepts.

    `to` names languages (default the document's own), `source` that of a document which does not
    say. `trace` looks at every step of denoising. `on_sentence` is told each sentence as soon as it
    is made. Raises as `Writer.continue_all` does.
    """
    writer = Writer(model, space)
    codes = [] if space is None else find_languages(to, space.languages, space.name)
    if document.concepts is None:
        lang = source if source == "auto" or space is None else space.find_language(source)
        document = writer.embedded(document, lang)

    def told(number: int, sentence: WrittenSentence) -> None:
        if on_sentence is not None:
            on_sentence(sentence)

    waiting = None if on_sentence is None else told
    return writer.continue_all([document], codes, options, trace=trace, on_sentence=waiting)[0]


def sampler(model: ConceptModel, **given: Any) -> Any:
    """Return the model's own options with those of `given` that are not None.

    Raises UsageError for one that this kind of model does not have.
    """
    wanted = {key: value for key, value in given.items() if value is not None}
    known = [each.name for each in dataclasses.fields(model.Options)]
    for key in wanted:
        if key not in known:
            kind = model.config.architecture
            hint = f"it has: {', '.join(f'--{name}' for name in given if name in known)}"
            raise UsageError(f"a {kind} model has no --{key.replace('_', '-')}", hint)
    return model.Options(**wanted)


@dataclass
class _Looks:
    """The denoising steps of the concept in the making."""

    model: DiffusionLCM
    seen: list[Denoised] = field(default_factory=list)

    def take(self, concept_D: Tensor) -> tuple[list[Tensor], list[DenoisingStep]]:
        """Return the raw x0 of every step so far, and what can be said of it without words."""
        schedule = self.model.schedule
        # Before it a break and a plan may have been made.
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


class Writer:
    """A model, and the space that its concepts are of; None where no such space is here."""

    def __init__(self, model: ConceptModel, space: Space | None = None) -> None:
        """Raise IntegrityError for a model of another space."""
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

    def embedded(
        self, document: Document, source: str = "auto", one_per_line: bool = False
    ) -> Document:
        """Return a document of text with its language, its sentences and their concepts.

        `source` is the code of the language of one that does not say, or auto. Raises UsageError
        without a space.
        """
        if self.space is None:
            raise UsageError(
                f"{document.label} is text, and the space of this model is not known",
                "give concepts (lcm embed makes them), or name the space: --space SPACE",
            )
        languages, where = self.space.languages, self.space.name
        plans = document.plans if self.model.config.plans else None
        document = replace(document, target=None, plans=plans)
        prepared = prepare_documents(document, languages, where, source, one_per_line)
        return embed([prepared], self.space)[0].document

    def prompt(self, document: Document) -> Tensor:
        """Return what the model reads of a document with concepts, (S, D).

        With breaks between its paragraphs, if it was trained with them, and the plans that are
        given. Raises IntegrityError for plans that do not fit.
        """
        assert document.concepts is not None
        own_SD = torch.from_numpy(np.array(document.concepts, dtype=np.float32))
        if own_SD.shape[1:] != self.begin_SD.shape[1:]:
            return own_SD  # of another space, which the check says better
        if self.break_D is not None:
            own_SD = self._with_breaks(document, own_SD, self.break_D)
        return torch.cat([self.begin_SD, own_SD])

    def _with_breaks(self, document: Document, own_SD: Tensor, break_D: Tensor) -> Tensor:
        plans_PD, given = own_SD[:0], document.plans
        if self.model.config.plans and given is not None and given.concepts is not None:
            check_plans(document)
            plans_PD = torch.from_numpy(np.array(given.concepts, dtype=np.float32))
        rows = order(document.paragraphs, len(own_SD), len(plans_PD))
        # Whether the last paragraph is over is for the model to say.
        return torch.cat([own_SD, plans_PD, break_D[None]])[torch.from_numpy(rows[:-1])]

    def check(
        self, document: Document, to: Sequence[str], options: GenerateOptions
    ) -> tuple[Tensor, list[str]]:
        """Return the prompt of a document with concepts, and the languages to write in.

        Raises as `continue_all` does.
        """
        prompt_SD = self.prompt(document)
        check_prompt(self.model.config, prompt_SD, options, document.label)
        if self.space is None:
            return prompt_SD, []
        if not to and not document.lang:
            raise UsageError(
                f"{document.label} does not say its language", "name one to write in: --to LANG"
            )
        return prompt_SD, list(to) or [self.space.find_language(document.lang)]

    def continue_all(
        self,
        documents: Sequence[Document],
        to: Sequence[str] = (),
        options: GenerateOptions | None = None,
        *,
        trace: bool = False,
        on_sentence: Told | None = None,
    ) -> list[Continued]:
        """Continue documents with concepts, all together (one by one for a `trace`).

        `to` holds language codes, none for each document's own. `on_sentence` is told each sentence
        as soon as it is certain. Raises UsageError for an empty or too long prompt, options that do
        not suit the model, or no target language, IntegrityError for NaN (in the prompt or from the
        model) or another space.
        """
        options = options or GenerateOptions()
        jobs = [
            _Job(self, number, document, *self.check(document, to, options))
            for number, document in enumerate(documents)
        ]
        if not trace:
            return self._run(jobs, options, on_sentence)
        if not isinstance(self.model, DiffusionLCM):
            kind = self.model.config.architecture
            raise UsageError(f"a {kind} model has no denoising steps to trace")
        if options.candidates > 1:
            raise UsageError("a trace follows one candidate", "leave out --candidates or --trace")
        looks = _Looks(self.model)
        return [one for job in jobs for one in self._run([job], options, on_sentence, looks)]

    def _run(
        self,
        jobs: "Sequence[_Job]",
        options: GenerateOptions,
        on_sentence: Told | None,
        looks: _Looks | None = None,
    ) -> list[Continued]:
        def told(row: int, concept_D: Tensor) -> None:
            sentence = jobs[row].add(concept_D, looks)
            if on_sentence is not None:
                on_sentence(jobs[row].number, sentence)

        # Sentences that nobody waits for are decoded together when all are there.
        at_once = on_sentence is not None or looks is not None
        found = run_model(
            self.model,
            [job.prompt_SD for job in jobs],
            options,
            end=self.end_D,
            breaks=self.break_D,
            reencode=None if self.space is None else self.reencode,
            on_concept=told if at_once else None,
            watch=None if looks is None else looks.seen.append,
        )
        if looks is not None:
            looks.seen.clear()  # of the concept that stopped
        return [job.finished(each) for job, each in zip(jobs, found, strict=True)]

    def decoded(
        self, concepts_ND: Sequence[Tensor], document: Document, to: Sequence[str], **search: Any
    ) -> list[dict[str, str]]:
        """Return each concept's text by language; `search` holds fields of DecodeOptions."""
        if self.space is None or not concepts_ND:
            return [{} for _ in concepts_ND]
        rows_ND = torch.stack(list(concepts_ND)).float().cpu().numpy()
        most = LEAST_TOKENS
        if document.sentences and document.lang:
            most = max(most, *self.space.limits(document.sentences, document.lang))
        found = self.space.decode(
            rows_ND, list(to), DecodeOptions(**search), limits=[most] * len(rows_ND)
        )
        return [{code: found[code][n][0].text for code in to} for n in range(len(rows_ND))]

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return the concepts of what a model is told in its own language, (N, D)."""
        assert self.space is not None
        return torch.from_numpy(self.space.encode(texts, own_language(self.space)).concepts)

    def reencode(self, concepts_BD: Tensor) -> Tensor:
        """Return what concepts become when they are decoded and encoded again."""
        assert self.space is not None
        lang, rows_BD = own_language(self.space), concepts_BD.float().cpu().numpy()
        limits = [LEAST_TOKENS] * len(rows_BD)
        found = self.space.decode(rows_BD, [lang], DecodeOptions(beam=1), limits=limits)[lang]
        return self.encode([best[0].text for best in found])


@dataclass
class _Job:
    """One document while it is continued."""

    writer: Writer
    number: int
    document: Document
    prompt_SD: Tensor
    to: list[str]
    made: list[WrittenSentence] = field(default_factory=list)

    def add(self, concept_D: Tensor, looks: _Looks | None) -> WrittenSentence:
        """Put a concept into words, and the steps to it."""
        row_D = self._row(concept_D)
        texts = self.writer.decoded([concept_D], self.document, self.to)[0]
        steps: list[DenoisingStep] = []
        if looks is not None:
            x0_ND, steps = looks.take(concept_D)
            # The last step is the concept itself.
            said = self.writer.decoded(x0_ND[:-1], self.document, self.to[:1], beam=1)
            steps = [
                replace(step, text=next(iter(text.values()), None))
                for step, text in zip(steps, [*said, texts], strict=True)
            ]
        self.made.append(WrittenSentence(len(self.made) + 1, row_D, texts, tuple(steps)))
        return self.made[-1]

    def finished(self, found: Continuation) -> Continued:
        """Return the result; what was not put into words on the way is now."""
        if not self.made:
            rows = [self._row(concept_D) for concept_D in found.concepts_SD]
            texts = self.writer.decoded(list(found.concepts_SD), self.document, self.to)
            self.made = [
                WrittenSentence(n, row_D, text)
                for n, (row_D, text) in enumerate(zip(rows, texts, strict=True), start=1)
            ]
        said = self.writer.decoded([each for _, each in found.plans], self.document, self.to)
        plans = [
            WrittenPlan(before + 1, plan_D.float().cpu().numpy(), text)
            for (before, plan_D), text in zip(found.plans, said, strict=True)
        ]
        return Continued(
            self.document.id,
            self.document.lang,
            len(self.prompt_SD),
            tuple(self.made),
            found.reason,
            found.score,
            found.breaks,
            tuple(plans),
        )

    def _row(self, concept_D: Tensor) -> np.ndarray:
        """Return a concept as numbers; raises IntegrityError unless they are finite."""
        row_D = concept_D.float().cpu().numpy()
        if not np.isfinite(row_D).all():
            raise IntegrityError(
                f"the model gives NaN or infinite concepts for {self.document.label}",
                "its weights are damaged, an option is beyond reason, or it needs "
                "--precision float32",
            )
        return np.asarray(row_D)
