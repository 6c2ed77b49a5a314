"""Train or finetune a concept model.

A step takes one batch of the data, cut into micro-batches. The random numbers of each (noise, noise
levels, dropout) come from a generator seeded with (seed, step, micro-batch): a resumed run
continues exactly without any saved generator, and several processes compute what one would.

Shapes: B documents, S concepts, D concept dim, N targets.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from lcm_cli.errors import LcmError
from lcm_cli.evaluation.next_concept import next_concept_metrics, scored
from lcm_cli.hub.layouts import ADAPTER
from lcm_cli.hub.locate import AdapterConfig
from lcm_cli.models import checkpoint
from lcm_cli.models.interface import Batch, ConceptModel, Loss
from lcm_cli.models.layers import stacks
from lcm_cli.models.sonar_llm import SonarLLM
from lcm_cli.training.adapting import base_of, check_base, restore_trained, trained_state
from lcm_cli.training.compiling import compile_layers
from lcm_cli.training.estimate import flops_per_concept, matrix_weights, peak_flops
from lcm_cli.training.optim import (
    average_decay,
    freeze,
    model_optimizers,
    sizes,
    trained_share,
)
from lcm_cli.training.parallel import (
    MicroBatches,
    Share,
    World,
    distribute,
    gathered,
    gradient_norm,
    gradient_sync,
    load_sharded,
)
from lcm_cli.training.recipes.model import Training
from lcm_cli.training.samples import Sampler
from lcm_cli.training.schedules import rate
from lcm_cli.training.states import disk_errors

MODEL = "model"
EXPLODED = 20.0  # a loss of this many times the usual one counts as exploded
SETTLING = 100  # steps before the usual loss is known
MOST_SKIPPED = 20  # batches in a row
BUCKETS = 10  # of noise levels

# The loss to minimise; distillation replaces the model's own.
Objective = Callable[[ConceptModel, Batch], Loss]


class TrainingData(Protocol):
    """Batches of documents: a function of their number, so that the step determines the batch."""

    @property
    def summary(self) -> str:
        """The size of the data and what was left out, in one line."""

    def batch(self, number: int) -> Batch:
        """Return the batch of a step."""

    def micro_batches(self, number: int, share: Share) -> MicroBatches:
        """Return one process's share of the batch of a step."""

    def validation(self, limit: int) -> list[Batch]:
        """Return at most `limit` held-out documents."""


def own_loss(model: ConceptModel, batch: Batch) -> Loss:
    """Return the model's own training loss, with random numbers from torch's generators."""
    return model.loss(batch)


