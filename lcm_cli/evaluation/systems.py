"""What is evaluated: spaces, concept models, and baselines that anything has to beat.

A system is named by what makes it: a checkpoint, or `extractive`, `lead-3`, `random-10%` (a length
as `lcm summarize --length` takes it), `copy-last`, `mean`, or `hf:ORG/NAME` for a sequence-to-
sequence model of the Hugging Face Hub.

Shapes: B documents, S sentences, D concept dim.
"""

import re
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from lcm_cli.errors import UsageError
from lcm_cli.evaluation.rows import Row
from lcm_cli.evaluation.space_cache import SharedSpace
from lcm_cli.schema import nearest
from lcm_cli.text.length import Length, count_words, taken

if TYPE_CHECKING:
    from torch import Tensor

    from lcm_cli.models.interface import Batch

T = TypeVar("T")
TASKS = ("next-concept", "roundtrip", "summarize", "expand", "translate")
BASELINES = ("extractive", "lead-3", "random-3", "copy-last", "mean")
_CHOSEN = re.compile(r"(extractive|lead|random)(?:-(\d+[%w]?))?")


@dataclass(frozen=True)
class Prediction:
    """What a system wrote in one language.

    `cited` tells which sentence of the source each sentence comes from, from 0; None if the system
    does not say.
    """

    sentences: tuple[str, ...]
    cited: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Settings:
    """What a run asks of every system."""

    length: str = "3"
    seed: int = 0


class System(ABC):
    """Something to evaluate. `tasks` are those that it can do."""

    name: str
    tasks: tuple[str, ...]
    max_length = 1 << 30  # concepts of the longest document it can read

    def about(self) -> dict[str, Any]:
        """Return what tells this system from any other: it stands in metrics.json."""
        return {"kind": "baseline"}

    def write(
        self, rows: Sequence[Row], to: str, task: str, space: SharedSpace
    ) -> list[Prediction]:
        """Write what `task` asks for of each row, in the language `to` ("": the row's own)."""
        raise NotImplementedError

    def batch(
        self, documents: Sequence[np.ndarray], rows: Sequence[Row], space: SharedSpace
    ) -> "Batch":
        """Return what `predict` reads: the concepts, (S, D) each, of what the rows begin with."""
        import torch

        from lcm_cli.models.interface import Batch

        return Batch.of([torch.from_numpy(each.astype(np.float32)) for each in documents])

    def predict(self, batch: "Batch", seeds: Sequence[int]) -> "Tensor":
        """Predict concepts 1 .. S - 1 of each document from those before it, (B, S - 1, D)."""
        raise NotImplementedError


class Chosen(System):
    """A baseline that consists of the source's own sentences: the central, first, or any ones."""

    tasks = ("summarize", "expand")

    def __init__(self, name: str, method: str, length: str, seed: int) -> None:
        self.name, self.method, self.seed = name, method, seed
        self.length = Length.parse(length)

    def about(self) -> dict[str, Any]:
        length = f"{self.length.amount} {self.length.unit}"
        return {"kind": "baseline", "method": self.method, "length": length}

    def write(
        self, rows: Sequence[Row], to: str, task: str, space: SharedSpace
    ) -> list[Prediction]:
        return [self._one(row, to or row.lang, space) for row in rows]

    def _one(self, row: Row, to: str, space: SharedSpace) -> Prediction:
        places = self._places(row, space)
        chosen = [row.source[i] for i in places]
        if to != row.lang:
            concepts_SD = space.concepts(row.source, row.lang)[places]
            chosen = space.texts(concepts_SD, to, chosen, row.lang)
        return Prediction(tuple(chosen), tuple(places))

    def _places(self, row: Row, space: SharedSpace) -> list[int]:
        counts = [count_words(sentence) for sentence in row.source]
        return taken(self._ranking(row, counts, space), counts, self.length)

    def _ranking(self, row: Row, counts: Sequence[int], space: SharedSpace) -> list[int]:
        if self.method == "lead":
            return list(range(len(counts)))
        if self.method == "random":
            rng = np.random.default_rng([self.seed, row.number])
            return [int(i) for i in rng.permutation(len(counts))]
        from lcm_cli.writing.extractive import opening_weights, rank_sentences

        weights_S = opening_weights(len(counts)) * (np.array(counts) > 0)
        return list(rank_sentences(space.concepts(row.source, row.lang), weights_S))


