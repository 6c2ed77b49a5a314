"""The systems to evaluate: spaces, concept models and baselines.

A system is named by its checkpoint, or is a baseline: `extractive`, `lead-3`, `random-10%` (with a
length as for `lcm summarize --length`), `copy-last`, `mean`, or `hf:ORG/NAME`, a sequence-to-
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
from lcm_cli.evaluation.examples import Example
from lcm_cli.evaluation.space_cache import SharedSpace
from lcm_cli.schema import nearest
from lcm_cli.text.length import Length, count_words, taken

if TYPE_CHECKING:
    from torch import Tensor

    from lcm_cli.models.interface import Batch

T = TypeVar("T")
TASKS = ("next-concept", "roundtrip", "summarize", "expand", "translate", "speech")
BASELINES = ("extractive", "lead-3", "random-3", "copy-last", "mean")
_SELECTION = re.compile(r"(extractive|lead|random)(?:-(\d+[%w]?))?")


@dataclass(frozen=True)
class Prediction:
    """A system's output for one example in one language.

    `cited` holds, for each sentence, the position from 0 of the source sentence that it cites; None
    if the system cites nothing.
    """

    sentences: tuple[str, ...]
    cited: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Settings:
    """The settings of a run that apply to every system."""

    length: str = "3"  # of summaries, as for `lcm summarize --length`
    seed: int = 0


class System(ABC):
    """A system to evaluate on the tasks that it can do, `tasks`."""

    name: str
    tasks: tuple[str, ...]
    max_length = 1 << 30  # concepts of the longest document that it can read

    def about(self) -> dict[str, Any]:
        """Return the facts that identify this system in metrics.json, as JSON data."""
        return {"kind": "baseline"}

    def write(
        self, examples: Sequence[Example], to: str, task: str, space: SharedSpace
    ) -> list[Prediction]:
        """Do `task` on each example, writing in the language `to` ("": that of the example)."""
        raise NotImplementedError

    def batch(
        self, documents: Sequence[np.ndarray], examples: Sequence[Example], space: SharedSpace
    ) -> "Batch":
        """Return the input of `predict`; `documents` are the concepts, (S, D) each, of examples."""
        import torch

        from lcm_cli.models.interface import Batch

        return Batch.of([torch.from_numpy(each.astype(np.float32)) for each in documents])

    def predict(self, batch: "Batch", seeds: Sequence[int]) -> "Tensor":
        """Predict concepts 1 .. S - 1 of each document from the true ones before, (B, S - 1, D)."""
        raise NotImplementedError


class SentenceSelection(System):
    """A baseline that selects sentences of the source.

    The `method` is extractive (the most representative ones), lead (the first) or random.
    """

    tasks = ("summarize", "expand")

    def __init__(self, name: str, method: str, length: str, seed: int) -> None:
        self.name, self.method, self.seed = name, method, seed
        self.length = Length.parse(length)

    def about(self) -> dict[str, Any]:
        length = f"{self.length.amount} {self.length.unit}"
        return {"kind": "baseline", "method": self.method, "length": length}

    def write(
        self, examples: Sequence[Example], to: str, task: str, space: SharedSpace
    ) -> list[Prediction]:
        return [self._select(example, to or example.lang, space) for example in examples]

    def _select(self, example: Example, to: str, space: SharedSpace) -> Prediction:
        places = self._places(example, space)
        selected = [example.source[i] for i in places]
        if to != example.lang:
            concepts_SD = space.concepts(example.source, example.lang)[places]
            selected = space.texts(concepts_SD, to, selected, example.lang)
        return Prediction(tuple(selected), tuple(places))

    def _places(self, example: Example, space: SharedSpace) -> list[int]:
        word_counts = [count_words(sentence) for sentence in example.source]
        return taken(self._ranking(example, word_counts, space), word_counts, self.length)

    def _ranking(
        self, example: Example, word_counts: Sequence[int], space: SharedSpace
    ) -> list[int]:
        if self.method == "lead":
            return list(range(len(word_counts)))
        if self.method == "random":
            # Seeded by the row, so that the choice does not depend on the rows before it.
            rng = np.random.default_rng([self.seed, example.number])
            return [int(i) for i in rng.permutation(len(word_counts))]
        from lcm_cli.writing.extractive import opening_weights, rank_sentences

        # As in `writing.summarize`: sentences without words come last.
        weights_S = opening_weights(len(word_counts)) * (np.array(word_counts) > 0)
        return list(rank_sentences(space.concepts(example.source, example.lang), weights_S))


class CopyLast(System):
    """A baseline that predicts the last concept again."""

    name, tasks = "copy-last", ("next-concept",)

    def predict(self, batch: "Batch", seeds: Sequence[int]) -> "Tensor":
        return batch.concepts_BSD[:, :-1]


class Mean(System):
    """A baseline that predicts the mean of all concepts before."""

    name, tasks = "mean", ("next-concept",)

    def predict(self, batch: "Batch", seeds: Sequence[int]) -> "Tensor":
        import torch

        sums_BSD = batch.concepts_BSD[:, :-1].cumsum(dim=1)
        counts_S = torch.arange(1, sums_BSD.shape[1] + 1, device=sums_BSD.device)
        return sums_BSD / counts_S[:, None]


class SpaceItself(System):
    """A space without a model: encodes each sentence and decodes it into the target language."""

    tasks = ("roundtrip", "translate")

    def __init__(self, name: str, fingerprint: str) -> None:
        self.name, self.fingerprint = name, fingerprint

    def about(self) -> dict[str, Any]:
        return {"kind": "space", "fingerprint": self.fingerprint}

    def write(
        self, examples: Sequence[Example], to: str, task: str, space: SharedSpace
    ) -> list[Prediction]:
        sources = [sentence for example in examples for sentence in example.source]
        codes = [example.lang for example in examples for _ in example.source]
        targets = [to or code for code in codes]
        texts = space.texts(space.encode(sources, codes).concepts, targets, sources, codes)
        counts = [len(example.source) for example in examples]
        return [
            Prediction(tuple(sentences), tuple(range(len(sentences))))
            for sentences in split_by_counts(texts, counts)
        ]


@dataclass
class Lineup:
    """The systems and tasks of a run."""

    systems: list[System]
    tasks: tuple[str, ...]

    def of(self, task: str) -> list[System]:
        """Return the systems that can do `task`."""
        return [system for system in self.systems if task in system.tasks]


def baseline(name: str, settings: Settings) -> System | None:
    """Return the baseline called `name`, None if it is not one.

    Raises UsageError if the length in the name is invalid.
    """
    if name in ("copy-last", "mean"):
        return CopyLast() if name == "copy-last" else Mean()
    match = _SELECTION.fullmatch(name)
    if match is None:
        return None
    method, length = match.groups()
    return SentenceSelection(name, method, length or settings.length, settings.seed)


def line_up(systems: Sequence[System], tasks: Sequence[str]) -> Lineup:
    """Return the lineup. Raises UsageError for a task without a system or a system without one."""
    lineup = Lineup(list(systems), tuple(tasks))
    for task in tasks:
        if not lineup.of(task):
            names = ", ".join(system.name for system in systems)
            raise UsageError(f"none of {names} can do {task}", _systems_hint(task))
    for system in systems:
        if not set(tasks) & set(system.tasks):
            wanted = ", ".join(tasks)
            raise UsageError(
                f"{system.name} cannot do {wanted}", f"it can do {', '.join(system.tasks)}"
            )
    return lineup


def _systems_hint(task: str) -> str:
    hints: Mapping[str, str] = {
        "next-concept": "name a concept model, copy-last or mean",
        "summarize": "name a concept model, extractive, lead-3 or random-3",
        "expand": "name a concept model, extractive, lead-3 or random-3",
        "speech": "name a speech encoder of the space",
    }
    return hints.get(task, "name a space, such as tiny")


def check_tasks(tasks: Sequence[str]) -> None:
    """Raise UsageError if one of `tasks` is unknown; the hint names the nearest."""
    for task in tasks:
        if task not in TASKS:
            near = nearest(task, TASKS)
            hint = f"did you mean {near[0]}?" if near else f"the tasks are {', '.join(TASKS)}"
            raise UsageError(f"there is no task {task!r}", hint)


def split_by_counts(items: Sequence[T], counts: Sequence[int]) -> list[Sequence[T]]:
    """Cut a flat sequence into consecutive parts of the given lengths."""
    ends = list(accumulate(counts))
    return [items[end - count : end] for end, count in zip(ends, counts, strict=True)]
