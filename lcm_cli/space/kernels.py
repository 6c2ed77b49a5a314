"""Faster matrix products for inference: packed float32 and dynamic int8 on the CPU, aligned logits.

Packing and int8 replace the linear layers of a loaded network with copies in another layout, one
layer at a time, and release the memory-mapped originals, so that resident memory stays about the
size of the weights. Packing pays most where products have few rows, as in decoding, because BLAS
would repack the weights at every call.
"""

import ctypes
import sys
from collections.abc import Callable, Mapping
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from lcm_cli.int8 import Int8Linear
from lcm_cli.space.decoder import TextDecoder

Network = TypeVar("Network", bound=nn.Module)
MakeLinear = Callable[[str, Tensor, Tensor | None], nn.Module]  # weight's name, weight, bias


class PackedLinear(nn.Module):
    """A linear map with its weight in oneDNN's layout for products of `rows` rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int | None = None) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (R, in) to (R, out)."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return y


class AlignedProjection(nn.Module):
    """A projection to the vocabulary whose rows of logits begin at multiples of 16 bytes.

    The products of GPUs in half precision have fast kernels for these alone.
    """

    ALIGNED = 8  # numbers of 2 bytes

    def __init__(self, weight_VM: Tensor) -> None:
        super().__init__()
        self.vocabulary = len(weight_VM)
        self.weight = nn.functional.pad(weight_VM, (0, 0, 0, -self.vocabulary % self.ALIGNED))

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (..., M) to (..., V)."""
        return nn.functional.linear(hidden, self.weight)[..., : self.vocabulary]


def align_vocabulary(network: Network) -> Network:
    """Align the logits of a decoder in half precision on a GPU; return any other unchanged."""
    if not isinstance(network, TextDecoder):
        return network
    weight = network.decoder_frontend.embed.weight
    if weight.is_cuda and weight.element_size() == 2 and network.output is None:
        network.output = aligned = AlignedProjection(weight.detach())
        # The embedding reads the same memory.
        weight.data = aligned.weight[: aligned.vocabulary]
    return network


def pack_linear(network: Network, rows: int | None = None) -> Network:
    """Pack the linear layers of a float32 CPU network; return any other network unchanged.

    `rows` is the expected number of rows of its products.
    """
    if not can_pack(network):
        return network
    return _replace(network, lambda name, weight, bias: PackedLinear(weight, bias, rows))


def quantize(network: Network, scales: Mapping[str, Tensor]) -> Network:
    """Convert the linear layers of a float32 CPU network to int8.

    `scales` maps the names of weights that were rounded to int8 before to their row scales. Raises
    UsageError if this build of torch has no int8 kernels.
    """
    return _replace(network, lambda name, weight, bias: Int8Linear(weight, bias, scales.get(name)))


def can_pack(network: nn.Module) -> bool:
    """Return whether `pack_linear` can pack the network."""
    weight = next(network.parameters())
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return False
    # Both operators exist for torch.compile and are undocumented: do without them if they vanish.
    ops = torch.ops.mkldnn
    names = ("_reorder_linear_weight", "_linear_pointwise")
    return torch.backends.mkldnn.is_available() and all(hasattr(ops, name) for name in names)


def _replace(network: Network, make: MakeLinear) -> Network:
    # By name: a list of the layers would keep all of them in memory until the last is replaced.
    names = [name for name, part in network.named_modules() if isinstance(part, nn.Linear)]
    for name in names:
        layer = cast(nn.Linear, network.get_submodule(name))
        place, _, own = name.rpartition(".")
        new = make(f"{name}.weight", layer.weight, layer.bias)
        setattr(network.get_submodule(place), own, new)
        page_out(layer.weight)
    # The output projection is tied to the embedding, which is read by rows and stays in memory.
    if isinstance(network, TextDecoder):
        weight = network.decoder_frontend.embed.weight
        network.output = make("decoder_frontend.embed.weight", weight, None)
    return network


def page_out(weight: Tensor) -> None:
    """Let the system drop a weight's pages from memory; its content does not change."""
    if sys.platform != "linux" or weight.device.type != "cpu":
        return
    page, advice = 4096, 21  # MADV_PAGEOUT
    # Only whole pages: those at the edges may also hold neighbouring weights.
    start = -(-weight.data_ptr() // page) * page
    size = (weight.data_ptr() + weight.nbytes - start) // page * page
    if size > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), advice)


def return_memory() -> None:
    """Give freed memory back to the system, which the allocator of glibc would keep."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(ctypes.c_size_t(0))