class ModelTrainer:
    """Model, optimizers and data of one run; `step` counts the batches done.

    With `adapter`, which describes the adapters of the model, states and checkpoints hold these
    alone.
    """

    unit = "concepts"

    def __init__(
        self,
        model: ConceptModel,
        data: TrainingData,
        options: Training,
        *,
        objective: Objective = own_loss,
        sampler: Sampler | None = None,
        world: World | None = None,
        adapter: AdapterConfig | None = None,
    ) -> None:
        self.model, self.data, self.options, self.adapter = model, data, options, adapter
        self.sampler, self.world = sampler, world or World()
        self.step = self.concepts = self.skipped = 0
        self.steps, self.save_every = options.steps, options.save_every
        self.eval_every, self.sample_every = options.eval_every, options.sample_every
        self.keep, self.patience = options.keep, options.patience
        self.device = model.device
        # Before `distribute`: DDP expects a gradient of every parameter that requires one.
        freeze(model, options.freeze)
        speed_up(model, options)
        model.train()
        self._weights = matrix_weights(model)
        self.loss_module = distribute(model, objective, options, self.world)
        self.sharded = options.parallel == "fsdp" and self.world.size > 1
        self.names = [name for name, p in model.named_parameters() if p.requires_grad]
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizers = model_optimizers(model, options)
        self.scaler = torch.amp.grad_scaler.GradScaler(
            self.device.type, enabled=options.precision == "float16"
        )
        self.average = [p.detach().clone() for p in self.parameters] if options.ema else []
        self.peak_flops = peak_flops(self.device, options.precision)
        self._usual = 0.0  # moving average of the loss
        self._settled = self._in_a_row = 0
        self._held_out: list[Batch] | None = None

    @property
    def summary(self) -> str:
        """Model and data, in one line."""
        total, learned = sizes(self.model)
        shape = f"{self.model.config.architecture}, {total / 1e6:.1f} M parameters"
        return f"{shape}{trained_share(total, learned)}; {self.data.summary}"

    def train_step(self) -> dict[str, float]:
        """Do one optimizer step; return its metrics: mean loss, number of concepts and others.

        Raises LcmError, naming the batch, if the loss is not finite or explodes, unless the recipe
        says to skip such batches.
        """
        o, share = self.options, self.world.share(self.options.accumulate)
        batches = self.data.micro_batches(self.step, share)
        concepts = max(int(batches.lengths_B.sum()), 1)
        total, weights, levels = 0.0, 0.0, _Levels()
        for number, batch in zip(share.numbers, batches.own, strict=True):
            seed_everything(o.seed, self.step, number)
            with gradient_sync(self.loss_module, last=number == share.numbers[-1]):
                with self.autocast():
                    loss: Loss = self.loss_module(batch.to(self.device))
                value, weight = loss.unscaled
                # The sum of the targets' weights is known only after the last micro-batch. The
                # number of concepts is close to it; `_clip` corrects the difference.
                self.scaler.scale(value / concepts).backward()
            total, weights = total + float(value.detach()), weights + weight
            levels.add(loss, self.model)
        total, weights = self._gather(total, weights, levels)
        mean, learning_rate = total / (weights or 1.0), rate(self.step, o)
        # Divide by the weights instead, and undo the averaging of gradients over processes.
        norm = self._clip(concepts / (weights or 1.0) * self.world.size)
        if self._accept(mean, norm, batches):
            self._update(learning_rate)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        metrics = {"loss": mean, "lr": learning_rate, "grad_norm": norm, **levels.means()}
        finite = {key: value for key, value in metrics.items() if math.isfinite(value)}
        return finite | self._sizes(batches.lengths_B)

    def _gather(self, total: float, weights: float, levels: "_Levels") -> tuple[float, float]:
        """Sum losses and weights over all processes."""
        found = self.world.sum([total, weights, *levels.sums, *levels.counts])
        levels.sums, levels.counts = found[2 : 2 + BUCKETS], [int(n) for n in found[2 + BUCKETS :]]
        return found[0], found[1]

    def _clip(self, factor: float) -> float:
        """Multiply the gradient by `factor` and clip it; return its norm before clipping."""
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)  # the norm to clip is that of the true gradients
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        # The norm is linear in the factor, so the gradients need not be multiplied first.
        norm = factor * gradient_norm(gradients)
        if self.options.clip and norm > self.options.clip:
            factor *= self.options.clip / norm
        # One pass over all gradients for both, or none.
        if gradients and factor != 1:
            torch._foreach_mul_(gradients, factor)
        return norm

    def _update(self, learning_rate: float) -> None:
        for optimizer in self.optimizers:
            # Each optimizer of a concept model has one group of parameters.
            optimizer.param_groups[0]["lr"] = learning_rate
            self.scaler.step(optimizer)  # does nothing if float16 gradients overflowed
        self.scaler.update()
        if self.average:
            decay = average_decay(self.options.ema, self.step)
            with torch.no_grad():
                torch._foreach_lerp_(self.average, list[Tensor](self.parameters), 1 - decay)

    def _accept(self, loss: float, norm: float, batches: MicroBatches) -> bool:
        """Return whether to learn from a batch; raise LcmError if training has diverged."""
        exploded = self._settled >= SETTLING and loss > EXPLODED * self._usual
        # In float16 an infinite norm is normal: the scaler skips the step and lowers its scale.
        finite = math.isfinite(loss) and (math.isfinite(norm) or self.scaler.is_enabled())
        if finite and not exploded:
            # A plain mean of the first 50 losses, then an exponential moving average.
            decay = min(self._settled / (self._settled + 1), 0.98)
            self._usual = decay * self._usual + (1 - decay) * loss
            self._settled, self._in_a_row = self._settled + 1, 0
            return True
        self.skipped, self._in_a_row = self.skipped + 1, self._in_a_row + 1
        if self.options.on_nan == "skip" and self._in_a_row <= MOST_SKIPPED:
            return False
        raise self._diverged(loss, norm, batches)

    def _diverged(self, loss: float, norm: float, batches: MicroBatches) -> LcmError:
        rows, concepts = len(batches.lengths_B), int(batches.lengths_B.sum())
        finite = all(bool(torch.isfinite(part.concepts_BSD).all()) for part in batches.own)
        cause = ", not all of them finite" if self.world.any(not finite) else ""
        usual = f" (usually {self._usual:.4g})" if math.isfinite(loss) else ""
        return LcmError(
            f"the loss is {loss:.4g}{usual}, the gradient's norm {norm:.4g} at step {self.step}, "
            f"batch {self.step} ({rows} documents, {concepts} concepts{cause}); "
            "the last saved state is kept",
            "continue with --resume and a lower train.learning_rate, "
            'or skip such batches: --set train.on_nan="skip"',
        )

    def _sizes(self, lengths_B: Tensor) -> dict[str, float]:
        concepts = int(lengths_B.sum())
        self.concepts += concepts
        length = float(lengths_B.float().mean())
        flops = concepts * flops_per_concept(self.model.config, self._weights, length)
        return {"concepts": concepts, "flops": flops, "skipped": float(self.skipped)}

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Compute in the recipe's precision."""
        lower = self.options.precision != "float32"
        dtype = getattr(torch, self.options.precision) if lower else None
        with torch.autocast(self.device.type, dtype, enabled=lower):
            yield

    def state(self) -> dict[str, Any]:
        """Return everything that `restore` needs to continue exactly, except for `shards`."""
        state = {
            "step": self.step,
            "concepts": self.concepts,
            "skipped": (self.skipped, self._in_a_row),
            "usual": (self._usual, self._settled),
            "scaler": self.scaler.state_dict(),
        }
        return state if self.sharded else state | self._tensors()

    def shards(self) -> dict[str, Any] | None:
        """Return the tensors that are sharded over processes; None if each has them all."""
        if not self.sharded:
            return None
        model, optimizers = get_state_dict(self.loss_module, self.optimizers)
        average = dict(zip(self.names, self.average, strict=False))
        return {"model": model, "optimizers": optimizers, "average": average}

    def _tensors(self) -> dict[str, Any]:
        return {
            "model": trained_state(self.model, self.adapter),
            "base": base_of(self.adapter),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "average": self.average,
        }

    def restore(self, state: dict[str, Any], shards: Path | None = None) -> None:
        """Restore `state`; `shards` is the folder of sharded tensors.

        Raises ValueError if the run was distributed in another way, `ema` was switched, or the base
        of its adapters has changed.
        """
        if self.sharded != (shards is not None):
            raise ValueError("a run with fsdp must resume with fsdp, in two processes or more")
        if shards is not None:
            self._restore_shards(shards)
        else:
            self._restore_tensors(state)
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.concepts = state["step"], state["concepts"]
        self.skipped, self._in_a_row = state["skipped"]
        self._usual, self._settled = state["usual"]

    def _restore_tensors(self, state: dict[str, Any]) -> None:
        check_base(state, self.adapter)
        if not self.adapter:
            checkpoint.check_state(self.model, state["model"], "its state")
        restore_trained(self.model, state["model"], self.adapter)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        if bool(self.average) != bool(state["average"]):
            raise ValueError("train.ema cannot be switched on or off within a run")
        for mine, saved in zip(self.average, state["average"], strict=True):
            mine.copy_(saved)

    def _restore_shards(self, shards: Path) -> None:
        state = self.shards()
        assert state is not None
        load_sharded(state, shards)
        set_state_dict(
            self.loss_module,
            self.optimizers,
            model_state_dict=state["model"],
            optim_state_dict=state["optimizers"],
        )

    def export(self, folder: Path) -> Path:
        """Write the model or its adapters, averaged if the recipe says so, to `folder`/model."""
        path = folder / MODEL
        file = path / (ADAPTER if self.adapter else checkpoint.WEIGHTS)
        with self.averaged() as model, disk_errors(file):
            if self.world.leads and self.adapter:
                checkpoint.save_adapter(model, self.adapter, path, force=True)
            elif self.world.leads:
                checkpoint.save(model, path, force=True)
        return path

    @contextmanager
    def averaged(self) -> Iterator[ConceptModel]:
        """Yield the whole model in evaluation mode, with averaged weights if there are any.

        For as long, the objective's own parameters are averages, too.
        """
        if self.sharded:
            with self._others_averaged():
                yield self._gathered()
            return
        trained = [p.data for p in self.parameters]
        # Without averages (strict=False), the weights stay.
        for p, average in zip(self.parameters, self.average, strict=False):
            p.data = average
        self.model.eval()
        try:
            yield self.model
        finally:
            self.model.train()
            for p, weights in zip(self.parameters, trained, strict=True):
                p.data = weights

    def _gathered(self) -> ConceptModel:
        """Return a whole copy of a sharded model, averaged: all processes take part."""
        averages = dict(zip(self.names, self.average, strict=False))
        state = {
            name: gathered(averages.get(name, tensor)).detach()
            for name, tensor in self.model.state_dict().items()
        }
        model = checkpoint.build(self.model.config).to(self.device)
        model.load_state_dict(state)
        assert isinstance(model, ConceptModel)
        if isinstance(model, SonarLLM) and isinstance(self.model, SonarLLM):
            model.token_loss = self.model.token_loss
        return model.eval()

    @contextmanager
    def _others_averaged(self) -> Iterator[None]:
        """Average the trained parameters outside the model, such as maps of hidden states."""
        own = {id(p) for p in self.model.parameters()}
        pairs = zip(self.parameters, self.average, strict=False)
        others = [(p, average, p.detach().clone()) for p, average in pairs if id(p) not in own]
        # In place: fsdp keeps the storage of its shards, so another tensor would go unnoticed.
        with torch.no_grad():
            for p, average, _ in others:
                p.copy_(average)
            try:
                yield
            finally:
                for p, _, trained in others:
                    p.copy_(trained)

    def evaluate(self, folder: Path) -> dict[str, Any]:
        """Score held-out documents: the loss, also by noise level, and the paper's metrics."""
        if self._held_out is None:
            self._held_out = self.data.validation(self.options.eval_documents)
        if not self._held_out:
            return {}
        with self.averaged() as model:
            scores = self._held_out_loss(model, self._held_out)
            roundtrip = None
            if self.sampler is not None:
                sentences = [batch.sentences()[0] for batch in self._held_out]
                total = sum(int(scored(batch).sum()) for batch in sentences)
                roundtrip = self.sampler.reconstruction(total)
            metrics = next_concept_metrics(
                model, self._held_out, seed=self.options.seed, reconstruct=roundtrip
            )
            found = scores | metrics.means() | self._mutual_information(model, self._held_out)
        return {"eval": found}

    def _mutual_information(self, model: ConceptModel, batches: list[Batch]) -> dict[str, float]:
        """Return MI if a judge was loaded: in the leading process, if the recipe names one."""
        if self.sampler is None or self.sampler.lm is None:
            return {}
        score = self.sampler.mutual_information(model, batches, self.options.seed)
        return {"mi": score} if math.isfinite(score) else {}

    @torch.no_grad()
    def _held_out_loss(self, model: ConceptModel, batches: list[Batch]) -> dict[str, float]:
        total, targets, levels = 0.0, 0, _Levels()
        for number, batch in enumerate(batches):
            seed_everything(self.options.seed, 0, number)
            with self.autocast():
                loss = model.loss(batch.to(self.device))
            total, targets = total + float(loss.errors_N.sum()), targets + loss.targets
            levels.add(loss, model)
        return {"loss": total / max(targets, 1), **levels.means()}

    def sample(self) -> dict[str, Any]:
        """Return a continuation of a held-out document by the model, as text."""
        if self.sampler is None or not self.sample_every:
            return {}
        if self._held_out is None:
            self._held_out = self.data.validation(self.options.eval_documents)
        with self.averaged() as model:
            text = self.sampler.sample(model, self._held_out, self.step)
        return {"sample": text} if text else {}


