"""Averaged weights of a network in training."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lcm_cli.training.optim import average_decay


class AveragedWeights:
    """An exponential moving average of parameters; nothing is kept if `ema` is 0."""

    def __init__(self, parameters: Sequence[nn.Parameter], ema: float) -> None:
        self._parameters, self._ema = parameters, ema
        self.weights = [p.detach().clone() for p in parameters] if ema else []

    def follow(self, step: int) -> None:
        """Update the average after step number `step`, from 0."""
        if self.weights:
            decay = average_decay(self._ema, step)
            with torch.no_grad():
                torch._foreach_lerp_(self.weights, list[Tensor](self._parameters), 1 - decay)

    @contextmanager
    def used(self, networks: Iterable[nn.Module]) -> Iterator[None]:
        """Put the average in place of the parameters for a while, with dropout off."""
        networks = list(networks)
        own = [p.data for p in self._parameters]
        try:
            # Exchanges storage, without copies: optimizers keep their parameters.
            for p, average in zip(self._parameters, self.weights or own, strict=True):
                p.data = average
            for network in networks:
                network.eval()
            yield
        finally:
            for p, data in zip(self._parameters, own, strict=True):
                p.data = data
            for network in networks:
                network.train()

    def check(self, saved: Sequence[Tensor]) -> None:
        """Raise ValueError if `ema` was switched on or off since `saved`."""
        if len(saved) != len(self.weights):
            raise ValueError("train.ema cannot be switched on or off within a run")

    def restore(self, saved: Sequence[Tensor]) -> None:
        """Take the weights that an earlier run saved."""
        for mine, weights in zip(self.weights, saved, strict=True):
            mine.copy_(weights)
