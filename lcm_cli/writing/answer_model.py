"""Answers that a concept model gives: summaries and expansions, looked at before they are shown.

A model that was finetuned for a task reads the concepts of the source and of the task's prompt, and
goes on until the end-of-text concept. docs/summarize.md says what comes of long documents, lengths
and bad answers.

Shapes: S sentences of a source, N sentences of an answer, D concept dim.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import ceil
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from lcm_cli.errors import IntegrityError, UsageError
from lcm_cli.hub.cards import cards
from lcm_cli.hub.locate import locate_model
from lcm_cli.models.checkpoint import load_model
from lcm_cli.models.config import AnyConfig, QuantizerConfig, read_model_config
from lcm_cli.models.generate import GenerateOptions, generate_concepts
from lcm_cli.models.interface import ConceptModel
from lcm_cli.pipeline import Prepared
from lcm_cli.progress import Progress
from lcm_cli.space import Space
from lcm_cli.space.similarity import cosines
from lcm_cli.text.length import Length, count_words
from lcm_cli.writing.answers import (
    AUTO,
    EXTRACTIVE,
    Answer,
    AnswerSentence,
    Citation,
    Task,
    decode_each,
    encode_each,
)
from lcm_cli.writing.extractive import select
from lcm_cli.writing.refusal import Thresholds, refuse
from lcm_cli.writing.writer import Writer, longest

T = TypeVar("T")

METHOD = "generated"
MOST = 64  # sentences of an answer for which no length was asked
LEAST_CONTEXT = 4  # concepts: two of a source, and two of an answer
TOGETHER = 64  # documents that are continued side by side
SOURCES, NEARLY = 3, 0.1  # so many sources are named at most, all so near to the nearest

# An expansion says much that its source does not: a single sentence on the subject must do.
THRESHOLDS = {"summarize": Thresholds(), "expand": Thresholds(about=0.0)}


class AnswerModel:
    """A concept model that was finetuned for `task`, in its space."""

    def __init__(self, model: ConceptModel, name: str, task: Task, space: Space) -> None:
        """Raise UsageError if it was not, IntegrityError for a model of another space."""
        # How prompts and end texts are encoded is the same wherever a model goes on with something.
        self._writer, config = Writer(model, space), model.config
        if task not in config.prompts:
            known = (
                f"its tasks: {', '.join(config.prompts)}" if config.prompts else "it has no task"
            )
            raise UsageError(f"the model {name} was not trained to {task}: {known}")
        self.model, self.name, self.task, self.space = model, name, task, space
        self._prompt_SD = self._writer.encode([config.prompts[task]])
        # For source and answer: all but what opens the document, the prompt and the end.
        self._context = config.max_length - len(self._writer.begin_SD) - 2
        if self._context < LEAST_CONTEXT:
            raise UsageError(f"the context of {name}, {config.max_length} concepts, is too short")

    @property
    def most(self) -> int:
        """The most sentences that it may write: half its context is left to the source."""
        return self._context // 2

    def answer(
        self, sources: Sequence[np.ndarray], most: Sequence[int], seed: int = 0
    ) -> list[np.ndarray]:
        """Return the concepts (N, D) that answer each source (S, D), `most` of them at most.

        What exceeds the context is cut into parts of about equal length. To expand, the parts are
        answered one by one; to summarize, the answers to the parts are the source of the next
        round, until it fits. Raises IntegrityError if they are not finite.
        """
        if self.task == "expand":
            return self._expanded(sources, most, seed)
        return self._continued(self._condensed(sources, most, seed), most, seed)

    def _condensed(
        self, sources: Sequence[np.ndarray], most: Sequence[int], seed: int
    ) -> list[np.ndarray]:
        """Summarize parts of the sources until all of them fit."""
        done = list(sources)
        # A part and half as much: every round so shortens what is left to read.
        room = 2 * self._context // 3
        while long := [i for i, s in enumerate(done) if len(s) > self._context - most[i]]:
            parts = [_parts(done[i], room) for i in long]
            flat = [part for each in parts for part in each]
            answers = self._continued(flat, [max(1, len(part) // 2) for part in flat], seed)
            rest = iter(zip(flat, answers, strict=True))
            for i, each in zip(long, parts, strict=True):
                done[i] = np.concatenate([_or_best(*next(rest)) for _ in each])
        return done

    def _expanded(
        self, sources: Sequence[np.ndarray], most: Sequence[int], seed: int
    ) -> list[np.ndarray]:
        parts = [_parts(s, self._context - m) for s, m in zip(sources, most, strict=True)]
        flat = [part for each in parts for part in each]
        shares = [ceil(m / len(p)) for p, m in zip(parts, most, strict=True) for _ in p]
        rest = iter(self._continued(flat, shares, seed))
        return [
            np.concatenate([next(rest) for _ in each])[:m]
            for each, m in zip(parts, most, strict=True)
        ]

    def _continued(
        self, sources: Sequence[np.ndarray], most: Sequence[int], seed: int
    ) -> list[np.ndarray]:
        """Run the model on sources that fit; those with equal limits go together."""
        found: dict[int, np.ndarray] = {}
        for limit in dict.fromkeys(most):
            same = [i for i, m in enumerate(most) if m == limit]
            for start in range(0, len(same), TOGETHER):
                some = same[start : start + TOGETHER]
                prompts = [self._prompt(sources[i]) for i in some]
                # One more than wanted: the model may say that it has come to the end.
                options = GenerateOptions(max_concepts=limit + 1, seed=seed)
                done = generate_concepts(
                    self.model,
                    prompts,
                    options,
                    end=self._writer.end_D,
                    breaks=self._writer.break_D,
                    reencode=self._writer.reencode,
                )
                for i, each in zip(some, done, strict=True):
                    found[i] = self._finite(each.concepts_SD[:limit].float().cpu().numpy())
        return [found[i] for i in range(len(sources))]

    def _finite(self, concepts_ND: np.ndarray) -> np.ndarray:
        if not np.isfinite(concepts_ND).all():
            hint = "its weights are damaged, or --precision float32 is needed"
            raise IntegrityError(f"the model {self.name} gives NaN or infinite concepts", hint)
        return concepts_ND

    def _prompt(self, source_SD: np.ndarray) -> Tensor:
        source = torch.from_numpy(np.ascontiguousarray(source_SD, dtype=np.float32))
        return torch.cat([self._writer.begin_SD, source, self._prompt_SD])


def load_answer_model(
    wanted: str, task: Task, space: Space, *, must_suit: bool = True
) -> AnswerModel | None:
    """Load the model called `wanted`; `auto`: the space's own, if it has one; `extractive`: none.

    The space's own is named by its card. It must have learned the task, in this very space, else
    there is none; so it is with any other unless it `must_suit`: then UsageError or IntegrityError
    are raised. Raises NotFoundError if it is not on this machine.
    """
    if wanted == EXTRACTIVE:
        return None
    source = wanted
    if wanted == AUTO:
        card = cards().get(space.name)
        if card is None or not card.model:
            return None
        source, must_suit = card.model, False
    files = locate_model(source)
    if not must_suit and not _suits(read_model_config(files.config), task, space):
        return None
    on_cpu = space.device.type == "cpu"
    model = load_model(source, device=str(space.device), packed=on_cpu)
    return AnswerModel(model, source, task, space)


def _suits(config: AnyConfig | QuantizerConfig, task: Task, space: Space) -> bool:
    if isinstance(config, QuantizerConfig) or task not in config.prompts:
        return False
    same = config.space.fingerprint in ("", space.fingerprint)
    return same and config.concept_dim == space.dim


@dataclass(frozen=True)
class _Draft:
    """Sentences that a model wrote about `source`: by language, N texts and their concepts (N, D).

    The concepts are the texts' own, encoded again.
    """

    source: Prepared
    texts: dict[str, list[str]]
    concepts: dict[str, np.ndarray]


def answer_all(
    window: Sequence[Prepared],
    model: AnswerModel,
    to: Sequence[str],
    length: Length | None = None,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Answer]:
    """Return the model's answer to each document.

    A refused answer has no sentences, and its `fallback` gives the reason. `to` holds language
    codes; if empty, each answer is in its document's language. `progress` receives the number of
    sentences decoded.
    """
    bounds = [_bounds(each, model.task, length) for each in window]
    most = [min(most, model.most) for most, _ in bounds]
    concepts = model.answer([each.concepts for each in window], most, seed)
    drafts = _drafts(window, concepts, to, model.space, progress)
    return [
        _checked(draft, model, length, least)
        for draft, (_, least) in zip(drafts, bounds, strict=True)
    ]


def _drafts(
    window: Sequence[Prepared],
    concepts: Sequence[np.ndarray],
    to: Sequence[str],
    space: Space,
    progress: Progress | None,
) -> list[_Draft]:
    """Decode the answers (N, D), all documents together, and encode the texts again."""
    codes = [to or [each.document.lang] for each in window]
    counts = [len(rows_ND) for rows_ND in concepts]
    limits = [longest(each.document, space) for each in window]
    texts = decode_each(
        np.concatenate(concepts), _repeat(codes, counts), _repeat(limits, counts), space, progress
    )
    rows = iter(zip(texts, encode_each(texts, space), strict=True))
    drafts = []
    for each, own, count in zip(window, codes, counts, strict=True):
        written = list(islice(rows, count))
        drafts.append(
            _Draft(
                each,
                {code: [text[code] for text, _ in written] for code in own},
                {code: np.array([again[code] for _, again in written]) for code in own},
            )
        )
    return drafts


def _repeat(values: Sequence[T], counts: Sequence[int]) -> list[T]:
    return [value for value, count in zip(values, counts, strict=True) for _ in range(count)]


def _checked(draft: _Draft, model: AnswerModel, length: Length | None, least: int) -> Answer:
    code = next(iter(draft.texts))
    reason = refuse(
        draft.texts,
        draft.concepts[code],
        draft.source.concepts,
        THRESHOLDS[model.task],
        least=least,
        languages=model.space.languages,
    )
    if reason is not None:
        return replace(Answer.of(draft.source, METHOD, (), length, model.name), fallback=reason)
    sentences = tuple(_sentences(draft))[: _fitting(draft.texts[code], length)]
    return Answer.of(draft.source, METHOD, sentences, length, model.name)


def _bounds(each: Prepared, task: Task, length: Length | None) -> tuple[int, int]:
    """Return the most and the fewest sentences of the answer to a document.

    With no length given the model decides, but a summary is at most half as long as the document,
    and an expansion longer than it.
    """
    count = len(each.document.sentences)
    if length is None:
        return (min(MOST, ceil(count / 2)), 1) if task == "summarize" else (MOST, count + 1)
    most = length.amount
    if length.unit == "percent":
        most = ceil(count * length.amount / 100)
    elif length.unit == "words":
        words = sum(count_words(sentence) for sentence in each.document.sentences)
        most = ceil(length.amount * count / max(words, 1))
    return most, ceil(most / 2)


def _sentences(draft: _Draft) -> Iterator[AnswerSentence]:
    near = {code: cosines(rows, draft.source.concepts) for code, rows in draft.concepts.items()}
    mean_NS = np.mean(list(near.values()), axis=0)
    for n, mean_S in enumerate(mean_NS):
        order = np.argsort(-mean_S, kind="stable")[:SOURCES]
        yield AnswerSentence(
            {code: said[n] for code, said in draft.texts.items()},
            tuple(
                Citation(
                    int(s) + 1,
                    draft.source.document.sentences[s],
                    {code: float(near_NS[n, s]) for code, near_NS in near.items()},
                )
                for s in order
                if mean_S[s] >= mean_S[order[0]] - NEARLY
            ),
        )


def _fitting(said: Sequence[str], length: Length | None) -> int:
    """Return how many sentences fit into the number of words asked for, at least one."""
    if length is None or length.unit != "words":
        return len(said)
    totals = np.cumsum([count_words(text) for text in said])
    return max(1, int((totals <= length.amount).sum()))


def _parts(source_SD: np.ndarray, room: int) -> list[np.ndarray]:
    """Cut a source into as few parts of about equal length as fit."""
    return np.array_split(source_SD, ceil(len(source_SD) / room))


def _or_best(part_SD: np.ndarray, answer_ND: np.ndarray) -> np.ndarray:
    """Return the answer to a part, or the sentence that stands best for it if there is none."""
    return answer_ND if len(answer_ND) else part_SD[select(part_SD, 1)]
