"""Concept models as systems: next-concept prediction, and the tasks that they were finetuned for.

Shapes: B documents, S sentences or concepts of a row, D concept dim, P plans, K inserted concepts,
W concepts of a document with the inserted ones.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from lcm_cli.evaluation.examples import Example
from lcm_cli.evaluation.space_cache import SharedSpace
from lcm_cli.evaluation.systems import Prediction, Settings, System, split_by_counts
from lcm_cli.files import sha256
from lcm_cli.hub.layouts import weight_parts
from lcm_cli.hub.locate import locate_model
from lcm_cli.models.checkpoint import check_model_space, load_model
from lcm_cli.models.config import SpaceRef, read_model_config
from lcm_cli.models.interface import WOVEN, Batch, Noise
from lcm_cli.space.similarity import cosines
from lcm_cli.text.length import Length, count_words, taken
from lcm_cli.text.paragraphs import parts
from lcm_cli.writing.writer import own_language

if TYPE_CHECKING:
    from lcm_cli.space import Space
    from lcm_cli.writing.answer_model import AnswerModel
    from lcm_cli.writing.answers import Task

EXPANSION = 64  # sentences of an expansion, at most


class ConceptSystem(System):
    """A concept model in its space.

    Raises NotFoundError if the model is not installed, IntegrityError if it belongs to another
    space.
    """

    def __init__(self, name: str, space: "Space", settings: Settings) -> None:
        self.name, self._device, self._settings = name, str(space.device), settings
        self._answers: dict[str, AnswerModel] = {}
        self.files = locate_model(name)
        self.config = read_model_config(self.files.config)
        check_model_space(self.config, SpaceRef(space.name, space.fingerprint), space.dim)
        prompts = getattr(self.config, "prompts", {})
        self.tasks = ("next-concept", *(t for t in ("summarize", "expand") if t in prompts))
        self.max_length = int(getattr(self.config, "max_length", 0)) or self.max_length
        # The text put before each document and the break between paragraphs: one sentence, or none.
        self._begin, self._break = (
            [text for text in (getattr(self.config, name, ""),) if text]
            for name in ("begin_text", "break_text")
        )
        self.max_length -= len(self._begin)
        # Each paragraph has at least one sentence and adds at most a break and a plan.
        if self._break:
            self.max_length //= 2

    def about(self) -> dict[str, Any]:
        return {
            "kind": "concept model",
            "architecture": self.config.architecture,
            "sha256": self._digest,
            "licence": self.files.licence,
        }

    @cached_property
    def _digest(self) -> str:
        parts = weight_parts(self.files.weights)
        parts += [self.files.adapter.weights] if self.files.adapter else []
        # A single file keeps its own digest, which others can compare.
        digests = [sha256(part) for part in parts]
        return (
            digests[0] if len(digests) == 1 else hashlib.sha256(str(digests).encode()).hexdigest()
        )

    @cached_property
    def model(self) -> Any:
        """The concept model, loaded on first use."""
        return load_model(self.name, device=self._device)

    def batch(
        self, documents: Sequence[np.ndarray], examples: Sequence[Example], space: SharedSpace
    ) -> Batch:
        """Return the documents with the concepts that `lcm generate` would insert.

        Those are the text that opens prompts; for a model with breaks, a break between paragraphs;
        and for a model with plans, zeros after each break, which `predict` replaces with the plan.
        """
        if not self._begin and not self._break:
            return super().batch(documents, examples, space)
        language = own_language(cast("Space", space))
        begin_KD, break_KD = (space.concepts(t, language) for t in (self._begin, self._break))
        plans = np.zeros((int(getattr(self.config, "plans", False)), break_KD.shape[1]), np.float32)
        between_KD = np.concatenate([break_KD, plans])
        woven = [
            with_breaks(own_SD, example.paragraphs, between_KD, begin_KD)
            for own_SD, example in zip(documents, examples, strict=True)
        ]
        # The marks make `score_predictions` leave the inserted concepts out.
        batch = super().batch([x_WD for x_WD, _ in woven], examples, space)
        marks_BS = nn.utils.rnn.pad_sequence(
            [torch.from_numpy(mark_S) for _, mark_S in woven], batch_first=True
        )
        return Batch(batch.concepts_BSD, batch.lengths_B, columns={WOVEN: marks_BS})

    def predict(self, batch: Batch, seeds: Sequence[int]) -> Tensor:
        """Predict every concept, after filling in each plan by the model's own prediction of it.

        A document's plans are filled in from first to last, since each depends on those before it.
        Every pass draws the same noise, so that a plan stays the model's prediction in later ones.
        """

        def predict_once() -> Tensor:
            noise = Noise(seeds, self.model.device)
            prediction_BSD: Tensor = self.model.predict(batch, self.model.options(), noise)
            return prediction_BSD

        batch = batch.to(self.model.device)
        predicted_BSD = predict_once()
        for rows_P, places_P in _plan_positions(batch):
            concepts_BSD = batch.concepts_BSD.clone()
            # Predictions begin with concept 1, so that of concept n is at n - 1.
            concepts_BSD[rows_P, places_P] = predicted_BSD[rows_P, places_P - 1].float()
            batch = replace(batch, concepts_BSD=concepts_BSD)
            predicted_BSD = predict_once()
        return predicted_BSD

    def write(
        self, examples: Sequence[Example], to: str, task: str, space: SharedSpace
    ) -> list[Prediction]:
        """Write the model's answers, including those that `lcm summarize` would refuse to show."""
        sources = [space.concepts(example.source, example.lang) for example in examples]
        answering = self._answer_model(task, space)
        limits = [min(answering.most, self._sentence_limit(e, task)) for e in examples]
        answers = answering.answer(sources, limits, self._settings.seed)
        counts = [len(answer) for answer in answers]
        # The example that each sentence of an answer belongs to.
        owners = [example for example, n in zip(examples, counts, strict=True) for _ in range(n)]
        texts = space.texts(
            np.concatenate(answers),
            [to or example.lang for example in owners],
            [max(example.source, key=len) for example in owners],  # bounds the decoded sentences
            [example.lang for example in owners],
        )
        return [
            Prediction(tuple(sentences), tuple(cosines(answer, source).argmax(axis=1).tolist()))
            for sentences, answer, source in zip(
                split_by_counts(texts, counts), answers, sources, strict=True
            )
        ]

    def _sentence_limit(self, example: Example, task: str) -> int:
        if task == "expand":
            return EXPANSION
        counts = [count_words(sentence) for sentence in example.source]
        return len(taken(range(len(counts)), counts, Length.parse(self._settings.length)))

    def _answer_model(self, task: str, space: SharedSpace) -> "AnswerModel":
        from lcm_cli.writing.answer_model import AnswerModel

        if task not in self._answers:
            model: Any = space
            self._answers[task] = AnswerModel(self.model, self.name, cast("Task", task), model)
        return self._answers[task]


