"""Summaries and expansions by a concept model, checked before they are shown.

A model finetuned for a task reads the concepts of the source and of the task's prompt, and
generates concepts up to the end of text. docs/summarize.md describes long documents, lengths and
refused answers.

Shapes: S source sentences, N answer sentences, D concept dim.
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
from lcm_cli.models.generate import GenerateOptions
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
from lcm_cli.writing.writer import Writer, token_limit

T = TypeVar("T")

METHOD = "generated"
MAX_SENTENCES = 64  # of an answer without a requested length
MIN_CONTEXT = 4  # concepts: two of a source, and two of an answer
BATCH = 64  # sources that are answered in one batch
MAX_SOURCES = 3  # cited for a sentence
SOURCE_MARGIN = 0.1  # largest difference of a cited source's cosine to that of the nearest

# Most of an expansion is not in its source: one sentence on the subject is enough.
THRESHOLDS = {"summarize": Thresholds(), "expand": Thresholds(about=0.0)}


class AnswerModel:
    """A concept model finetuned for `task`, with its space."""

    def __init__(self, model: ConceptModel, name: str, task: Task, space: Space) -> None:
        """Raise UsageError if the model lacks the task, IntegrityError for another space."""
        self._writer, config = Writer(model, space), model.config
        if task not in config.prompts:
            known = (
                f"its tasks: {', '.join(config.prompts)}" if config.prompts else "it has no task"
            )
            raise UsageError(f"the model {name} was not trained to {task}: {known}")
        self.model, self.name, self.task, self.space = model, name, task, space
        self._prompt_SD = self._writer.encode([config.prompts[task]])
        # Source and answer share all of the context but begin text, prompt and end of text.
        self._context = config.max_length - len(self._writer.begin_SD) - 2
        if self._context < MIN_CONTEXT:
            raise UsageError(f"the context of {name}, {config.max_length} concepts, is too short")

    @property
    def most(self) -> int:
        """The highest number of sentences in an answer: half the context is for the source."""
        return self._context // 2

    def answer(
        self, sources: Sequence[np.ndarray], most: Sequence[int], seed: int = 0
    ) -> list[np.ndarray]:
        """Return an answer (N, D) of at most `most` concepts to each source (S, D).

        A source that exceeds the context is cut into parts of about equal length. An expansion
        joins the answers to the parts. A summary is that of the parts' summaries, which are
        summarized again until they fit. Raises IntegrityError for concepts that are not finite.
        """
        if self.task == "expand":
            return self._expanded(sources, most, seed)
        return self._continued(self._condensed(sources, most, seed), most, seed)

    def _condensed(
        self, sources: Sequence[np.ndarray], most: Sequence[int], seed: int
    ) -> list[np.ndarray]:
        """Summarize overlong sources in parts, repeatedly, until all fit."""
        done = list(sources)
        # Room for a part and a summary of at most half its length: every round shortens the source.
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
        # Rounded up, so that the parts' answers may exceed `most`: the surplus is cut off below.
        shares = [ceil(m / len(p)) for p, m in zip(parts, most, strict=True) for _ in p]
        rest = iter(self._continued(flat, shares, seed))
        return [
            np.concatenate([next(rest) for _ in each])[:m]
            for each, m in zip(parts, most, strict=True)
        ]

    def _continued(
        self, sources: Sequence[np.ndarray], most: Sequence[int], seed: int
    ) -> list[np.ndarray]:
        """Answer sources that fit the context; those with equal limits share batches."""
        found: dict[int, np.ndarray] = {}
        for limit in dict.fromkeys(most):
            same = [i for i, m in enumerate(most) if m == limit]
            for start in range(0, len(same), BATCH):
                some = same[start : start + BATCH]
                prompts = [self._prompt(sources[i]) for i in some]
                # One concept more than wanted, which may be the end of text.
                options = GenerateOptions(max_concepts=limit + 1, seed=seed)
                done = self._writer.predict(prompts, options)
                for i, each in zip(some, done, strict=True):
                    found[i] = self._finite(each.concepts_SD[:limit].float().cpu().numpy())
        return [found[i] for i in range(len(sources))]

    def _finite(self, concepts_ND: np.ndarray) -> np.ndarray:
        if not np.isfinite(concepts_ND).all():
            hint = "its weights are damaged, or --precision float32 is needed"
            raise IntegrityError(f"the model {self.name} predicts NaN or infinite concepts", hint)
        return concepts_ND

    def _prompt(self, source_SD: np.ndarray) -> Tensor:
        source = torch.from_numpy(np.ascontiguousarray(source_SD, dtype=np.float32))
        return torch.cat([self._writer.begin_SD, source, self._prompt_SD])


def load_answer_model(
    wanted: str,
    task: Task,
    space: Space,
    *,
    must_suit: bool = True,
    precision: str = "auto",
) -> AnswerModel | None:
    """Load the model called `wanted`; None for `extractive`, or if `auto` finds none.

    `auto` stands for the model that the space's card names. A model suits if it was trained for the
    task and in this space. One that does not suit counts as none with `auto` or without
    `must_suit`; otherwise it raises UsageError or IntegrityError. Raises NotFoundError if the model
    is not installed. `precision` is that of the model; see `load_model`.
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
    model = load_model(source, device=str(space.device), precision=precision, packed=True)
    return AnswerModel(model, source, task, space)


