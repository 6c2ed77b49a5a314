"""Diffusion in training: the draw of noise levels, loss weights, and condition dropping.

Notation and equations are those of the paper, as in `lcm_cli.models.diffusion`; u = t/T.

Shapes: T steps, B documents, S concepts, D concept dim, N targets.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lcm_cli.models.config import DiffusionObjective
from lcm_cli.models.diffusion import Schedule


class TimestepSampling:
    """The distribution of noise levels in training, and the loss weights (eq. 16, 17, 19)."""

    def __init__(self, objective: DiffusionObjective, schedule: Schedule) -> None:
        with torch.device("cpu"):  # see Schedule
            self.probabilities_T = _probabilities(objective, schedule.config.steps)
        self.weights_T: Tensor | None = None
        if objective.weighting == "clamped_snr":  # eq. 17
            self.weights_T = schedule.snrs().clamp(objective.snr_min, objective.snr_max)
        self._fragility: tuple[float, float] | None = None
        if objective.weighting == "fragility":
            self._fragility = objective.fragility_a, objective.fragility_b

    def draw(
        self,
        shape: torch.Size,
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw timesteps of `shape`; a `generator` must be on `device`."""
        count, chances_T = shape.numel(), self.probabilities_T.to(device)
        if count == 0:  # multinomial does not draw 0 samples
            return torch.zeros(shape, dtype=torch.long, device=device)
        return torch.multinomial(chances_T, count, True, generator=generator).view(shape)

    def weights(self, timesteps_N: Tensor, fragility_N: Tensor | None = None) -> Tensor | None:
        """Return the weight of each target, (N,), or None if all are 1.

        Clamped SNR weights (eq. 17) are scaled to a mean of 1; fragility weights (eq. 19) are not.
        """
        if self._fragility is not None and fragility_N is not None:
            return fragility_weights(fragility_N, *self._fragility)
        if self.weights_T is None:
            return None
        weights_N = self.weights_T.to(timesteps_N.device)[timesteps_N]
        # The clamp: all weights are 0 if every target is at zero SNR and snr_min is 0.
        return weights_N / weights_N.sum().clamp(min=1e-30) * len(timesteps_N)

    def mean_weight(self, timesteps_N: Tensor) -> Tensor | None:
        """Return the mean by which `weights` divides; None if it does not."""
        if self.weights_T is None:
            return None
        weights_N = self.weights_T.to(timesteps_N.device)[timesteps_N]
        return weights_N.sum() / max(len(weights_N), 1)


def fragility_weights(fragility_N: Tensor, a: float, b: float) -> Tensor:
    """Return sigmoid(a fragility + b) (eq. 19), or 1 for concepts of unknown fragility (NaN)."""
    return (a * fragility_N + b).sigmoid().nan_to_num(nan=1.0)


def _probabilities(objective: DiffusionObjective, steps: int) -> Tensor:
    """Return the probability of drawing each step, (T,): uniform, or a Beta(a, b) density."""
    if objective.timesteps == "uniform":
        return torch.full((steps,), 1 / steps)
    u_T = torch.arange(1, steps + 1) / steps
    rest_T = 1 - u_T
    if objective.beta_b < 1:  # the density is infinite at u = 1: evaluate it half a step earlier
        rest_T = rest_T.clamp(min=0.5 / steps)
    density_T = u_T ** (objective.beta_a - 1) * rest_T ** (objective.beta_b - 1)
    return density_T / density_T.sum()


@dataclass(frozen=True)
class Draws:
    """The random numbers of one training step."""

    noise_BSD: Tensor
    timesteps_BS: Tensor
    dropped_BS: Tensor | None  # True: trained without context
    estimated_B: Tensor | None = None  # True: with self-conditioning, reads an estimate; None: all

    def to(self, device: torch.device) -> "Draws":
        """Return the same draws on `device`."""
        dropped_BS, estimated_B = (
            None if part is None else part.to(device)
            for part in (self.dropped_BS, self.estimated_B)
        )
        moved = self.noise_BSD.to(device), self.timesteps_BS.to(device)
        return Draws(*moved, dropped_BS, estimated_B)


def dropped_rows(
    objective: DiffusionObjective,
    shape: torch.Size,
    device: torch.device | str = "cpu",
    generator: torch.Generator | None = None,
    *,
    shared: bool,
) -> Tensor:
    """Draw the positions trained without context, (B, S), with probability condition_dropping.

    The "official" way drops exactly floor((S - 1) p) positions, none at all in short batches,
    and never the first; if `shared`, the same ones in every document.
    """
    chance = objective.condition_dropping
    if objective.dropping == "bernoulli":
        return torch.rand(shape, device=device, generator=generator) < chance
    rows, length = shape
    count = int((length - 1) * chance)
    orders = [
        torch.randperm(length - 1, device=device, generator=generator)
        for _ in range(1 if shared else rows)
    ]
    return torch.stack([official_drop(order, count) for order in orders]).expand(shape)


def official_drop(order: Tensor, count: int) -> Tensor:
    """Return a mask that drops positions 1 + order[:count], (S,)."""
    dropped_S = torch.zeros(len(order) + 1, dtype=torch.bool, device=order.device)
    dropped_S[1 + order[:count]] = True
    return dropped_S