def with_breaks(
    own_SD: np.ndarray, paragraphs: Sequence[int], between_KD: np.ndarray, begin_KD: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return a document with inserted concepts, (W, D), and a mask of the inserted ones, (W,).

    `begin_KD` goes before it, and `between_KD` after each of its paragraphs but the last.
    """
    pieces, inserted = [begin_KD], [np.ones(len(begin_KD), bool)]
    # A document cut off at the longest length has more paragraph numbers than sentences.
    for begin, end in parts(paragraphs[: len(own_SD)], len(own_SD)):
        pieces += [own_SD[begin:end], between_KD]
        inserted += [np.zeros(end - begin, bool), np.ones(len(between_KD), bool)]
    return np.concatenate(pieces[:-1]), np.concatenate(inserted[:-1])


def _plan_positions(batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows and places of the first plans of all documents, then of the second, and so on."""
    if batch.woven_BS is None:
        return
    # A plan is an inserted concept that follows another one, its break.
    plan_BS = batch.woven_BS.clone()
    plan_BS[:, 1:] &= batch.woven_BS[:, :-1]
    plan_BS[:, :1] = False
    number_BS = plan_BS.cumsum(dim=1) * plan_BS
    for number in range(1, int(number_BS.max()) + 1):
        rows_P, places_P = (number_BS == number).nonzero(as_tuple=True)
        yield rows_P, places_P
