"""Optimizers: Muon for matrices and AdamW for the rest.

Also the choice of the parameters to train, and the learning rate of spaces and speech encoders.
"""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from lcm_cli.errors import IntegrityError
from lcm_cli.training.parallel import map_whole
from lcm_cli.training.recipes.model import Training
from lcm_cli.training.recipes.space import SpaceTraining
from lcm_cli.training.recipes.speech import SpeechTraining

# Coefficients of Muon's quintic Newton-Schulz iteration (Jordan et al. 2024), chosen for a steep
# slope at 0: small singular values grow fast, and all end up near 1, not exactly at it.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(update: Tensor, steps: int = 5) -> Tensor:
    """Return about the nearest semi-orthogonal matrix to each of `update` (N, rows, columns).

    `update` may be bfloat16, the usual choice if the hardware supports it; on CPUs without such
    instructions float32 is up to ten times faster.
    """
    a, b, c = _NEWTON_SCHULZ
    tall = update.shape[1] > update.shape[2]
    # With at most as many rows as columns, the Gram matrix below is the smaller of the two.
    x = update.transpose(1, 2) if tall else update
    # The iteration needs singular values of at most 1, which the Frobenius norm ensures.
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz, for the weight matrices of hidden layers.

    The step is scaled by 0.2 sqrt(max(rows, columns)) to the usual size of AdamW's (Liu et al.
    2025), so that one learning rate suits both. Matrices of one shape are orthogonalised together.
    The learning rate may be a tensor on the device, as CUDA graphs need.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float | Tensor,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(p.shape, []).append(p)
            for shape, params in shapes.items():
                size = -group["lr"] * 0.2 * max(shape) ** 0.5

                def update(momenta: Tensor, size: float | Tensor = size) -> Tensor:
                    return orthogonalize(momenta.to(self.dtype)).to(momenta.dtype) * size

                updates = map_whole(update, self._momenta(params, group["momentum"]))
                weights: list[Tensor] = list(params)
                if group["weight_decay"]:
                    torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(weights, updates)

    def _momenta(self, params: list[nn.Parameter], momentum: float) -> list[Tensor]:
        """Move the momenta towards the gradients; return what to orthogonalise (Nesterov).

        The result takes the place of the gradients.
        """
        states = [self.state[p] for p in params]
        for p, state in zip(params, states, strict=True):
            if not state:
                state["momentum"] = torch.zeros_like(p)
        momenta: list[Tensor] = [state["momentum"] for state in states]
        grads = [p.grad for p in params if p.grad is not None]
        # One kernel for all: those of single matrices take less time than their launches.
        torch._foreach_lerp_(momenta, grads, 1 - momentum)
        torch._foreach_lerp_(grads, momenta, momentum)
        return grads


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze the parameters whose names match one of `patterns`, such as "frontend.*".

    A parameter shared by two modules has two names; either one freezes it. Raises IntegrityError if
    a pattern matches none, or if no parameter is left to train.
    """
    named = list(model.named_parameters(remove_duplicate=False))
    unmatched = []
    for pattern in patterns:
        found = [p for name, p in named if fnmatchcase(name, pattern)]
        for p in found:
            p.requires_grad_(False)
        unmatched += [] if found else [repr(pattern)]
    if unmatched:
        tops = sorted({name.split(".")[0] for name, _ in named})
        raise IntegrityError(
            f"train.freeze: no parameter matches {' or '.join(unmatched)}",
            f"modules: {', '.join(tops)}",
        )
    if not any(p.requires_grad for _, p in named):
        raise IntegrityError(f"train.freeze = {list(patterns)} leaves nothing to train")


def sizes(model: nn.Module) -> tuple[int, int]:
    """Return the numbers of parameters: all, and those trained."""
    found = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, _ in found), sum(size for size, trained in found if trained)


def trained_share(size: int, trained: int) -> str:
    """Return the words for the trained part of `size` parameters; "" if it is all of them."""
    return f" ({trained / 1e6:.1f} M of them trained)" if trained < size else ""


def split_parameters(
    modules: Iterable[nn.Module],
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the trained parameters, each once: matrices of linear layers, and all others."""
    linear = {id(m.weight) for net in modules for m in net.modules() if isinstance(m, nn.Linear)}
    unique = {id(p): p for net in modules for p in net.parameters() if p.requires_grad}
    matrices = [p for key, p in unique.items() if key in linear]
    return matrices, [p for key, p in unique.items() if key not in linear]


def learning_rate(step: int, steps: int, peak: float, warmup: int, decay: float) -> float:
    """Warm up linearly, hold, then fall linearly to 0 over the last fraction `decay` of steps."""
    if step < warmup:
        return peak * (step + 1) / warmup
    fall = max(1, int(steps * decay))
    return peak * min(1.0, (steps - step) / fall)


def make_optimizers(
    matrices: list[nn.Parameter],
    others: list[nn.Parameter],
    options: SpaceTraining | SpeechTraining,
) -> list[torch.optim.Optimizer]:
    """Return Muon for `matrices` and AdamW for `others`, or AdamW for all, as the recipe says.

    Only matrices have weight decay, decoupled from the gradient.
    """
    # A captured step reads the learning rate from the device, where `set_rate` changes it.
    device = (matrices + others)[0].device
    on_gpu = device.type == "cuda"
    rate = torch.zeros((), device=device) if on_gpu else 0.0
    decay = options.weight_decay
    groups: list[dict[str, Any]] = [{"params": others, "weight_decay": 0.0}]
    if options.optimizer == "adamw":
        groups.append({"params": matrices, "weight_decay": decay})
    # The second beta is that of Vaswani et al. 2017, section 5.3.
    adamw = torch.optim.AdamW(
        groups, lr=rate, betas=(0.9, 0.98), eps=1e-8, fused=on_gpu or None, capturable=on_gpu
    )
    if options.optimizer == "adamw" or not matrices:
        return [adamw]
    dtype = getattr(torch, options.precision)
    return [Muon(matrices, lr=rate, dtype=dtype, weight_decay=decay), adamw]


def average_decay(ema: float, step: int) -> float:
    """Return the decay of an average of weights: lower at first, to forget the initial ones."""
    return min(ema, (1 + step) / (10 + step))  # the warm-up of TensorFlow's moving averages


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all parameters, in place if it is a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def model_optimizers(model: nn.Module, options: Training) -> list[torch.optim.Optimizer]:
    """Return AdamW for all trainable parameters, or Muon for matrices and AdamW for the rest."""
    matrices, others = split_parameters([model])

    def adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            parameters,
            lr=0.0,
            betas=options.betas,
            eps=options.eps,
            weight_decay=options.weight_decay,
            fused=True,
        )

    # Freezing may leave only matrices, or none; an optimizer must have parameters.
    if options.optimizer == "adamw" or not matrices:
        return [adamw(matrices + others)]
    dtype = torch.bfloat16 if options.precision == "bfloat16" else torch.float32
    muon = Muon(matrices, lr=0.0, dtype=dtype, weight_decay=options.weight_decay)
    return [muon, adamw(others)] if others else [muon]
