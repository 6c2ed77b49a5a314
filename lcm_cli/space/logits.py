"""The logits of many rows: the softmax's denominator and the largest values, in few passes.

Shapes: N rows, V vocabulary, G groups of columns, C columns wanted.
"""

import torch
from torch import Tensor

from lcm_cli.space.beam_attention import runs

GROUP = 64

# How kernels are launched: that of totals with lanes that go through a row, and numbers of each at
# a time; that of the maxima with groups of a program.
TOTAL = {"W": 512, "E": 8, "num_warps": 8}
MAXIMA = {"W": 64, "num_warps": 8}
LARGEST = {"num_warps": 8}
MOST_COLUMNS, MOST_GROUPS = 64, 8192  # of the kernel of the largest


def log_total(logits_NV: Tensor) -> Tensor:
    """Return the logarithm of the softmax's denominator, (N, 1) float32; no gradients.

    It is not finite where a logit is not a number or infinite, or where all are -inf.
    """
    if _has_kernels(logits_NV):
        return launch_total(logits_NV)
    # A few rows at a time, so that the exponentials stay in cache: 8 MB on the CPU, 32 on a GPU.
    size = max(1, (1 << (23 if logits_NV.is_cuda else 21)) // logits_NV.shape[1])
    most, totals = [], []
    for part_nV in logits_NV.split(size):
        most.append(part_nV.amax(dim=1, keepdim=True).float())
        totals.append((part_nV - most[-1]).exp_().sum(dim=1, keepdim=True))
    return torch.cat(totals).log_().add_(torch.cat(most))


def _has_kernels(logits_NV: Tensor) -> bool:
    return runs(logits_NV.device) and logits_NV.stride(1) == 1


def launch_total(logits_NV: Tensor) -> Tensor:
    """Do as `log_total`, in one kernel that reads the logits once. Their rows may lie apart."""
    from lcm_cli.space import decoding_kernels

    total_N1 = logits_NV.new_empty(len(logits_NV), 1, dtype=torch.float32)
    vocabulary, stride = logits_NV.shape[1], logits_NV.stride(0)
    with torch.cuda.device_of(logits_NV):  # Triton launches on the current device
        decoding_kernels.log_total[(len(logits_NV),)](
            logits_NV, total_N1, stride, vocabulary, **TOTAL
        )
    return total_N1


def largest(logits_NV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest values of each row, largest first, and their columns.

    The largest lie in the groups of columns with the largest maxima: one fast pass finds these,
    and only they are sorted.
    """
    group, groups = GROUP, logits_NV.shape[1] // GROUP
    # With fewer groups, more than a quarter of the columns would be sorted anyway.
    if groups < 4 * count:
        top = logits_NV.topk(min(count, logits_NV.shape[1]), dim=1)
        return top.values, top.indices
    if count <= MOST_COLUMNS and groups < MOST_GROUPS and _has_kernels(logits_NV):
        return launch_largest(logits_NV, count)
    parts_NGg = logits_NV[:, : groups * group].unflatten(1, (groups, group))
    best_NC = parts_NGg.amax(dim=2).topk(count, dim=1, sorted=False).indices
    values = parts_NGg.gather(1, best_NC[..., None].expand(-1, -1, group)).flatten(1)
    rest = torch.arange(groups * group, logits_NV.shape[1], device=logits_NV.device)
    within = torch.arange(group, device=logits_NV.device)
    columns = (best_NC[..., None] * group + within).flatten(1)
    columns = torch.cat([columns, rest.expand(len(columns), -1)], dim=1)
    top = torch.cat([values, logits_NV[:, groups * group :]], dim=1).topk(count, dim=1)
    return top.values, columns.gather(1, top.indices)


def launch_largest(logits_NV: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Do as `largest`, in two kernels. Of equal values, those of the first columns are taken."""
    from lcm_cli.space import decoding_kernels

    rows, vocabulary = logits_NV.shape
    groups = -(-vocabulary // GROUP)
    best_NG = logits_NV.new_empty(rows, groups)
    values_NC = logits_NV.new_empty(rows, count)
    columns_NC = logits_NV.new_empty(rows, count, dtype=torch.long)
    shape = logits_NV.stride(0), vocabulary, groups
    padded = {"P": 1 << (count - 1).bit_length(), "W": 1 << (groups - 1).bit_length()}
    with torch.cuda.device_of(logits_NV):  # Triton launches on the current device
        decoding_kernels.group_maxima[rows, -(-groups // MAXIMA["W"])](
            logits_NV, best_NG, *shape, E=GROUP, **MAXIMA
        )
        decoding_kernels.largest[(rows,)](
            *(logits_NV, best_NG, values_NC, columns_NC),
            *shape,
            **{"C": count, "E": GROUP},
            **padded,
            **LARGEST,
        )
    return values_NC, columns_NC