class _Levels:
    """The mean loss by noise level: loss_0 is that of the lowest tenth of the timesteps."""

    def __init__(self) -> None:
        self.sums, self.counts = [0.0] * BUCKETS, [0] * BUCKETS

    def add(self, loss: Loss, model: ConceptModel) -> None:
        if loss.timesteps_N is None or not loss.targets:
            return
        steps = model.config.schedule.steps  # type: ignore[union-attr]
        for number, (sum_, count) in enumerate(loss.buckets(steps, BUCKETS)):
            self.sums[number] += sum_
            self.counts[number] += count

    def means(self) -> dict[str, float]:
        return {
            f"loss_{number}": total / count
            for number, (total, count) in enumerate(zip(self.sums, self.counts, strict=True))
            if count
        }


def seed_everything(*numbers: int) -> None:
    """Seed torch's generators with a digest of `numbers`."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) % 2**63
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        # torch.manual_seed would also format the stack for each device that might still appear,
        # which takes longer than a small step.
        torch.default_generator.manual_seed(seed)


def speed_up(model: nn.Module, options: Training) -> None:
    """Turn on activation checkpointing and compilation for each layer, as the recipe says."""
    layers = list(chain.from_iterable(stacks(model)))
    if options.checkpointing:
        for layer in layers:
            layer.forward = _Recomputed(layer.forward)
    if options.compile:
        compile_layers(layers, next(model.parameters()).device)


class _Recomputed:
    """The forward pass of a layer whose activations are recomputed in the backward pass."""

    def __init__(self, forward: Callable[..., Tensor]) -> None:
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        from torch.utils.checkpoint import checkpoint as recompute

        return recompute(self.forward, *args, use_reentrant=False, **kwargs)