class CopyLast(System):
    """The next concept is the last one again."""

    name, tasks = "copy-last", ("next-concept",)

    def predict(self, batch: "Batch", seeds: Sequence[int]) -> "Tensor":
        return batch.concepts_BSD[:, :-1]


class Mean(System):
    """The next concept is the mean of those before it."""

    name, tasks = "mean", ("next-concept",)

    def predict(self, batch: "Batch", seeds: Sequence[int]) -> "Tensor":
        import torch

        sums_BSD = batch.concepts_BSD[:, :-1].cumsum(dim=1)
        counts_S = torch.arange(1, sums_BSD.shape[1] + 1, device=sums_BSD.device)
        return sums_BSD / counts_S[:, None]


class SpaceItself(System):
    """A space without a model: what it keeps of a text, and how it translates."""

    tasks = ("roundtrip", "translate")

    def __init__(self, name: str, fingerprint: str) -> None:
        self.name, self.fingerprint = name, fingerprint

    def about(self) -> dict[str, Any]:
        return {"kind": "space", "fingerprint": self.fingerprint}

    def write(
        self, rows: Sequence[Row], to: str, task: str, space: SharedSpace
    ) -> list[Prediction]:
        sources = [sentence for row in rows for sentence in row.source]
        codes = [row.lang for row in rows for _ in row.source]
        targets = [to or code for code in codes]
        said = space.texts(space.encode(sources, codes).concepts, targets, sources, codes)
        counts = [len(row.source) for row in rows]
        return [Prediction(tuple(part), tuple(range(len(part)))) for part in parted(said, counts)]


@dataclass
class Lineup:
    """The systems of a run, and which of them takes part in which task."""

    systems: list[System]
    tasks: tuple[str, ...]

    def of(self, task: str) -> list[System]:
        """Return the systems that can do `task`."""
        return [system for system in self.systems if task in system.tasks]


def baseline(name: str, settings: Settings) -> System | None:
    """Return the baseline called `name`, None if there is none. Raises UsageError for a length."""
    if name in ("copy-last", "mean"):
        return CopyLast() if name == "copy-last" else Mean()
    found = _CHOSEN.fullmatch(name)
    if found is None:
        return None
    method, length = found.groups()
    return Chosen(name, method, length or settings.length, settings.seed)


def line_up(systems: Sequence[System], tasks: Sequence[str]) -> Lineup:
    """Check that every task has a system, and every system a task. Raises UsageError."""
    lineup = Lineup(list(systems), tuple(tasks))
    for task in tasks:
        if not lineup.of(task):
            names = ", ".join(system.name for system in systems)
            raise UsageError(f"none of {names} can do {task}", _who_can(task))
    for system in systems:
        if not set(tasks) & set(system.tasks):
            wanted = ", ".join(tasks)
            raise UsageError(
                f"{system.name} cannot do {wanted}", f"it can do {', '.join(system.tasks)}"
            )
    return lineup


def _who_can(task: str) -> str:
    who: Mapping[str, str] = {
        "next-concept": "name a concept model, copy-last or mean",
        "summarize": "name a concept model, extractive, lead-3 or random-3",
        "expand": "name a concept model, extractive, lead-3 or random-3",
    }
    return who.get(task, "name a space, such as tiny")


def check_tasks(tasks: Sequence[str]) -> None:
    """Raise UsageError if one is not a task, with the nearest."""
    for task in tasks:
        if task not in TASKS:
            near = nearest(task, TASKS)
            hint = f"did you mean {near[0]}?" if near else f"the tasks are {', '.join(TASKS)}"
            raise UsageError(f"there is no task {task!r}", hint)


def parted(items: Sequence[T], counts: Sequence[int]) -> list[Sequence[T]]:
    """Cut a flat sequence into parts of so many items each."""
    ends = list(accumulate(counts))
    return [items[end - count : end] for end, count in zip(ends, counts, strict=True)]
