"""Continuing documents: the loop and the stopping rules, for every concept model alike.

Prompts of unequal length are read in one pass and continued side by side, each from its own end.
A row that stops leaves the batch. Each row draws from a generator seeded with the seed alone (and
the number of the candidate), so a document's continuation does not depend on what else is in the
batch.

Shapes: B rows (documents times candidates), S concepts, D concept dim.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lcm_cli.errors import IntegrityError, UsageError
from lcm_cli.models.config import AnyConfig
from lcm_cli.models.diffusion import Denoised
from lcm_cli.models.diffusion_lcm import DiffusionState
from lcm_cli.models.interface import Batch, ConceptModel, Noise

Reason = Literal["end", "repetition", "length"]
Reencode = Callable[[Tensor], Tensor]  # concepts (B, D) decoded to text and encoded again, (B, D)


@dataclass(frozen=True)
class GenerateOptions:
    """When to stop, and how many candidates to try."""

    max_concepts: int = 32
    min_concepts: int = 1  # the concept that stops may not come before this number
    end_similarity: float | None = None  # cosine to the end-of-text concept; None: the model's own
    repeat_similarity: float | None = (
        0.9  # cosine to the concept before (s_prev); None: no such rule
    )
    keep_stop: bool = False  # also return the concept that stopped
    seed: int = 0
    candidates: int = 1
    rerank: Literal["document", "step"] = "document"  # what candidates are of
    judge: Literal["likelihood", "roundtrip"] = "likelihood"
    sampler: Any = None  # the model's own options, of type model.Options; None: its defaults

    def __post_init__(self) -> None:
        for name in ("max_concepts", "min_concepts", "candidates"):
            if getattr(self, name) < 1:
                value = getattr(self, name)
                raise UsageError(f"{name.replace('_', ' ')} {value} must be at least 1")
        for name in ("end_similarity", "repeat_similarity"):
            value = getattr(self, name)
            if value is not None and not -1 <= value <= 1:
                raise UsageError(f"{name.replace('_', ' ')} {value} must lie between -1 and 1")


@dataclass(frozen=True)
class Continuation:
    """What a model added to one document."""

    concepts_SD: Tensor
    reason: Reason
    score: float | None  # mean judgement of its concepts, if there were candidates


@dataclass
class _Row:
    """One candidate for one document, while it grows."""

    document: int
    produced: int = 0
    concepts: list[Tensor] = field(default_factory=list)
    judgement: float = 0.0
    reason: Reason = "length"

    @property
    def score(self) -> float:
        return self.judgement / max(self.produced, 1)


def generate(
    model: ConceptModel,
    prompts: Sequence[Tensor],
    options: GenerateOptions | None = None,
    *,
    end: Tensor | None = None,
    reencode: Reencode | None = None,
    noise: Noise | None = None,
    on_concept: Callable[[int, Tensor], None] | None = None,
    watch: Callable[[Denoised], None] | None = None,
) -> list[Continuation]:
    """Continue each prompt, raw concepts (S, D).

    `end` is the end-of-text concept, (D,); without it no document ends by itself. `reencode` is
    needed to judge by round trip, and used between steps by models that want it (SONAR-LLM).
    `on_concept(document, concept)` is told each concept as soon as it is certain; `watch` each
    denoising step of a diffusion model. `noise` replaces the generators of `options.seed`: one row
    a document and candidate.

    Raises UsageError for an empty or too long prompt or options that do not suit the model,
    IntegrityError for NaN or a wrong width.
    """
    options = options or GenerateOptions()
    _check(model, prompts, options, reencode)
    if not prompts:
        return []
    run = _Run(model, options, end, reencode, on_concept)
    return run.all(prompts, noise, watch)


class _Run:
    """One call of `generate`."""

    def __init__(
        self,
        model: ConceptModel,
        options: GenerateOptions,
        end: Tensor | None,
        reencode: Reencode | None,
        on_concept: Callable[[int, Tensor], None] | None,
    ) -> None:
        self.model, self.options = model, options
        self.end = None if end is None else end.to(model.device).float()
        given = options.end_similarity
        self.end_similarity = model.end_similarity if given is None else given
        self.reencode, self.on_concept = reencode, on_concept
        self.judged = options.candidates > 1
        self.by_step = self.judged and options.rerank == "step"

    def all(
        self,
        prompts: Sequence[Tensor],
        noise: Noise | None,
        watch: Callable[[Denoised], None] | None,
    ) -> list[Continuation]:
        model, count = self.model, self.options.candidates
        rows = [_Row(document) for document in range(len(prompts)) for _ in range(count)]
        done: list[list[_Row]] = [[] for _ in prompts]
        state = self._begin(prompts, watch)
        noise = noise or Noise(
            [self.options.seed + (row % count << 32) for row in range(len(rows))], model.device
        )
        last_BD = torch.stack([prompts[row.document][-1] for row in rows]).to(model.device).float()
        while True:
            concepts_BD = self._propose(state, noise, rows)
            going = self._record(rows, concepts_BD, last_BD)
            for number in sorted(set(range(len(rows))) - set(going)):
                done[rows[number].document].append(rows[number])
            if not going:
                return [self._best(candidates) for candidates in done]
            if len(going) < len(rows):
                kept = torch.tensor(going, device=model.device)
                state.keep(kept)
                noise.keep(going)
                rows, concepts_BD = [rows[number] for number in going], concepts_BD[kept]
            model.extend(state, concepts_BD)
            last_BD = concepts_BD

    def _begin(self, prompts: Sequence[Tensor], watch: Callable[[Denoised], None] | None) -> Any:
        model, count = self.model, self.options.candidates
        batch = Batch.of([prompt.to(model.device) for prompt in prompts])
        capacity = batch.concepts_BSD.shape[1] + self.options.max_concepts
        state = model.begin(batch, capacity, self.options.sampler or model.Options())
        if watch is not None:
            if not isinstance(state, DiffusionState):
                name = model.config.architecture
                raise UsageError(f"a {name} model has no denoising steps to trace")
            state.watch = watch
        if count > 1:
            state.keep(torch.arange(len(prompts), device=model.device).repeat_interleave(count))
        return state

    def _propose(self, state: Any, noise: Noise, rows: list[_Row]) -> Tensor:
        """Return a concept for each row; among candidates for a step, the best one for all."""
        concepts_BD = self.model.next(state, noise)
        again_BD = self._again(concepts_BD)
        chosen_BD = again_BD if self.model.reencodes else concepts_BD
        if not self.judged:
            return chosen_BD
        if self.options.judge == "likelihood":
            judgements_B = self.model.likelihood(state, concepts_BD)
        else:
            judgements_B = F.cosine_similarity(again_BD, concepts_BD, dim=-1)
        if self.by_step:
            count = self.options.candidates
            best_B = judgements_B.view(-1, count).argmax(dim=1).repeat_interleave(count)
            best_B = best_B + torch.arange(len(rows), device=best_B.device) // count * count
            chosen_BD, judgements_B = chosen_BD[best_B], judgements_B[best_B]
        for row, judgement in zip(rows, judgements_B.tolist(), strict=True):
            row.judgement += judgement
        return chosen_BD

    def _again(self, concepts_BD: Tensor) -> Tensor:
        """Return the concepts decoded and encoded again, if anybody wants that."""
        wanted = self.model.reencodes or (self.judged and self.options.judge == "roundtrip")
        if self.reencode is None or not wanted:
            return concepts_BD
        return self.reencode(concepts_BD).to(concepts_BD)

    def _record(self, rows: list[_Row], concepts_BD: Tensor, last_BD: Tensor) -> list[int]:
        """Add a concept to each row, or end it; return the rows that go on."""
        going = []
        reasons = self._reasons(concepts_BD, last_BD)
        for number, (row, reason) in enumerate(zip(rows, reasons, strict=True)):
            row.produced += 1
            stops = reason is not None and row.produced >= self.options.min_concepts
            if not stops or self.options.keep_stop:
                row.concepts.append(concepts_BD[number])
                self._tell(row, number)
            if stops:
                row.reason = reason or "length"
            elif row.produced < self.options.max_concepts:
                going.append(number)
        return going

    def _reasons(self, concepts_BD: Tensor, last_BD: Tensor) -> list[Reason | None]:
        """Return what speaks for stopping each row here."""
        limit, rows = self.options.repeat_similarity, len(concepts_BD)
        ends, repeats = [False] * rows, [False] * rows
        if self.end is not None:
            near_B = F.cosine_similarity(self.end[None], concepts_BD)
            ends = (near_B >= self.end_similarity).tolist()
        if limit is not None:
            repeats = (F.cosine_similarity(last_BD, concepts_BD) >= limit).tolist()
        return [
            "end" if end else "repetition" if repeat else None
            for end, repeat in zip(ends, repeats, strict=True)
        ]

    def _tell(self, row: _Row, number: int) -> None:
        # Candidates of a step are one document in several rows: the first speaks for them. Those
        # of a document are told when the best is known.
        first = not self.judged or (self.by_step and number % self.options.candidates == 0)
        if self.on_concept is not None and first:
            self.on_concept(row.document, row.concepts[-1])

    def _best(self, candidates: list[_Row]) -> Continuation:
        best = max(candidates, key=lambda row: row.score)
        if self.judged and not self.by_step and self.on_concept is not None:
            for concept_D in best.concepts:
                self.on_concept(best.document, concept_D)
        nothing_SD = torch.zeros(0, self.model.config.concept_dim, device=self.model.device)
        concepts_SD = torch.stack(best.concepts) if best.concepts else nothing_SD
        return Continuation(concepts_SD, best.reason, best.score if self.judged else None)


def _check(
    model: ConceptModel,
    prompts: Sequence[Tensor],
    options: GenerateOptions,
    reencode: Reencode | None,
) -> None:
    """Refuse what cannot be continued."""
    config = model.config
    if options.sampler is not None and not isinstance(options.sampler, model.Options):
        given, wanted = type(options.sampler).__name__, model.Options.__name__
        raise UsageError(f"a {config.architecture} model takes {wanted}, not {given}")
    if options.candidates > 1 and options.judge == "roundtrip" and reencode is None:
        raise UsageError("judging by round trip needs a space to decode and encode in")
    for number, prompt_SD in enumerate(prompts, start=1):
        check_prompt(config, prompt_SD, options, f"prompt {number}")


def check_prompt(
    config: AnyConfig, prompt_SD: Tensor, options: GenerateOptions, name: str = "the prompt"
) -> None:
    """Refuse a prompt that a model of `config` cannot continue; `name` is what messages call it.

    Raises UsageError if it is empty or too long, IntegrityError for NaN or another width.
    """
    if prompt_SD.dim() != 2 or prompt_SD.shape[0] == 0:
        raise UsageError(f"{name} holds no concept", "give at least one sentence")
    if prompt_SD.shape[1] != config.concept_dim:
        raise IntegrityError(
            f"{name} has concepts of width {prompt_SD.shape[1]}, the model reads "
            f"{config.concept_dim}: it belongs to another space"
        )
    if not bool(torch.isfinite(prompt_SD).all()):
        raise IntegrityError(f"{name} holds NaN or infinite values")
    if len(prompt_SD) + options.max_concepts > config.max_length:
        raise UsageError(
            f"{name} has {len(prompt_SD)} concepts; with {options.max_concepts} more "
            f"it exceeds the model's {config.max_length}",
            f"keep its last {max(config.max_length - options.max_concepts, 0)} sentences, or "
            "lower --max-concepts",
        )
