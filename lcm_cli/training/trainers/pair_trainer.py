"""Steps of training on pairs of sentences, whatever the networks and their losses.

A step is captured in a CUDA graph where its kernels allow that. Matrices compute as they will be
stored, and everything that is random depends on seed and step alone.

Shapes: N pairs.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lcm_cli.evaluation.space_quality import evaluate_space
from lcm_cli.hub.locate import AdapterConfig
from lcm_cli.space import load_space
from lcm_cli.space.kernel_check import check_row_kernel
from lcm_cli.space.transformer import Stack, row_kernel
from lcm_cli.training.adapting import base_of, check_base, restore_trained, trained_state
from lcm_cli.training.compiling import compile_layers
from lcm_cli.training.data.parallel_text import Pairs, ParallelText, Room
from lcm_cli.training.optim import (
    freeze,
    learning_rate,
    make_optimizers,
    set_rate,
    sizes,
    split_parameters,
    trained_share,
)
from lcm_cli.training.parallel import World
from lcm_cli.training.recipes.space import SpaceRecipe
from lcm_cli.training.trainers.averaging import AveragedWeights
from lcm_cli.training.trainers.cuda_graph import CapturedStep
from lcm_cli.training.trainers.token_loss import short_rows
from lcm_cli.weights import rounded


class PairTrainer(ABC):
    """Networks trained on pairs of sentences; `step` counts the batches done.

    `parts` names the losses that the subclass computes. With `adapter`, which describes the
    adapters of the networks, states and checkpoints hold these alone.
    """

    parts: tuple[str, ...]
    unit = "sentences"
    sample_every = 0
    keep = 2
    patience = 0
    world = World()
    peak_flops: float | None = None

    def __init__(
        self,
        recipe: SpaceRecipe,
        networks: Mapping[str, nn.Module],
        data: ParallelText,
        dev: Sequence[Mapping[str, str]],
        adapter: AdapterConfig | None = None,
    ) -> None:
        self.recipe, self.adapter = recipe, adapter
        self.options = recipe.train
        self.networks = networks
        self.data, self.dev = data, dev
        self.device = data.device
        check_row_kernel(self.device)
        self.step = self.sentences = 0
        self.steps, self.save_every = self.options.steps, self.options.save_every
        self.eval_every = self.options.eval_every
        self._epoch, self._first = -1, 0
        self._pairs: Pairs | None = None
        self._batches: list[slice] = []
        module = nn.ModuleDict(networks)  # as one, since parameters that they share count once
        freeze(module, self.options.freeze)
        self.sizes = sizes(module)
        matrices, others = split_parameters(networks.values())
        self.optimizers = make_optimizers(matrices, others, self.options)
        self.parameters = matrices + others
        # Frozen matrices are rounded as well when the space is stored.
        self._stored = [p for p in module.parameters() if p.dim() == 2]
        if adapter or self.options.store != "int8":
            self._stored = []
        self.average = AveragedWeights(self.parameters, self.options.ema)
        self._room: Room | None = None
        self._captured = CapturedStep(self._learn)

    @property
    def summary(self) -> str:
        """Size of the networks and of the data, in one line."""
        left_out = self.data.skipped
        skipped = f"; {left_out} sentences over {self.options.max_tokens} tokens are left out"
        return (
            f"{self.sizes[0] / 1e6:.1f} M parameters{trained_share(*self.sizes)}, "
            f"{len(self.data)} lines of text{skipped if left_out else ''}"
        )

    def train_step(self) -> dict[str, Any]:
        """Do one optimizer step; return its losses and the number of sentences.

        On a GPU the losses are tensors that may not have been computed yet.
        """
        batch, o = self._batch(), self.options
        rate = learning_rate(self.step, o.steps, o.learning_rate, o.warmup, o.decay)
        for optimizer in self.optimizers:
            set_rate(optimizer, rate)
        # Noise and dropout depend on seed and step alone, so that a resumed run draws the same.
        torch.manual_seed(int(np.random.default_rng([o.seed, self.step]).integers(1 << 62)))
        if self._room is None:
            found = self._learn(batch.sentences_N4, batch.aligned_N, batch.swap_N2)
        else:
            full = batch.padded(self._room.pairs)
            found = self._captured(full.sentences_N4, full.aligned_N, full.swap_N2)
        self.average.follow(self.step)
        self.step += 1
        self.sentences += 2 * len(batch)
        losses = found.unbind() if found.is_cuda else found.tolist()
        names = (*self.parts, "grad_norm")
        return dict(zip(names, losses, strict=True)) | {"lr": rate, "sentences": 2 * len(batch)}

    def _learn(self, sentences_N4: Tensor, aligned_N: Tensor, swap_N2: Tensor) -> Tensor:
        """Do the device's part of a step; return the losses and the gradient norm."""
        with self._rounded():
            losses = self.losses(Pairs(sentences_N4, aligned_N, swap_N2), self._room)
            self.whole(losses).backward()
        # The matrices are exact again: it is these that the gradients of the rounded ones change.
        norm = nn.utils.clip_grad_norm_(self.parameters, self.options.clip)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return torch.stack([*(loss.detach() for loss in losses), norm])

    @contextmanager
    def _rounded(self) -> Iterator[None]:
        """Compute with the matrices as they will be stored; restore the exact ones afterwards."""
        exact = [matrix.detach().clone() for matrix in self._stored]
        with torch.no_grad():
            for matrix in self._stored:
                matrix.copy_(rounded(matrix))
        try:
            yield
        finally:
            with torch.no_grad():
                for matrix, own in zip(self._stored, exact, strict=True):
                    matrix.copy_(own)

    @abstractmethod
    def losses(self, pairs: Pairs, room: Room | None = None) -> tuple[Tensor, ...]:
        """Return the losses of a batch, in the order of `parts`.

        With `room` the batch is padded to these sizes, and nothing waits for the device; the losses
        are the same. Padding is for CUDA graphs; elsewhere it only adds work.
        """

    @abstractmethod
    def whole(self, losses: tuple[Tensor, ...]) -> Tensor:
        """Return the weighted sum of the losses."""

    @abstractmethod
    def export(self, folder: Path) -> Path:
        """Write the space to `folder`/space."""

    def _batch(self) -> Pairs:
        """Return the batch of the current step; begins the next epoch when one ends."""
        while self._pairs is None or self.step >= self._first + len(self._batches):
            if self._pairs is not None:
                self._first += len(self._batches)
            self._open_epoch(self._epoch + 1)
        return self._pairs[self._batches[self.step - self._first]]

    def _open_epoch(self, number: int) -> None:
        o = self.options
        self._epoch = number
        self._pairs, self._batches = self.data.epoch(
            o.seed, number, o.batch_tokens, join=o.join, translate=o.translate
        )
        if not self._captures():
            return
        room = self.data.room(self._batches, o.batch_tokens)
        # A larger room means other shapes, so the step must be captured again.
        if self._room is None or room.pairs > self._room.pairs:
            if self._room is None and self.options.compile:
                self._compile()
            self._room, self._captured = room, CapturedStep(self._learn)

    def _compile(self) -> None:
        """Compile each layer, for captured steps: these always have the same shapes."""
        modules = chain.from_iterable(network.modules() for network in self.networks.values())
        stacks = (module for module in modules if isinstance(module, Stack))
        layers = chain.from_iterable(stack.layers for stack in stacks)
        compile_layers(layers, self.device, dynamic=False)

    def _captures(self) -> bool:
        """Return whether steps are captured: where attention within packed rows is one kernel."""
        dtype = torch.bfloat16 if self.options.precision == "bfloat16" else torch.float32
        configs: list[Any] = [network.config for network in self.networks.values()]
        sizes = {config.model_dim // config.heads for config in configs}
        return all(row_kernel(self.device, dtype, size) is not None for size in sizes)

    @contextmanager
    def _fast_math(self) -> Iterator[None]:
        lower = self.options.precision == "bfloat16"
        # Each weight is used once per step, so caching its bfloat16 copy gains nothing.
        autocast = torch.autocast(
            self.device.type, torch.bfloat16, enabled=lower, cache_enabled=False
        )
        with short_rows(self.device), autocast:
            yield

    def state(self) -> dict[str, Any]:
        """Return everything that `restore` needs to continue exactly.

        Batches and noise are functions of the seed, the epoch and the step.
        """
        return {
            "step": self.step,
            "sentences": self.sentences,
            "epoch": self._epoch,
            "first": self._first,
            **{name: trained_state(net, self.adapter) for name, net in self.networks.items()},
            "base": base_of(self.adapter),
            "average": self.average.weights,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def shards(self) -> None:
        """Return None: one process trains a space, so nothing is sharded."""
        return None

    def restore(self, state: dict[str, Any], shards: Path | None = None) -> None:
        """Restore `state`. Raises ValueError if `ema` was switched, or the base has changed."""
        self.average.check(state["average"])
        check_base(state, self.adapter)
        for name, network in self.networks.items():
            restore_trained(network, state[name], self.adapter)
        self.average.restore(state["average"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            rates = [group["lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(saved)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate  # the tensor on this device that a captured step reads
        self.step, self.sentences = state["step"], state["sentences"]
        # Captured again: the graph reads tensors that have just been replaced.
        self._first, self._captured = state["first"], CapturedStep(self._learn)
        if state["epoch"] >= 0:
            self._open_epoch(state["epoch"])

    def evaluate(self, folder: Path) -> dict[str, Any]:
        """Export the space, and score the exported one on the recipe's dev data."""
        space = load_space(str(self.export(folder)), device=str(self.device))
        if not self.dev:
            return {}
        quality = evaluate_space(space, self.dev, limit=self.options.eval_sentences)
        return {"eval": quality.means(), "by_language": asdict(quality)}

    def sample(self) -> dict[str, Any]:
        """Return nothing: a space is judged by its scores, not by samples."""
        return {}
