"""Concept models as systems: they predict next concepts, and answer what they were finetuned for.

Shapes: B documents, S concepts, D concept dim, P plans, W concepts with what is put before
and between them, K concepts of that.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from lcm_cli.evaluation.rows import Row
from lcm_cli.evaluation.space_cache import SharedSpace
from lcm_cli.evaluation.systems import Prediction, Settings, System, parted
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

    Raises NotFoundError if it is not on this machine, IntegrityError if it is of another space.
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
        # What opens each document, and what comes between its paragraphs: one sentence, or none.
        self._begin, self._break = (
            [text for text in (getattr(self.config, name, ""),) if text]
            for name in ("begin_text", "break_text")
        )
        self.max_length -= len(self._begin)
        if self._break:  # at most one break and one plan come to two sentences
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
        digests = [sha256(part) for part in weight_parts(self.files.weights)]
        return (
            digests[0] if len(digests) == 1 else hashlib.sha256(str(digests).encode()).hexdigest()
        )

    @cached_property
    def model(self) -> Any:
        """The network."""
        return load_model(self.name, device=self._device)

    def batch(
        self, documents: Sequence[np.ndarray], rows: Sequence[Row], space: SharedSpace
    ) -> Batch:
        """Put what opens prompts before each document, a break between paragraphs for a model that
        learned them, and room for its plan behind each if it learned plans: as `lcm generate`
        does."""
        if not self._begin and not self._break:
            return super().batch(documents, rows, space)
        language = own_language(cast("Space", space))
        begin_KD, break_KD = (space.concepts(t, language) for t in (self._begin, self._break))
        plans = np.zeros((int(getattr(self.config, "plans", False)), break_KD.shape[1]), np.float32)
        between_KD = np.concatenate([break_KD, plans])
        woven = [
            with_breaks(own_SD, row.paragraphs, between_KD, begin_KD)
            for own_SD, row in zip(documents, rows, strict=True)
        ]
        batch = super().batch([x_WD for x_WD, _ in woven], rows, space)
        marks_BS = nn.utils.rnn.pad_sequence(
            [torch.from_numpy(mark_S) for _, mark_S in woven], batch_first=True
        )
        return Batch(batch.concepts_BSD, batch.lengths_B, columns={WOVEN: marks_BS})

    def predict(self, batch: Batch, seeds: Sequence[int]) -> Tensor:
        """Predict every concept; plans are first filled in, one after the other, by the model's
        own from all before it. Each pass has the same noise, so these stay what it says."""

        def once() -> Tensor:
            noise = Noise(seeds, self.model.device)
            found: Tensor = self.model.predict(batch, self.model.Options(), noise)
            return found

        batch = batch.to(self.model.device)
        predicted_BSD = once()
        for rows_P, places_P in _plans(batch):
            concepts_BSD = batch.concepts_BSD.clone()
            concepts_BSD[rows_P, places_P] = predicted_BSD[rows_P, places_P - 1].float()
            batch = replace(batch, concepts_BSD=concepts_BSD)
            predicted_BSD = once()
        return predicted_BSD

    def write(
        self, rows: Sequence[Row], to: str, task: str, space: SharedSpace
    ) -> list[Prediction]:
        """Write what the model says, also where `lcm summarize` would not show it."""
        sources = [space.concepts(row.source, row.lang) for row in rows]
        answering = self._answering(task, space)
        most = [min(answering.most, self._most(row, task)) for row in rows]
        answers = answering.answer(sources, most, self._settings.seed)
        counts = [len(said) for said in answers]
        each = [row for row, count in zip(rows, counts, strict=True) for _ in range(count)]
        said = space.texts(
            np.concatenate(answers),
            [to or row.lang for row in each],
            [max(row.source, key=len) for row in each],  # no sentence is longer than the longest
            [row.lang for row in each],
        )
        return [
            Prediction(tuple(texts), tuple(cosines(answer, source).argmax(axis=1).tolist()))
            for texts, answer, source in zip(parted(said, counts), answers, sources, strict=True)
        ]

    def _most(self, row: Row, task: str) -> int:
        """Return how many sentences the answer may have."""
        if task == "expand":
            return EXPANSION
        counts = [count_words(sentence) for sentence in row.source]
        return len(taken(range(len(counts)), counts, Length.parse(self._settings.length)))

    def _answering(self, task: str, space: SharedSpace) -> "AnswerModel":
        from lcm_cli.writing.answer_model import AnswerModel

        if task not in self._answers:
            model: Any = space
            self._answers[task] = AnswerModel(self.model, self.name, cast("Task", task), model)
        return self._answers[task]


def with_breaks(
    own_SD: np.ndarray, paragraphs: Sequence[int], between_KD: np.ndarray, begin_KD: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return a document with `begin_KD` before it and `between_KD` after each of its paragraphs but
    the last, (W, D), and which of that is no sentence of its own, (W,)."""
    found, marks = [begin_KD], [np.ones(len(begin_KD), bool)]
    for begin, end in parts(paragraphs[: len(own_SD)], len(own_SD)):
        found += [own_SD[begin:end], between_KD]
        marks += [np.zeros(end - begin, bool), np.ones(len(between_KD), bool)]
    return np.concatenate(found[:-1]), np.concatenate(marks[:-1])


def _plans(batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield row and place of each document's first plan, then of each second one, and so on."""
    if batch.woven_BS is None:
        return
    plan_BS = batch.woven_BS.clone()
    plan_BS[:, 1:] &= batch.woven_BS[:, :-1]  # a break comes before each
    plan_BS[:, :1] = False
    number_BS = plan_BS.cumsum(dim=1) * plan_BS
    for number in range(1, int(number_BS.max()) + 1):
        rows_P, places_P = (number_BS == number).nonzero(as_tuple=True)
        yield rows_P, places_P
