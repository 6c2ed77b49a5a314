"""Low-rank adapters (LoRA, arXiv 2106.09685): small updates of a frozen network.

A linear map W of the base becomes W + (alpha / rank) B A. Only A and B are trained and stored, as
MODULE.lora_a.weight (K, C) and MODULE.lora_b.weight (R, K), in float32. Loading adds the product
to W, so that an adapted network is as fast as its base.

Shapes: R outputs, C inputs, K rank.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcm_cli.errors import IntegrityError
from lcm_cli.hub.locate import AdapterFiles
from lcm_cli.weights import AdaptedMatrix, Weight, map_file, read_weights, sampled

DOWN, UP = ".lora_a.weight", ".lora_b.weight"


class AdaptedLinear(nn.Module):
    """A frozen linear map with a trainable update, which is zero at first."""

    def __init__(
        self, base: nn.Linear, rank: int, scale: float, dropout: float, draw: torch.Generator
    ) -> None:
        super().__init__()
        self.base, self.scale, self.dropout = base, scale, dropout
        device = base.weight.device
        self.lora_a = nn.Linear(base.in_features, rank, bias=False, device=device)
        self.lora_b = nn.Linear(rank, base.out_features, bias=False, device=device)
        # B alone is zero: if A were, too, neither would get a gradient.
        nn.init.normal_(self.lora_a.weight, std=base.in_features**-0.5, generator=draw)
        nn.init.zeros_(self.lora_b.weight)

    @property
    def bias(self) -> Tensor | None:
        """The bias, which is not adapted."""
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to (..., R)."""
        update = self.lora_b(self.lora_a(F.dropout(x, self.dropout, self.training)))
        return self.base(x) + self.scale * update


def attach(
    networks: Iterable[nn.Module],
    modules: Sequence[str],
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    seed: int = 0,
) -> None:
    """Freeze networks, and adapt their linear maps that match one of the patterns `modules`.

    A pattern matches the name of a map or of its weight. Raises IntegrityError for a pattern that
    matches none, and for a rank above the smaller side of a map.
    """
    draw = torch.Generator().manual_seed(seed)
    places: dict[str, nn.Module] = {}
    for network in networks:
        network.requires_grad_(False)
        # Names do not collide: the stacks of a space's networks are `encoder` and `decoder`.
        # Not subclasses: a map with weight normalization, for example, stores no plain matrix.
        maps = [name for name, part in network.named_modules() if type(part) is nn.Linear]
        places |= dict.fromkeys(maps, network)
    for pattern in modules:
        if not any(_matches(name, pattern) for name in places):
            tops = ", ".join(sorted({f"{name.split('.')[0]}.*" for name in places}))
            message = f"adapter.modules: {pattern!r} matches no linear map"
            raise IntegrityError(message, f"patterns that match some: {tops}")
    for name, network in places.items():
        if not any(_matches(name, pattern) for pattern in modules):
            continue
        base = network.get_submodule(name)
        assert isinstance(base, nn.Linear)
        least = min(base.in_features, base.out_features)
        if rank > least:
            message = f"adapter.rank = {rank} is above {least}, the smaller side of {name}"
            raise IntegrityError(message, "lower the rank, or leave the map out of adapter.modules")
        network.set_submodule(name, AdaptedLinear(base, rank, alpha / rank, dropout, draw))


def _matches(name: str, pattern: str) -> bool:
    return fnmatch(name, pattern) or fnmatch(f"{name}.weight", pattern)


def adapter_state(network: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the adapters alone."""
    state = network.state_dict()
    return {name: tensor for name, tensor in state.items() if name.endswith((DOWN, UP))}


def load_adapter_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Restore the adapters from an `adapter_state`. Raises ValueError if they are others."""
    mine = {name: tensor.shape for name, tensor in adapter_state(network).items()}
    if mine != {name: tensor.shape for name, tensor in state.items()}:
        raise ValueError("the rank and the modules of an adapter cannot be changed within a run")
    network.load_state_dict(state, strict=False)


def fingerprint(files: Sequence[Path]) -> str:
    """Return the digest of a base's weights, as `sampled` reads them, and of its other files."""
    return _digest(files, _weights(files))


def _weights(files: Iterable[Path]) -> dict[str, Weight]:
    return read_weights(*(file for file in files if file.suffix == ".safetensors"))


def _digest(files: Sequence[Path], weights: Mapping[str, Weight]) -> str:
    digest = hashlib.sha256()
    for block in sampled(weights):
        digest.update(block)
    for file in files:
        if file.suffix != ".safetensors":
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def read_updates(adapter: AdapterFiles) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the update of each matrix, by its name: scaled B (R, K) and A (K, C).

    Raises IntegrityError for a damaged or empty file, and for tensors that are not pairs of the
    rank in config.json.
    """
    config, found = adapter.config, map_file(adapter.weights)
    names = {name.removesuffix(DOWN).removesuffix(UP) for name in found}
    updates = {}
    nothing = torch.empty(0, 0)
    # A missing tensor counts as an empty one, which has another rank; so does an empty file.
    for name in sorted(names) or [""]:
        down, up = found.get(name + DOWN, nothing), found.get(name + UP, nothing)
        if not down.ndim == up.ndim == 2 or not len(down) == up.shape[1] == config.rank:
            message = f"{adapter.weights}: {name} is not an adapter of rank {config.rank}"
            raise IntegrityError(message, "use config.json and weights of the same adapter")
        updates[f"{name}.weight"] = (up.float() * (config.alpha / config.rank), down.float())
    return updates


def check_base(adapter: AdapterFiles) -> None:
    """Raise IntegrityError unless the adapter was made for its base and fits the matrices there."""
    config, place = adapter.config, adapter.weights.parent
    weights = _weights(adapter.base)
    found = _digest(adapter.base, weights)
    if found != config.fingerprint:
        raise IntegrityError(
            f"{place} is an adapter of {config.base!r} with the weights {config.fingerprint}, "
            f"but its weights here are {found}",
            f"use the version of {config.base!r} that it was trained on, or train it again",
        )
    for name, (up, down) in read_updates(adapter).items():
        shape = (len(up), down.shape[1])
        if name not in weights or tuple(weights[name].shape) != shape:
            raise IntegrityError(f"{place}: {config.base!r} has no matrix {name} of shape {shape}")


def adapted(weights: dict[str, Weight], adapter: AdapterFiles | None) -> dict[str, Weight]:
    """Return weights of a base with the updates of an adapter, which are added where they are used.

    Without an adapter they are unchanged. The base must have been checked. Raises as `read_updates`
    does.
    """
    if adapter is None:
        return weights
    updates = read_updates(adapter)
    return {name: _adapted(weight, updates.get(name)) for name, weight in weights.items()}


def _adapted(weight: Weight, update: tuple[Tensor, Tensor] | None) -> Weight:
    if update is None:
        return weight
    assert not isinstance(weight, AdaptedMatrix)
    return AdaptedMatrix(weight, *update)