def _suits(config: AnyConfig | QuantizerConfig, task: Task, space: Space) -> bool:
    if isinstance(config, QuantizerConfig) or task not in config.prompts:
        return False
    same = config.space.fingerprint in ("", space.fingerprint)
    return same and config.concept_dim == space.dim


@dataclass(frozen=True)
class _Draft:
    """A model's answer to `source`: by language code, N texts and their concepts (N, D).

    These are the texts encoded again, not the concepts that the model predicted.
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
    """Decode the answers (N, D) to all documents together, and encode the texts again."""
    codes = [to or [each.document.lang] for each in window]
    counts = [len(rows_ND) for rows_ND in concepts]
    limits = [token_limit(each.document, space) for each in window]
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
    # The texts of every language are checked, the concepts of the first one alone.
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
    """Return the highest and the lowest number of sentences in the answer to a document.

    Without a length the model decides, but a summary has at most half the document's sentences, and
    an expansion has more than the document.
    """
    count = len(each.document.sentences)
    if length is None and task == "summarize":
        return min(MAX_SENTENCES, ceil(count / 2)), 1
    if length is None:
        return MAX_SENTENCES, count + 1
    most = length.amount
    if length.unit == "percent":
        most = ceil(count * length.amount / 100)
    elif length.unit == "words":
        words = sum(count_words(sentence) for sentence in each.document.sentences)
        most = ceil(length.amount * count / max(words, 1))
    return most, ceil(most / 2)


def _sentences(draft: _Draft) -> Iterator[AnswerSentence]:
    near = {code: cosines(rows, draft.source.concepts) for code, rows in draft.concepts.items()}
    # The same sources in all languages: those nearest on average.
    mean_NS = np.mean(list(near.values()), axis=0)
    for n, mean_S in enumerate(mean_NS):
        order = np.argsort(-mean_S, kind="stable")[:MAX_SOURCES]
        yield AnswerSentence(
            {code: said[n] for code, said in draft.texts.items()},
            tuple(
                Citation(
                    int(s) + 1,
                    draft.source.document.sentences[s],
                    {code: float(near_NS[n, s]) for code, near_NS in near.items()},
                    draft.source.place(int(s)),
                )
                for s in order
                if mean_S[s] >= mean_S[order[0]] - SOURCE_MARGIN
            ),
        )


def _fitting(said: Sequence[str], length: Length | None) -> int:
    """Return how many sentences, at least one, fit a length in words."""
    if length is None or length.unit != "words":
        return len(said)
    totals = np.cumsum([count_words(text) for text in said])
    return max(1, int((totals <= length.amount).sum()))


def _parts(source_SD: np.ndarray, room: int) -> list[np.ndarray]:
    """Cut a source into the fewest parts of about equal length that fit `room`."""
    return np.array_split(source_SD, ceil(len(source_SD) / room))


def _or_best(part_SD: np.ndarray, answer_ND: np.ndarray) -> np.ndarray:
    """Return the answer to a part, or the part's most representative sentence if it is empty."""
    return answer_ND if len(answer_ND) else part_SD[select(part_SD, 1)]
