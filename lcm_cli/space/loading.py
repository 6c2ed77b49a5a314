"""Loading a network's weights from a memory-mapped safetensors file."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from lcm_cli.errors import IntegrityError
from lcm_cli.hub.locate import AdapterFiles
from lcm_cli.space.adapters import adapted
from lcm_cli.weights import Int8Matrix, Network, Weight, read_weights, without_weights


class Layered(Protocol):
    """The config of a network with layers."""

    @property
    def layers(self) -> int:
        """The number of layers."""
        ...


Config = TypeVar("Config", bound=Layered)


def load_weights(
    build: Callable[[Config], Network],
    config: Config,
    path: Path,
    device: torch.device,
    dtype: torch.dtype,
    adapter: AdapterFiles | None = None,
) -> Network:
    """Build a network and load its weights from `path`, ready for inference.

    The updates of an `adapter`, which `check_base` must have accepted, are added. On the CPU, other
    tensors that already have `dtype` stay memory-mapped. Tensors that the network does not use are
    not read. Raises IntegrityError for a damaged file, missing tensors or wrong shapes.
    """
    network, weights = open_weights(build, config, path, adapter)
    state = {key: weights[key].to(device, dtype) for key in network.state_dict()}
    network.load_state_dict(state, assign=True)
    return network.requires_grad_(False).eval()


def open_weights(
    build: Callable[[Config], Network],
    config: Config,
    path: Path,
    adapter: AdapterFiles | None = None,
) -> tuple[Network, dict[str, Weight]]:
    """Return a network without content, and the weights that fit it, not yet read.

    Raises as `load_weights` does.
    """
    weights = adapted(read_weights(path), adapter)
    network = without_weights(lambda: build(config), config.layers, weights, path)
    _check_shapes(path, network.state_dict(), weights)
    return network, weights


def stored_scales(path: Path, adapter: AdapterFiles | None = None) -> dict[str, Tensor]:
    """Return the row scales (R,) float32 of each matrix stored as int8 and not adapted, by name."""
    found = adapted(read_weights(path), adapter).items()
    return {name: weight.scales.float() for name, weight in found if isinstance(weight, Int8Matrix)}


def _check_shapes(path: Path, wanted: Mapping[str, Tensor], found: Mapping[str, Weight]) -> None:
    missing = [key for key in wanted if key not in found]
    if missing:
        more = f" and {len(missing) - 1} more tensors" if len(missing) > 1 else ""
        message = f"{path} lacks {missing[0]}{more}"
        raise IntegrityError(message, "use config.json and weights of the same space")
    for key, tensor in wanted.items():
        if tensor.shape != found[key].shape:
            message = (
                f"{path}: {key} has shape {list(found[key].shape)}, "
                f"config.json requires {list(tensor.shape)}"
            )
            raise IntegrityError(message, "use config.json and weights of the same space")
