"""Faster matrix products for inference on the CPU: packed float32, and dynamic int8.

Both replace the linear maps of a loaded network with copies in another layout, one at a time, and
let go of the memory-mapped originals: what is resident stays about the size of the weights.
Packing pays most where products have few rows, as in decoding, because BLAS would repack the
weights at every call.
"""

import ctypes
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from lcm_cli.errors import UsageError
from lcm_cli.space.decoder import TextDecoder

Network = TypeVar("Network", bound=nn.Module)
MakeLinear = Callable[[str, Tensor, Tensor | None], nn.Module]  # name and content of its weight


class PackedLinear(nn.Module):
    """A linear map whose weight lies in the layout that oneDNN computes with, given `rows`."""

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int | None = None) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (R, in) to (R, out)."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return y


class Int8Linear(nn.Module):
    """A linear map with int8 weights (one scale a row); inputs are quantised as they come.

    A weight that was rounded before loses nothing more if its `scales` (R,) are given.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, scales: Tensor | None = None) -> None:
        super().__init__()
        if scales is None:
            scales = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
        zeros = torch.zeros(len(weight), dtype=torch.long)
        with warnings.catch_warnings():  # from torch 2.13 on it is said to go some day
            warnings.simplefilter("ignore", UserWarning)
            quantized = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(quantized, bias)
        self.seven_bits = _overflows()

    def forward(self, x: Tensor) -> Tensor:
        """Map (R, in) to (R, out), float32."""
        y: Tensor = torch.ops.quantized.linear_dynamic(x, self.packed, self.seven_bits)
        return y


def _overflows() -> bool:
    """Tell whether sums of two products of 8 bits may overflow: on x86 without AVX512-VNNI.

    Inputs of 7 bits are safe there.
    """
    if torch.backends.quantized.engine not in ("x86", "fbgemm"):
        return False
    supported = getattr(torch.cpu, "_is_vnni_supported", None)  # not documented
    return supported is None or not supported()


def pack_linear(network: Network, rows: int | None = None) -> Network:
    """Pack the linear maps of a float32 network on the CPU; others are returned as they are.

    `rows` is how many its products are expected to have.
    """
    if not can_pack(network):
        return network
    return _replace(network, lambda name, weight, bias: PackedLinear(weight, bias, rows))


def quantize(network: Network, scales: Mapping[str, Tensor]) -> Network:
    """Turn the linear maps of a float32 network on the CPU into int8 ones.

    `scales`: those of weights that were rounded to int8 before, by their names. Raises UsageError
    where this build of torch has no int8 kernels.
    """
    if torch.backends.quantized.engine == "none":
        raise UsageError("this build of torch has no int8 kernels", "use --precision float32")
    return _replace(network, lambda name, weight, bias: Int8Linear(weight, bias, scales.get(name)))


def can_pack(network: nn.Module) -> bool:
    """Tell whether `pack_linear` would do anything."""
    weight = next(network.parameters())
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return False
    # Both operators serve torch.compile; they are not documented, so do without if they go.
    ops = torch.ops.mkldnn
    names = ("_reorder_linear_weight", "_linear_pointwise")
    return torch.backends.mkldnn.is_available() and all(hasattr(ops, name) for name in names)


def _replace(network: Network, make: MakeLinear) -> Network:
    # By name: a list of the layers would hold all of them until the last is replaced.
    names = [name for name, part in network.named_modules() if isinstance(part, nn.Linear)]
    for name in names:
        layer = cast(nn.Linear, network.get_submodule(name))
        place, _, own = name.rpartition(".")
        new = make(f"{name}.weight", layer.weight, layer.bias)
        setattr(network.get_submodule(place), own, new)
        page_out(layer.weight)
    if isinstance(network, TextDecoder):
        weight = network.decoder_frontend.embed.weight
        network.output = make("decoder_frontend.embed.weight", weight, None)
    return network


def page_out(weight: Tensor) -> None:
    """Tell the system that a weight's pages may leave memory; its content stays what it is."""
    if sys.platform != "linux":
        return
    page, advice = 4096, 21  # MADV_PAGEOUT
    start = -(-weight.data_ptr() // page) * page
    size = (weight.data_ptr() + weight.nbytes - start) // page * page
    if size > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), advice)
