"""The norm of a sum, as between the parts of a layer: on a GPU one Triton kernel, not several.

Shapes: N rows, M model dim.
"""

import torch
from torch import Tensor, nn

from lcm_cli.space.beam_attention import runs

WIDEST = 8192  # row of the kernel, which holds one in registers


def add_norm(norm: nn.Module, x_NM: Tensor, *more: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum of all tensors, from the first to the last, and its norm; no gradients."""
    fits = 1 <= len(more) <= 2 and x_NM.shape[1] <= WIDEST
    if fits and isinstance(norm, nn.LayerNorm) and runs(x_NM.device):
        return launch_add_norm(norm, x_NM, *more)
    for tensor_NM in more:
        x_NM = x_NM + tensor_NM
    return x_NM, norm(x_NM)


def launch_add_norm(norm: nn.LayerNorm, *parts: Tensor) -> tuple[Tensor, Tensor]:
    """Do as `add_norm`, for two or three tensors, in one kernel."""
    from lcm_cli.space import decoding_kernels

    x_NM, *more = (part.contiguous() for part in parts)
    sum_NM, y_NM = torch.empty_like(x_NM), torch.empty_like(x_NM)
    rows, width = x_NM.shape
    padded = 1 << (width - 1).bit_length()
    with torch.cuda.device_of(x_NM):  # Triton launches on the current device
        decoding_kernels.add_norm[(rows,)](
            *(x_NM, more[0], more[-1], norm.weight, norm.bias, sum_NM, y_NM, norm.eps),
            **{"M": width, "W": padded, "PARTS": len(parts)},
        )
    return sum_NM, y_NM
