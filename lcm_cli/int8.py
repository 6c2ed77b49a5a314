"""Matrix products in int8 on the CPU: int8 weights, inputs quantized at each call.

torch has two implementations, and neither is best everywhere. fbgemm (qnnpack on ARM) is the faster
one without VNNI, because oneDNN lays out the weights again at each call there, but it depends on
torch's quantized dtypes, which are deprecated from torch 2.13 on. Both use the same weights and the
same steps for the inputs, so that their products differ by rounding alone.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lcm_cli.errors import UsageError

Product = Callable[[Tensor], Tensor]  # (..., in) to (..., out), float32


class Int8Linear(nn.Module):
    """A linear map with int8 weights, one scale per row; inputs are quantized at each call.

    Weights that were rounded to int8 before are kept exactly if their `scales` (R,) are given.
    Raises UsageError if this build of torch has no int8 kernels.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, scales: Tensor | None = None) -> None:
        super().__init__()
        if scales is None:  # symmetric: the largest weight of a row becomes 127
            scales = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
        self.product = _choose()(weight, scales, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out), float32."""
        return self.product(x)


def by_dtype(weight: Tensor, scales: Tensor, bias: Tensor | None) -> Product:
    """Return the product of torch's quantized dtypes: fbgemm on x86, qnnpack on ARM."""
    zeros = torch.zeros(len(weight), dtype=torch.long)
    with warnings.catch_warnings():  # deprecated from torch 2.13 on
        warnings.simplefilter("ignore", UserWarning)
        quantized = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(quantized, bias)
    narrow = torch.backends.quantized.engine in ("x86", "fbgemm") and not has_vnni()
    linear = unchecked(torch.ops.quantized.linear_dynamic)

    def product(x: Tensor) -> Tensor:
        y: Tensor = linear(x, packed, narrow)
        return y

    return product


def by_onednn(weight: Tensor, scales: Tensor, bias: Tensor | None) -> Product:
    """Return oneDNN's product, which needs none of torch's quantized dtypes."""
    numbers = (weight / scales[:, None]).round_().clamp_(-128, 127).to(torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(numbers, None)
    zeros = torch.zeros(len(weight), dtype=torch.long)
    # Without VNNI, sums of two products of 8 and 8 bits may overflow 16 bits.
    top = 255 if has_vnni() else 127

    def product(x: Tensor) -> Tensor:
        low, high = (bound.item() for bound in torch.aminmax(x))
        low, high = min(low, 0.0), max(high, 0.0)
        step = max((high - low) / top, 1e-12)
        zero = round(-low / step)
        # Truncation of x + 1/2 rounds, and in a single pass over the inputs.
        shifted = torch.add(torch.tensor(zero + 0.5), x, alpha=1 / step)
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            shifted.clamp_(0, top).to(torch.uint8), step, zero,
            packed, scales, zeros, bias, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return y

    return product


def unchecked(operator: Any) -> Any:
    """Return an operator on packed weights without the check that torch makes in Python.

    The check looks for weights that torch.compile traces, which these never are. It takes a quarter
    of the time of a small product.
    """
    return getattr(operator, "_op", operator)


def has_dtypes() -> bool:
    """Return whether this torch has quantized dtypes with kernels."""
    names = (hasattr(torch, "qint8"), hasattr(torch, "quantize_per_channel"))
    if not all(names) or not hasattr(torch.ops.quantized, "linear_dynamic"):
        return False
    return bool(torch.backends.quantized.engine != "none")


def has_onednn() -> bool:
    """Return whether this torch has oneDNN's int8 product."""
    # Undocumented: made for torch.compile.
    names = ("qlinear_prepack", "qlinear_pointwise")
    built = torch.backends.mkldnn.is_available()
    return built and all(hasattr(torch.ops.onednn, name) for name in names)


def has_vnni() -> bool:
    """Return whether the processor is an x86 with AVX512-VNNI."""
    supported = getattr(torch.cpu, "_is_vnni_supported", None)  # undocumented
    return supported is not None and bool(supported())


def _choose() -> Callable[[Tensor, Tensor, Tensor | None], Product]:
    if has_onednn() and (has_vnni() or not has_dtypes()):
        return by_onednn
    if has_dtypes():
        return by_dtype
    raise UsageError("this build of torch has no int8 kernels", "use --precision float32")
