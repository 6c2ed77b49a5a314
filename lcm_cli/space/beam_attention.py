"""Attention of a beam search's newest tokens on a GPU, in one Triton kernel.

It reads the keys and values of the positions so far, and of these only what some beam descends
from; a general kernel under a mask reads the whole buffer. Shapes as in `captured`.
"""

from functools import cache

import torch
from torch import Tensor

from lcm_cli.space.row_attention import AVAILABLE, SIZES

# Keys at a time, warps and stages. A program has few keys, so many programs take the place of
# stages: loads wait while those of others arrive.
LAUNCH = {"K": 64, "num_warps": 4, "num_stages": 1}
FEWEST_QUERIES = 16  # of a product of matrices
MOST_BEAMS = 32  # more would need more registers than there are


_BROKEN = set[torch.device]()  # where the kernels were found not to work


def runs(device: torch.device) -> bool:
    """Return whether kernels of decoding steps run on `device`."""
    return AVAILABLE and device.type == "cuda" and device not in _BROKEN and _is_modern(device)


def give_up(device: torch.device) -> None:
    """Do without these kernels on `device` from now on."""
    _BROKEN.add(device)


@cache  # it is asked many times in a step
def _is_modern(device: torch.device) -> bool:
    return torch.cuda.get_device_properties(device).major >= 8


def suits(kv: Tensor) -> bool:
    """Return whether there is a kernel for a buffer of keys and values, (..., B, H, d)."""
    half = kv.dtype in (torch.float16, torch.bfloat16)
    return half and kv.shape[-1] in SIZES and kv.shape[-3] <= MOST_BEAMS and runs(kv.device)


def attend_beams(
    q_NHd: Tensor,
    k_NHd: Tensor,
    v_NHd: Tensor,
    kv_2SPBHd: Tensor,
    slots_SBP: Tensor,
    position_1: Tensor,
) -> Tensor:
    """Write the new keys and values at `position_1` of a layer's buffer; return (N, M).

    Beam b of sentence s attends to what it has at this position, and to slot `slots_SBP[s, b, p]`
    of each earlier position p. Buffer and slots are contiguous.
    """
    from lcm_cli.space import decoding_kernels

    _, sentences, room, beams, heads, size = kv_2SPBHd.shape
    q, k, v = (t.flatten(1) for t in (q_NHd, k_NHd, v_NHd))  # views of what is joined
    y_NM = q.new_empty(q.shape)
    queries = max(FEWEST_QUERIES, 1 << (beams - 1).bit_length())
    with torch.cuda.device_of(q):  # Triton launches on the current device
        decoding_kernels.attend_beams[(sentences * heads,)](
            *(q, k, v, kv_2SPBHd, slots_SBP, position_1, y_NM),
            *(q.stride(0), k.stride(0), v.stride(0), room),
            **{"B": beams, "H": heads, "D": size, "Q": queries},
            **LAUNCH,
        )
    return y_NM
