"""Attention within packed rows by its definition, and how near a kernel must come to it."""

import torch
from torch import Tensor

from lcm_cli.space.transformer import Packed


def dense(qkv_T3Hd: Tensor, rows: Packed, causal: bool) -> Tensor:
    """Attention within rows, computed from their definition."""
    q, k, v = qkv_T3Hd.unbind(1)
    scores_HTT = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    seen_TT = rows.owner_T[:, None] == rows.owner_T
    seen_TT = seen_TT.tril() if causal else seen_TT
    weights_HTT = scores_HTT.masked_fill(~seen_TT, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights_HTT, v)


def near(found: Tensor, exact: Tensor) -> None:
    """Fail unless `found`, in half precision, has the numbers of `exact`.

    It is a mean of rounded numbers, itself rounded: errors are about one unit of rounding.
    """
    error = (found.double() - exact.double()).abs().max() / exact.abs().max().clamp(min=1)
    assert error <= 3 * torch.finfo(found.dtype).eps, float(error)
