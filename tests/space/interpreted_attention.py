"""Run the attention kernels in Triton's interpreter, on the CPU, and compare their numbers.

A process of its own: the variable that chooses the interpreter must be set before Triton is
imported, and affects all of its kernels.
"""

import os
from itertools import product
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
from row_reference import dense, near
from torch import Tensor, nn
from torch.nn import functional as F

from lcm_cli.space import attention_kernels, kernel_check, row_attention, transformer
from lcm_cli.space.transformer import Packed, SelfAttention, pack_rows

LENGTHS = ([5, 1, 0, 7, 40, 3], [1], [32], [70, 2, 0, 0, 40], [0, 17, 17, 17, 17, 17, 0])


def packed(lengths: list[int]) -> Packed:
    return pack_rows([[3] * length for length in lengths], torch.device("cpu"))


def check_numbers(lengths: list[int], heads: int, size: int, causal: bool) -> None:
    rows = packed(lengths)
    shape = len(rows.owner_T), 3, heads, size
    qkv = torch.randn(shape, dtype=torch.float16, requires_grad=True)
    grad_y = torch.randn_like(qkv[:, 0])
    exact = qkv.detach().double().requires_grad_()
    y = row_attention.attend_rows(qkv, rows.owner_T, rows.starts_R1, causal)
    wanted = dense(exact, rows, causal)
    y.backward(grad_y)
    wanted.backward(grad_y.double())
    near(y, wanted)
    assert qkv.grad is not None and exact.grad is not None
    near(qkv.grad, exact.grad)


def check_rows_apart() -> None:
    """The numbers of a row do not depend on which rows share its block."""
    rows, others = packed([9, 13, 21]), packed([9, 13, 2])
    qkv = torch.randn(43, 3, 2, 16, dtype=torch.float16)
    y = row_attention.attend_rows(qkv, rows.owner_T, rows.starts_R1, False)
    qkv[22:] = 60_000.0
    z = row_attention.attend_rows(qkv[:24], others.owner_T, others.starts_R1, False)
    assert torch.equal(y[:22], z[:22])


def check_operator() -> None:
    """The operator's fake and its gradient are what torch.compile needs."""
    rows = packed([5, 12, 3])
    qkv = torch.randn(20, 3, 2, 16, dtype=torch.float16, requires_grad=True)
    arguments = qkv, rows.owner_T, rows.starts_R1, True
    for test in ("test_schema", "test_autograd_registration", "test_faketensor"):
        torch.library.opcheck(torch.ops.lcm.row_attention.default, arguments, test_utils=test)
    y, lse = torch.ops.lcm.row_attention(*arguments)
    arguments = *(t.detach() for t in (*arguments[:3], y, lse, y)), True
    for test in ("test_schema", "test_faketensor"):
        operator = torch.ops.lcm.row_attention_backward.default
        torch.library.opcheck(operator, arguments, test_utils=test)


def check_layer() -> None:
    """The module gives the numbers and gradients of its path on the CPU, adapted maps or not."""
    rows = packed([3, 8, 8, 20])
    layer, x = SelfAttention(32, 2), torch.randn(39, 32)
    wanted = gradients(layer, x, rows)
    transformer._joins_maps = lambda x_TM: True
    transformer.row_kernel = lambda *of: transformer._attend_rows
    layer = layer.half()
    for found in (gradients(layer, x.half(), rows), gradients(wrapped(layer), x.half(), rows)):
        for ours, theirs in zip(found, wanted, strict=True):
            assert F.cosine_similarity(ours.flatten().float(), theirs.flatten(), dim=0) > 0.9999


def gradients(layer: SelfAttention, x: Tensor, rows: Packed) -> list[Tensor]:
    y = layer(x, rows, causal=True)
    # Those of matrices: the bias of the keys has none, since it moves all scores of a query alike.
    matrices = [p for p in layer.parameters() if p.dim() == 2]
    return [y, *torch.autograd.grad(y.float().square().sum(), matrices)]


def wrapped(layer: SelfAttention) -> SelfAttention:
    """Return the layer with maps that are no nn.Linear, as adapted ones are not."""
    layer.k_proj = nn.Sequential(layer.k_proj)
    return layer


def check_the_check() -> None:
    """The check at first use tells right numbers from wrong ones."""
    device, right = torch.device("cpu"), row_attention.attend_rows
    assert kernel_check.rows_agree(device)
    row_attention.attend_rows = lambda *given: right(*given) * 1.1
    assert not kernel_check.rows_agree(device)
    row_attention.attend_rows = right


def counted(*limits: Any) -> range:
    """Do as `range` does, for limits that the interpreter holds as arrays of one number."""
    return range(*(x if isinstance(x, int) else x.handle.data.item() for x in limits))


def main() -> None:
    # The interpreter's own conversion to numbers fails with new versions of NumPy.
    attention_kernels.range = counted
    torch.manual_seed(0)
    check_numbers([30, 80, 5], 1, 64, causal=True)
    check_the_check()
    for how in (row_attention.FORWARD, row_attention.BACKWARD):
        how |= {"B": 32, "N": 16}  # as many cases with fewer tokens
    for lengths, causal in product(LENGTHS, (False, True)):
        check_numbers(lengths, 2, 16, causal)
    check_rows_apart()
    check_operator()
    check_layer()


if __name__ == "__main__":
    main()
