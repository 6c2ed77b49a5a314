"""The documents in a batch, and random numbers that depend only on the document.

A captured output of a diffusion model belongs to one noised input. So that the student sees exactly
this input, the noise, timesteps and dropped positions of a document come from a generator that is
seeded with (seed, key of the document, number of the draw). They do not depend on the batch, the
order of the data or the device.

Shapes: B rows, S concepts, D concept dim.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lcm_cli.models.config import AnyConfig, OneTowerConfig, TwoTowerConfig
from lcm_cli.models.diffusion import Schedule
from lcm_cli.models.diffusion_training import Draws, TimestepSampling, dropped_rows
from lcm_cli.models.interface import Batch

KEY = 16  # bytes
_STEPS = 8  # the key rounds numbers to multiples of a concept's largest / _STEPS
# Columns of a batch: those of its draws.
_NOISE, _TIMESTEPS, _DROPPED = "noise", "timesteps", "dropped"


@dataclass(frozen=True)
class Place:
    """A document in a batch: its row, the concepts that a model predicts, and its key."""

    row: int
    first: int
    end: int
    key: bytes

    @property
    def count(self) -> int:
        """Number of predicted concepts."""
        return self.end - self.first

    @property
    def where(self) -> tuple[int, slice]:
        """The index of the predicted concepts in a tensor (B, S, ...)."""
        return self.row, slice(self.first, self.end)


def places(batch: Batch, config: AnyConfig) -> list[Place]:
    """Return the place of each document of which a model of `config` predicts any concept."""
    # Only diffusion models predict a document's first concept.
    skipped = 0 if isinstance(config, OneTowerConfig | TwoTowerConfig) else 1
    sources_B = torch.zeros_like(batch.lengths_B) if batch.sources_B is None else batch.sources_B
    x_BSD, sources = batch.concepts_BSD.float().numpy(), sources_B.tolist()
    found = [
        Place(
            row, start + max(sources[row], skipped), end, _key(x_BSD[row, start:end], sources[row])
        )
        for row, start, end in _documents(batch)
    ]
    return [place for place in found if place.count > 0]


def _documents(batch: Batch) -> Iterator[tuple[int, int, int]]:
    """Yield the row of each document, its first concept and its end."""
    for row, length in enumerate(batch.lengths_B.tolist()):
        starts = [0]
        if batch.segments_BS is not None:
            changes_S = batch.segments_BS[row, :length].diff() != 0
            starts = [0, *(changes_S.nonzero()[:, 0] + 1).tolist()]
        for start, end in zip(starts, [*starts[1:], length], strict=True):
            yield row, start, end


def _key(x_SD: NDArray[np.float32], source: int) -> bytes:
    # Affixes are encoded anew for each run, and their last digits differ between machines; coarsely
    # rounded numbers hardly ever do.
    largest = np.abs(x_SD).max(axis=-1, keepdims=True, initial=1e-30)
    coarse = np.rint(x_SD * (_STEPS / largest)).astype(np.int8)
    return hashlib.sha256(b"%d " % source + coarse.tobytes()).digest()[:KEY]


class DocumentDraws:
    """Draws the random numbers of a diffusion model of `config` for each document."""

    def __init__(self, config: OneTowerConfig | TwoTowerConfig, seed: int) -> None:
        self._objective, self._seed = config.objective, seed
        self._levels = TimestepSampling(config.objective, Schedule(config.schedule))

    def columns(self, batch: Batch, places: Sequence[Place], number: int) -> dict[str, Tensor]:
        """Return the `number`-th draw of each document, as columns of the batch."""
        shape = batch.concepts_BSD.shape
        noise_BSD, timesteps_BS = torch.zeros(shape), torch.zeros(shape[:2], dtype=torch.long)
        dropped_BS = torch.zeros(shape[:2], dtype=torch.bool)
        for place in places:
            generator, size = self._generator(place.key, number), torch.Size((1, place.count))
            # In this order: a capture and the training on it must draw the same numbers.
            noise_BSD[place.where].normal_(generator=generator)
            timesteps_BS[place.where] = self._levels.draw(size, "cpu", generator)[0]
            if self._objective.condition_dropping > 0:
                dropped = dropped_rows(self._objective, size, "cpu", generator, shared=False)
                dropped_BS[place.where] = dropped[0]
        found = {_NOISE: noise_BSD, _TIMESTEPS: timesteps_BS}
        return found | ({_DROPPED: dropped_BS} if self._objective.condition_dropping > 0 else {})

    def _generator(self, key: bytes, number: int) -> torch.Generator:
        digest = hashlib.sha256(b"%d %d " % (self._seed, number) + key).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)


def noise_settings(config: AnyConfig) -> dict[str, Any]:
    """Return the settings of a model on which `DocumentDraws` depend; none without diffusion."""
    if not isinstance(config, OneTowerConfig | TwoTowerConfig):
        return {}
    names = ("condition_dropping", "dropping", "timesteps", "beta_a", "beta_b")
    return {name: getattr(config.objective, name) for name in names}


def given_draws(batch: Batch) -> Draws | None:
    """Return the draws in the columns of a batch, for the concepts to learn; None without any."""
    if _NOISE not in batch.columns:
        return None
    parts = (cast(Tensor | None, batch.columns.get(n)) for n in (_NOISE, _TIMESTEPS, _DROPPED))
    noise, timesteps, dropped = (None if part is None else batch.targets(part)[0] for part in parts)
    assert noise is not None and timesteps is not None
    return Draws(noise, timesteps, dropped)
