"""Concept models as systems: they predict next concepts, and answer what they were finetuned for.

Shapes: B documents, S concepts, D concept dim.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from lcm_cli.evaluation.data import Row
from lcm_cli.evaluation.metrics import cosines
from lcm_cli.evaluation.shared import SharedSpace
from lcm_cli.evaluation.systems import Prediction, Settings, System, parted
from lcm_cli.files import sha256
from lcm_cli.hub import locate_model
from lcm_cli.length import Length, count_words, taken
from lcm_cli.models.checkpoint import check_space, load_model, read_config
from lcm_cli.models.config import SpaceRef
from lcm_cli.repository import weight_parts

if TYPE_CHECKING:
    from torch import Tensor

    from lcm_cli.answer import Task
    from lcm_cli.generative import AnswerModel
    from lcm_cli.models.interface import Batch
    from lcm_cli.space import Space

EXPANSION = 64  # sentences of an expansion, at most


class ConceptSystem(System):
    """A concept model in its space.

    Raises NotFoundError if it is not on this machine, IntegrityError if it is of another space.
    """

    def __init__(self, name: str, space: "Space", settings: Settings) -> None:
        self.name, self._device, self._settings = name, str(space.device), settings
        self._answers: dict[str, AnswerModel] = {}
        self.files = locate_model(name)
        self.config = read_config(self.files.config)
        check_space(self.config, SpaceRef(space.name, space.fingerprint), space.dim)
        prompts = getattr(self.config, "prompts", {})
        self.tasks = ("next-concept", *(t for t in ("summarize", "expand") if t in prompts))
        self.max_length = int(getattr(self.config, "max_length", 0)) or self.max_length

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

    def predict(self, batch: "Batch", seeds: Sequence[int]) -> "Tensor":
        from lcm_cli.models.interface import Noise

        noise = Noise(seeds, self.model.device)
        return self.model.predict(batch.to(self.model.device), self.model.Options(), noise)

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
        from lcm_cli.generative import AnswerModel

        if task not in self._answers:
            model: Any = space
            self._answers[task] = AnswerModel(self.model, self.name, cast("Task", task), model)
        return self._answers[task]
