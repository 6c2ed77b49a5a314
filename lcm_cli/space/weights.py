"""Read a network's weights from a memory-mapped safetensors file."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from lcm_cli.errors import IntegrityError

Network = TypeVar("Network", bound=nn.Module)
Config = TypeVar("Config")


def load_weights(
    build: Callable[[Config], Network],
    config: Config,
    path: Path,
    device: torch.device,
    dtype: torch.dtype,
) -> Network:
    """Build a network without content and fill it from `path`, ready for inference.

    Tensors that already have `dtype` stay memory-mapped on the CPU. Tensors the network has no use
    for are not read. Raises IntegrityError for a damaged file, missing tensors or other shapes.
    """
    from safetensors import SafetensorError, safe_open

    with torch.device("meta"):
        network = build(config)
    wanted = network.state_dict()
    try:
        with safe_open(path, framework="pt") as file:
            _check_shapes(path, wanted, {k: file.get_slice(k).get_shape() for k in file.keys()})  # noqa: SIM118
            state = {key: file.get_tensor(key).to(device, dtype) for key in wanted}
    except SafetensorError as error:
        hint = "the file is damaged or cut short: get it again"
        raise IntegrityError(f"{path} is not a safetensors file: {error}", hint) from error
    network.load_state_dict(state, assign=True)
    return network.requires_grad_(False).eval()


def _check_shapes(path: Path, wanted: dict[str, torch.Tensor], found: dict[str, list[int]]) -> None:
    missing = [key for key in wanted if key not in found]
    if missing:
        message = f"{path} lacks {len(missing)} tensors, {missing[0]} the first"
        raise IntegrityError(message, "config.json and weights must be of the same space")
    for key, tensor in wanted.items():
        if list(tensor.shape) != found[key]:
            message = f"{path}: {key} is {found[key]}, config.json says {list(tensor.shape)}"
            raise IntegrityError(message, "config.json and weights must be of the same space")
