"""The kernels of decoding steps, interpreted on the CPU, and on a GPU."""

import pytest
import torch
from beam_reference import Problem
from row_reference import near
from torch import nn
from triton_kernels import needs_triton, on_gpu, run_interpreted

from lcm_cli.space.kernel_check import kernels_work
from lcm_cli.space.kernels import AlignedProjection
from lcm_cli.space.logits import largest, log_total
from lcm_cli.space.norms import add_norm


@pytest.mark.slow
@needs_triton
def test_the_interpreted_kernels_have_the_numbers_of_the_definitions() -> None:
    run_interpreted("interpreted_decoding.py")


def test_where_the_kernels_do_not_run_a_warning_says_so() -> None:
    """On the CPU, that is, without the interpreter."""
    with pytest.warns(UserWarning, match="decoding on cpu without Triton kernels: "):
        assert not kernels_work(torch.device("cpu"))


@on_gpu
@pytest.mark.gpu
def test_gpu_kernels_agree_with_torch() -> None:
    assert kernels_work(torch.device("cuda"))


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("beams", [1, 4, 5, 20])
def test_gpu_kernel_attends_to_the_ancestors_of_beams(
    beams: int, size: int, dtype: torch.dtype
) -> None:
    """At the first position, and where keys fill less than a block of the kernel, and several."""
    torch.manual_seed(0)
    for position in (0, 1, 12, 39):
        problem = Problem.drawn((3, 40, beams, 3, size), position, dtype, "cuda")
        wanted, after = problem.exact(), problem.after()
        near(problem.attend(), wanted)
        assert torch.equal(problem.kv_2SPBHd.nan_to_num(7), after.nan_to_num(7))


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("columns", [1, 4_095, 4_096, 50_003])
def test_gpu_kernel_has_the_totals_of_the_definition(columns: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    aligned = AlignedProjection(torch.randn(columns, 16, device="cuda", dtype=dtype))
    # What the columns hold that only align the rows does not count.
    logits_NV = aligned(5 * torch.randn(130, 16, device="cuda", dtype=dtype))
    logits_NV[1, : columns // 2] = -torch.inf
    for rows in (logits_NV, logits_NV.contiguous(), logits_NV[::5]):
        wanted = rows.double().logsumexp(1, keepdim=True).float()
        torch.testing.assert_close(log_total(rows), wanted)
    logits_NV[0, -1], logits_NV[1, -1], logits_NV[2] = torch.nan, torch.inf, -torch.inf
    assert log_total(logits_NV)[:4].isfinite().flatten().tolist() == [False, False, False, True]


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("columns", [16_384, 16_387, 50_001])
@pytest.mark.parametrize("count", [2, 10, 64])
def test_gpu_kernels_find_the_largest(count: int, columns: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits_NV = torch.randn(70, columns + 5).to("cuda", dtype)[:, :columns]
    logits_NV[:, 0] = -torch.inf
    logits_NV[0, 4:] = -torch.inf
    logits_NV[1, :-3] = -torch.inf
    for rows in (logits_NV, logits_NV.contiguous(), logits_NV[::5]):
        values, indices = largest(rows, count)
        assert torch.equal(values, rows.topk(count, dim=1).values)
        assert torch.equal(values, rows.gather(1, indices))
        assert all(len(set(row)) == count for row in indices.tolist())
    # Rows that have left may hold anything, but no column is out of range.
    logits_NV[0, 100], logits_NV[1] = torch.nan, torch.nan
    _, indices = largest(logits_NV, count)
    assert indices.min() >= 0 and indices.max() < columns


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [32, 100, 1024])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_gpu_kernel_adds_and_norms(parts: int, width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = nn.LayerNorm(width).to("cuda", dtype)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    tensors = [3 + torch.randn(70, width, device="cuda", dtype=dtype) for _ in range(parts)]
    with torch.no_grad():
        total, normed = add_norm(norm, *tensors)
        assert torch.equal(total, sum(tensors[1:], tensors[0]))
        if dtype == torch.float32:
            torch.testing.assert_close(normed, norm(total))
        else:
            near(normed, norm.double()(total.double()))
