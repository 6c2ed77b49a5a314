"""Generation of concepts: the loop and the stopping rules that all concept models share.

Prompts of different lengths are read in one pass and continued side by side, each from its own end.
A row that stops leaves the batch. Each row draws from a generator that depends only on the seed and
the number of the candidate, so the continuation of a document does not depend on the rest of the
batch.

A planning model (LPCM) ends each paragraph with a break and may then predict a plan of the next
paragraph; neither becomes a sentence.

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

StopReason = Literal["end", "repetition", "length"]
Mark = StopReason | Literal["break"] | None  # role of a concept; None: a sentence
Reencode = Callable[[Tensor], Tensor]  # concepts (B, D) decoded to text and encoded again, (B, D)


@dataclass(frozen=True)
class GenerateOptions:
    """Options of generation: when to stop, and how to choose among candidates."""

    max_concepts: int = 32
    min_concepts: int = 0  # no rule stops a shorter continuation; breaks and plans count
    end_similarity: float | None = None  # cosine to the end-of-text concept; None: the model's own
    repeat_similarity: float | None = 0.9  # cosine to the previous concept; None: may repeat
    keep_stop: bool = False  # also return the concept that met the stopping rule
    seed: int = 0
    candidates: int = 1
    rerank: Literal["document", "step"] = "document"  # unit that candidates compete in
    judge: Literal["likelihood", "roundtrip"] = "likelihood"
    sampler: Any = None  # the model's own options, of type model.Options; None: its defaults

    def __post_init__(self) -> None:
        for name, least in (("max_concepts", 1), ("min_concepts", 0), ("candidates", 1)):
            value = getattr(self, name)
            if value < least:
                raise UsageError(f"{name.replace('_', ' ')} {value} must be at least {least}")
        for name in ("end_similarity", "repeat_similarity"):
            value = getattr(self, name)
            if value is not None and not -1 <= value <= 1:
                raise UsageError(f"{name.replace('_', ' ')} {value} must lie between -1 and 1")


@dataclass(frozen=True)
class Continuation:
    """Concepts that a model added to one document.

    `breaks` and `plans` are not among the concepts; their numbers are the index, from 0, of the
    concept that follows them.
    """

    concepts_SD: Tensor
    reason: StopReason
    score: float | None  # mean judgement of the concepts; None without candidates
    breaks: tuple[int, ...] = ()
    plans: tuple[tuple[int, Tensor], ...] = ()


@dataclass
class _Row:
    """One candidate for one document during generation."""

    document: int
    produced: int = 0
    concepts: list[Tensor] = field(default_factory=list)
    breaks: list[int] = field(default_factory=list)
    plans: list[tuple[int, Tensor]] = field(default_factory=list)
    planning: bool = False  # the next concept is a plan
    judgement: float = 0.0
    reason: StopReason = "length"

    @property
    def score(self) -> float:
        return self.judgement / max(self.produced, 1)


def generate_concepts(
    model: ConceptModel,
    prompts: Sequence[Tensor],
    options: GenerateOptions | None = None,
    *,
    end: Tensor | None = None,
    breaks: Tensor | None = None,
    reencode: Reencode | None = None,
    noise: Noise | None = None,
    on_concept: Callable[[int, Tensor], None] | None = None,
    watch: Callable[[Denoised], None] | None = None,
) -> list[Continuation]:
    """Continue each prompt, raw concepts (S, D).

    `end` is the end-of-text concept (D,); without it, only the other rules stop a document.
    `breaks` is the concept that ends a paragraph, for models trained with one; breaks and plans
    count towards `max_concepts`. `reencode` decodes and encodes concepts again: the round-trip
    judge needs it, and models with `reencode` in their config read its result in place of their own
    concepts.
    `on_concept(document, concept)` receives each concept as soon as it is final, `watch` each
    denoising step of a diffusion model. `noise` replaces the generators of `options.seed`, with one
    row per document and candidate.

    Raises UsageError for an empty prompt, one that is too long, or options that the model does not
    take, and IntegrityError for NaN or a wrong width.
    """
    options = options or GenerateOptions()
    _check(model, prompts, options, reencode)
    if not prompts:
        return []
    run = _Run(model, options, (end, breaks), reencode, on_concept)
    return run.all(prompts, noise, watch)


class _Run:
    """One call of `generate_concepts`."""

    def __init__(
        self,
        model: ConceptModel,
        options: GenerateOptions,
        marks: tuple[Tensor | None, Tensor | None],
        reencode: Reencode | None,
        on_concept: Callable[[int, Tensor], None] | None,
    ) -> None:
        self.model, self.options = model, options
        self.end, self.breaks = (
            None if mark is None else mark.to(model.device).float() for mark in marks
        )
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
        # Candidate c has the seed plus c 2^32, so that runs with other, small seeds share none.
        noise = noise or Noise(
            [self.options.seed + (row % count << 32) for row in range(len(rows))], model.device
        )
        last_BD = torch.stack([prompts[row.document][-1] for row in rows]).to(model.device).float()
        while True:
            concepts_BD = self._propose(state, noise, rows)
            going, last_BD = self._record(rows, concepts_BD, last_BD)
            for number in sorted(set(range(len(rows))) - set(going)):
                done[rows[number].document].append(rows[number])
            if not going:
                return [self._best(candidates) for candidates in done]
            # Rows that stop leave before the model reads the new concepts.
            if len(going) < len(rows):
                kept = torch.tensor(going, device=model.device)
                state.keep(kept)
                noise.keep(going)
                rows, concepts_BD = [rows[number] for number in going], concepts_BD[kept]
                last_BD = last_BD[kept]
            model.extend(state, concepts_BD)

    def _begin(self, prompts: Sequence[Tensor], watch: Callable[[Denoised], None] | None) -> Any:
        model, count = self.model, self.options.candidates
        batch = Batch.of([prompt.to(model.device) for prompt in prompts])
        capacity = batch.concepts_BSD.shape[1] + self.options.max_concepts
        state = model.begin(batch, capacity, self.options.sampler or model.options())
        if watch is not None:
            if not isinstance(state, DiffusionState):
                name = model.config.architecture
                raise UsageError(f"a {name} model has no denoising steps to trace")
            state.watch = watch
        if count > 1:
            state.keep(torch.arange(len(prompts), device=model.device).repeat_interleave(count))
        return state

    def _propose(self, state: Any, noise: Noise, rows: list[_Row]) -> Tensor:
        """Return the next concept of each row; with rerank "step", candidates share the best."""
        concepts_BD = self.model.next(state, noise)
        again_BD = self._again(concepts_BD)
        chosen_BD = again_BD if self.model.config.reencode else concepts_BD
        if not self.judged:
            return chosen_BD
        if self.options.judge == "likelihood":
            judgements_B = self.model.likelihood(state, concepts_BD)
        else:
            judgements_B = F.cosine_similarity(again_BD, concepts_BD, dim=-1)
        if self.by_step:
            # Candidates of a document are neighbours. They are equal after every step and so stop
            # together, which leaves `count` rows to each document.
            count = self.options.candidates
            best_B = judgements_B.view(-1, count).argmax(dim=1).repeat_interleave(count)
            best_B = best_B + torch.arange(len(rows), device=best_B.device) // count * count
            chosen_BD, judgements_B = chosen_BD[best_B], judgements_B[best_B]
        for row, judgement in zip(rows, judgements_B.tolist(), strict=True):
            row.judgement += judgement
        return chosen_BD

    def _again(self, concepts_BD: Tensor) -> Tensor:
        """Return the concepts decoded and encoded again, if the model or the judge needs it."""
        wanted = self.model.config.reencode or (self.judged and self.options.judge == "roundtrip")
        if self.reencode is None or not wanted:
            return concepts_BD
        return self.reencode(concepts_BD).to(concepts_BD)

    def _record(
        self, rows: list[_Row], concepts_BD: Tensor, last_BD: Tensor
    ) -> tuple[list[int], Tensor]:
        """Add a concept to each row, or stop the row.

        Returns the numbers of the rows that continue, and the last sentence of every row, with
        which the next concept is compared for repetition.
        """
        going, said = [], list[int]()
        marks, each = self._marks(concepts_BD, last_BD), concepts_BD.unbind()
        for number, (row, mark) in enumerate(zip(rows, marks, strict=True)):
            row.produced += 1
            reason = self._reason(row, mark)
            # `produced` includes this concept, which is not part of the text if it stops the row.
            stops = reason is not None and row.produced > self.options.min_concepts
            if not stops and (mark == "break" or row.planning):
                self._structure(row, each[number])
            elif not stops or (self.options.keep_stop and mark != "break"):
                row.concepts.append(each[number])
                said.append(number)
                self._report(row, number)
            if stops:
                row.reason = reason or "length"
            elif row.produced < self.options.max_concepts:
                going.append(number)
        if len(said) == len(rows):
            return going, concepts_BD.to(last_BD.dtype)
        changed = torch.tensor(said, dtype=torch.long, device=last_BD.device)
        return going, last_BD.index_copy(0, changed, concepts_BD[changed].to(last_BD.dtype))

    def _reason(self, row: _Row, mark: Mark) -> StopReason | None:
        """Return the rule by which a concept with this role stops the row, or None."""
        if mark == "break":
            again = len(row.concepts) in row.breaks  # two breaks without a sentence between them
            return "repetition" if again and self.options.repeat_similarity is not None else None
        # A plan may repeat the last sentence: it summarizes, and is not part of the text.
        return None if row.planning and mark == "repetition" else mark

    def _structure(self, row: _Row, concept_D: Tensor) -> None:
        """Record a break, or the plan that follows one."""
        if row.planning:
            row.plans.append((len(row.concepts), concept_D))
            row.planning = False
        else:
            row.breaks.append(len(row.concepts))
            row.planning = self.model.config.plans

    def _marks(self, concepts_BD: Tensor, last_BD: Tensor) -> list[Mark]:
        """Return the role of each concept: the first of end, break and repetition that applies."""
        repeat = self.options.repeat_similarity
        wanted: list[tuple[Mark, Tensor | None, float | None]] = [
            ("end", self.end, self.end_similarity),
            ("break", self.breaks, self.end_similarity),
            ("repetition", last_BD, repeat),
        ]
        names, near = list[Mark](), list[Tensor]()
        for mark, like, limit in wanted:
            if like is not None and limit is not None:
                names.append(mark)
                near.append(F.cosine_similarity(like, concepts_BD, dim=-1) >= limit)
        if not near:
            return [None] * len(concepts_BD)
        # Read at once: the host waits for the device.
        found = torch.stack(near, dim=1).tolist()
        return [next((n for n, is_near in zip(names, row, strict=True) if is_near), None)
                for row in found]  # fmt: skip

    def _report(self, row: _Row, number: int) -> None:
        # With rerank "step", the rows of a document are equal: report the first. With "document",
        # `_best` reports the concepts once the best candidate is known.
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
        score = best.score if self.judged else None
        return Continuation(concepts_SD, best.reason, score, tuple(best.breaks), tuple(best.plans))


def _check(
    model: ConceptModel,
    prompts: Sequence[Tensor],
    options: GenerateOptions,
    reencode: Reencode | None,
) -> None:
    """Raise an error for prompts and options that the model cannot take."""
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
    """Raise an error for a prompt that a model of `config` cannot continue; errors call it `name`.

    Raises UsageError if it is empty or too long, IntegrityError for NaN or another width.
    """
    if prompt_SD.dim() != 2 or prompt_SD.shape[0] == 0:
        raise UsageError(f"{name} has no concepts", "give at least one sentence")
    if prompt_SD.shape[1] != config.concept_dim:
        raise IntegrityError(
            f"{name} has concepts of width {prompt_SD.shape[1]}, the model reads "
            f"{config.concept_dim}: it belongs to another space"
        )
    if not bool(torch.isfinite(prompt_SD).all()):
        raise IntegrityError(f"{name} contains NaN or infinite values")
    if len(prompt_SD) + options.max_concepts > config.max_length:
        raise UsageError(
            f"{name} has {len(prompt_SD)} concepts; with {options.max_concepts} more "
            f"it exceeds the model's {config.max_length}",
            f"keep its last {max(config.max_length - options.max_concepts, 0)} sentences, or "
            "lower --max-concepts",
        )
