"""The interface of all concept models: batches, losses, generation states and noise.

Shapes: B documents, S concepts, D concept dim, N positions that are predicted.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lcm_cli.models.config import AnyConfig
from lcm_cli.models.layers import positions_in_documents
from lcm_cli.models.normalizer import Normalizer
from lcm_cli.space.transformer import to_device

PADDING = -1  # the segment of positions after a row's end

# Names of columns in `Batch.columns`.
TOKENS, WOVEN, FRAGILITY = "tokens", "woven", "fragility"

# A value per concept: a tensor (B, S), padded on the right, or a sequence of token ids per concept.
ColumnValues = Tensor | Sequence[Sequence[NDArray[np.int32]]]


@dataclass(frozen=True)
class Batch:
    """Documents of raw concepts, padded on the right.

    A row is one document, or several packed documents that do not attend to each other: then
    `segments_BS` numbers them. `columns` hold further values per concept, by name.
    """

    concepts_BSD: Tensor
    lengths_B: Tensor
    sources_B: Tensor | None = None  # how many concepts of each row are given, not learned
    segments_BS: Tensor | None = None  # which of its row's documents a concept is of
    columns: Mapping[str, ColumnValues] = field(default_factory=dict)

    @property
    def tokens(self) -> Sequence[Sequence[NDArray[np.int32]]] | None:
        """The token ids of each concept's sentence, [language] x </s>, if the data have them."""
        return cast(Sequence[Sequence[NDArray[np.int32]]] | None, self.columns.get(TOKENS))

    @property
    def woven_BS(self) -> Tensor | None:
        """Which concepts are paragraph breaks or plans: learned like sentences, but not scored."""
        return cast(Tensor | None, self.columns.get(WOVEN))

    @property
    def fragility_BS(self) -> Tensor | None:
        """How little noise each concept bears; NaN where unknown."""
        return cast(Tensor | None, self.columns.get(FRAGILITY))

    @classmethod
    def of(cls, documents: Sequence[Tensor], sources: Sequence[int] | None = None) -> "Batch":
        """Pad `documents`, (S, D) each; `sources` counts the leading concepts that are given."""
        device = documents[0].device
        padded_BSD = nn.utils.rnn.pad_sequence(list(documents), batch_first=True)
        lengths_B = torch.tensor([len(document) for document in documents], device=device)
        given_B = None if sources is None else torch.tensor(list(sources), device=device)
        return cls(padded_BSD, lengths_B, given_B)

    @classmethod
    def packed(
        cls, rows: Sequence[Sequence[Tensor]], sources: Sequence[int] | None = None
    ) -> "Batch":
        """Put several documents, (S, D) each, into each row; one with a source stands alone."""
        batch = cls.of([torch.cat(list(row)) for row in rows], sources)
        if all(len(row) == 1 for row in rows):
            return batch
        numbers = [
            torch.arange(len(row)).repeat_interleave(torch.tensor([len(each) for each in row]))
            for row in rows
        ]
        segments_BS = nn.utils.rnn.pad_sequence(numbers, batch_first=True, padding_value=PADDING)
        return replace(batch, segments_BS=segments_BS.to(batch.lengths_B.device))

    def to(self, device: torch.device | str) -> "Batch":
        """Return the same batch on `device`."""
        place = torch.device(device)
        parts = {key: part for key, part in vars(self).items() if isinstance(part, Tensor)}
        moved: dict[str, Any] = {key: to_device(part, place) for key, part in parts.items()}
        columns = {
            name: to_device(column, place) if isinstance(column, Tensor) else column
            for name, column in self.columns.items()
        }
        return replace(self, columns=columns, **moved)

    def rows(self, numbers: Sequence[int]) -> "Batch":
        """Return some rows, in this order, without padding that none of them needs.

        For no rows at all, return one row of length 0, which has nothing to learn.
        """
        if not numbers:
            empty = {
                name: [column[0][:0]]
                for name, column in self.columns.items()
                if not isinstance(column, Tensor)
            }
            return Batch(self.concepts_BSD[:1, :1] * 0, self.lengths_B[:1] * 0, columns=empty)
        chosen = torch.tensor(list(numbers), device=self.lengths_B.device)
        lengths_B = self.lengths_B[chosen]
        longest = int(lengths_B.max())
        columns = {
            name: column[chosen, :longest]
            if isinstance(column, Tensor)
            else [column[number] for number in numbers]
            for name, column in self.columns.items()
        }
        return Batch(
            self.concepts_BSD[chosen, :longest],
            lengths_B,
            None if self.sources_B is None else self.sources_B[chosen],
            None if self.segments_BS is None else self.segments_BS[chosen, :longest],
            columns,
        )

    def sentences(self) -> "tuple[Batch, Tensor]":
        """Return the batch without breaks and plans, and where its concepts stand here, (B, S)."""
        positions_S = self.positions()
        if self.woven_BS is None:
            return self, positions_S.expand(len(self.lengths_B), -1)
        kept_BS = (positions_S < self.lengths_B[:, None]) & ~self.woven_BS
        lengths_B = kept_BS.sum(dim=1)
        longest = max(int(lengths_B.max()), 1)
        # A stable sort of "left out" moves the concepts kept to the front, in their order.
        places_BS = (~kept_BS).byte().argsort(dim=1, stable=True)[:, :longest]
        rows_B1 = torch.arange(len(places_BS), device=places_BS.device)[:, None]
        segments_BS = None if self.segments_BS is None else self.segments_BS[rows_B1, places_BS]
        kept_BSD = self.concepts_BSD[rows_B1, places_BS]
        return Batch(kept_BSD, lengths_B, self.sources_B, segments_BS), places_BS

    def positions(self) -> Tensor:
        """Return 0, 1, ... S - 1."""
        return torch.arange(self.concepts_BSD.shape[1], device=self.concepts_BSD.device)

    def learned(self, first: int = 0) -> Tensor:
        """Return which positions are learned, (B, S).

        These are a document's concepts from number `first` on, and after the source.
        """
        positions_S = self.positions()
        learned_BS = positions_S < self.lengths_B[:, None]
        if self.sources_B is not None:
            learned_BS = learned_BS & (positions_S >= self.sources_B[:, None])
        if self.segments_BS is not None:
            return learned_BS & (positions_in_documents(self.segments_BS) >= first)
        return learned_BS & (positions_S >= first)

    def places(self) -> Tensor:
        """Return where in its row each concept to learn stands, (B or 1, S).

        Without a source these are all of a row's concepts, else those after the source, as many
        as the longest target has: rows with fewer name places that are not theirs.
        """
        if self.sources_B is None:
            return self.positions()[None]
        positions_S = self.positions()
        count = int((self.lengths_B - self.sources_B).max())
        return (self.sources_B[:, None] + positions_S[:count]).clamp(max=len(positions_S) - 1)

    def targets(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows of `x_BSD` at `places`, (B, S, ...), and which of them are real, (B, S).

        `x_BSD` are this batch's concepts, or values computed from them, (B, S, ...).
        """
        if self.sources_B is None:
            return x_BSD, self.learned()
        places_BS = self.places()
        rows_B1 = torch.arange(len(x_BSD), device=x_BSD.device)[:, None]
        steps_S = self.positions()[: places_BS.shape[1]]
        return x_BSD[rows_B1, places_BS], steps_S < (self.lengths_B - self.sources_B)[:, None]


@dataclass
class Loss:
    """The loss of a batch, summed over its targets."""

    value: Tensor  # weighted sum over the targets, differentiable
    errors_N: Tensor  # unweighted loss of each target, detached
    timesteps_N: Tensor | None = None  # timestep of each target, for diffusion models
    terms: dict[str, Tensor] = field(default_factory=dict)  # further sums to log
    weights_N: Tensor | None = None  # weight of each target; None: all are 1
    mean_weight: Tensor | None = None  # of the weights before they were scaled; None: they were not

    @property
    def targets(self) -> int:
        """Number of concepts predicted."""
        return len(self.errors_N)

    @property
    def mean(self) -> Tensor:
        """The loss per target; zero without targets."""
        return self.value / max(self.targets, 1)

    @property
    def unscaled(self) -> tuple[Tensor, float]:
        """The value as it is before the weights are scaled to a mean of 1, and their sum.

        Sums of both over micro-batches give the loss of the whole batch.
        """
        if self.mean_weight is None:
            return self.value, float(self.targets)
        return self.value * self.mean_weight, float(self.mean_weight) * self.targets

    def buckets(self, steps: int, count: int = 10) -> list[tuple[float, int]]:
        """Return the sum and number of `errors_N` in each of `count` equal ranges of timesteps.

        `steps` is T: with ten ranges the first is [0, T/10), the second [T/10, 2T/10).
        """
        assert self.timesteps_N is not None, "only diffusion losses have noise levels"
        which_N = self.timesteps_N * count // steps
        sums = self.errors_N.new_zeros(count).index_add(0, which_N, self.errors_N)
        return list(zip(sums.tolist(), which_N.bincount(minlength=count).tolist(), strict=True))


def squared_error(prediction: Tensor, target: Tensor, root: bool = False) -> Tensor:
    """Return the squared distance of each pair, summed over channels; its root if `root`.

    Computes in float32: (..., D) to (...).
    """
    error = ((prediction.float() - target.float()) ** 2).sum(dim=-1)
    # The epsilon keeps the gradient of the root finite where the two are equal.
    return (error + 1e-5).sqrt() if root else error


class Noise:
    """Random numbers for generation, each row with its own generator.

    A row's numbers depend only on its seed and on how many it has drawn, never on the device or on
    the other rows of the batch: the generators are on the CPU, and drawn from row by row.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.device = device
        # Modulo: torch takes no larger seeds.
        self.generators = [torch.Generator().manual_seed(seed % 2**63) for seed in seeds]

    def normal(self, *shape: int) -> Tensor:
        """Draw standard Gaussians, (rows, *shape)."""
        draws = [torch.randn(shape, generator=generator) for generator in self.generators]
        return torch.stack(draws).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        """Draw numbers in [0, 1), (rows, *shape)."""
        draws = [torch.rand(shape, generator=generator) for generator in self.generators]
        return torch.stack(draws).to(self.device)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order."""
        self.generators = [self.generators[row] for row in rows]


class State(ABC):
    """What a model keeps of the documents it continues, one row each."""

    @abstractmethod
    def keep(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row may occur more than once."""


class ConceptModel(nn.Module, ABC):
    """A model that predicts the next concept.

    The methods declared here take and return raw concepts; the model normalizes them itself.
    """

    config: AnyConfig
    normalizer: Normalizer
    Options: type[Any]  # generation options of this kind of model; the defaults are the paper's
    _precision = ""  # set by `load_model` where it is not that of activations
    end_similarity = 0.9  # cosine to the end-of-text concept at which a document ends (s_eot)

    def options(self, **given: Any) -> Any:
        """Return generation options: those `given`, and this model's defaults for the others."""
        return self.Options(**given)

    @abstractmethod
    def loss(self, batch: Batch, generator: torch.Generator | None = None) -> Loss:
        """Return the training loss of a batch."""

    @abstractmethod
    def predict(self, batch: Batch, options: Any, noise: Noise) -> Tensor:
        """Predict concepts 1 .. S - 1, each from the true ones before it, (B, S - 1, D)."""

    @abstractmethod
    def begin(self, prompts: Batch, capacity: int, options: Any) -> Any:
        """Read the prompts and return the state from which `next` continues.

        `capacity` is the maximum length of a document, prompt included.
        """

    @abstractmethod
    def next(self, state: Any, noise: Noise) -> Tensor:
        """Propose the next concept of each row, (B, D)."""

    @abstractmethod
    def extend(self, state: Any, concepts_BD: Tensor) -> None:
        """Append one chosen concept to each document, (B, D)."""

    @abstractmethod
    def likelihood(self, state: Any, concepts_BD: Tensor) -> Tensor:
        """Score how well each concept continues its row, (B,).

        The score is a log density up to a constant, or an approximation of one. It only serves to
        rank candidates for the same place.
        """

    @property
    def precision(self) -> str:
        """The name of the type that products are computed in."""
        return self._precision or str(self.dtype).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        # A model laid out for generation, which is on the CPU, may have no tensors of its own.
        first = next(chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if first is None else first.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations."""
        # Without parameters (see `device`), a model computes in float32.
        first = next(self.parameters(), None)
        return torch.float32 if first is None else first.dtype

    def normalized(self, concepts: Tensor) -> Tensor:
        """Return normalized concepts, in the dtype and on the device of the weights."""
        return self.normalizer.normalize(concepts.to(self.device)).to(self.dtype)
