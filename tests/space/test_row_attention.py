"""The kernels of attention within packed rows, interpreted on the CPU, and on a GPU."""

import os
import sysconfig
from pathlib import Path

import pytest
import torch
from row_reference import dense, near
from torch import Tensor
from triton_kernels import needs_triton, on_gpu, run_interpreted

from lcm_cli.space import kernel_check, row_attention, transformer
from lcm_cli.space.encoder import EncoderConfig, EncoderLayer
from lcm_cli.space.row_attention import attend_rows
from lcm_cli.space.transformer import Packed, pack_rows


@pytest.mark.slow
@needs_triton
def test_the_interpreted_kernels_attend_within_rows() -> None:
    run_interpreted("interpreted_attention.py")


@pytest.mark.skipif(os.name == "nt", reason="Triton for Windows brings its own compiler")
def test_headers_of_a_python_of_debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Python.h").touch()
    folders = {"posix_prefix": str(tmp_path), "posix_local": str(tmp_path / "local")}
    monkeypatch.setattr(sysconfig, "get_default_scheme", lambda: "posix_local")
    monkeypatch.setattr(sysconfig, "get_path", lambda name, scheme="posix_local": folders[scheme])
    monkeypatch.setattr(row_attention, "find_spec", lambda name: object())
    monkeypatch.setenv("CC", "cc")
    assert row_attention.missing() is None


def test_where_the_kernel_does_not_run_torch_attends(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, that is, without the interpreter."""
    monkeypatch.setattr(row_attention, "AVAILABLE", True)
    monkeypatch.setattr(kernel_check, "row_kernel", lambda device, dtype, size: len)
    with pytest.warns(UserWarning, match="attention within rows on cpu without Triton kernels: "):
        kernel_check.check_row_kernel.__wrapped__(torch.device("cpu"))
    assert not row_attention.AVAILABLE


@on_gpu
@pytest.mark.gpu
def test_gpu_kernel_agrees_with_torch() -> None:
    assert kernel_check.rows_agree(torch.device("cuda"))


def packed(lengths: list[int]) -> Packed:
    return pack_rows([[3] * length for length in lengths], torch.device("cuda"))


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize(
    "lengths", [[1], [64, 64], [5, 0, 700, 1, 0], [17, 23, 4, 60, 31] * 9, list(range(70))]
)
def test_gpu_kernels_give_the_numbers_of_the_definition(
    lengths: list[int], size: int, causal: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    rows = packed(lengths)
    qkv = torch.randn(sum(lengths), 3, 3, size, dtype=dtype, device="cuda", requires_grad=True)
    grad_y = torch.randn_like(qkv[:, 0])
    exact = qkv.detach().double().requires_grad_()
    y = attend_rows(qkv, rows.owner_T, rows.starts_R1, causal)
    wanted = dense(exact, rows, causal)
    near(y, wanted)
    (grad,) = torch.autograd.grad(y, qkv, grad_y)
    (wanted_grad,) = torch.autograd.grad(wanted, exact, grad_y.double())
    near(grad, wanted_grad)
    with torch.inference_mode():
        assert torch.equal(attend_rows(qkv, rows.owner_T, rows.starts_R1, causal), y)


@on_gpu
@pytest.mark.gpu
def test_gpu_graph_replays_the_kernels_for_other_rows() -> None:
    torch.manual_seed(0)
    first, second = packed([17, 30, 1, 52]), packed([40, 2, 2, 56])
    qkv = torch.randn(100, 3, 2, 64, dtype=torch.bfloat16, device="cuda")
    owner_T, starts_R1 = first.owner_T.clone(), first.starts_R1.clone()

    def step() -> tuple[Tensor, Tensor]:
        own = qkv.detach().requires_grad_()  # a leaf belongs to the stream of its first use
        y = attend_rows(own, owner_T, starts_R1, True)
        return y, torch.autograd.grad(y, own, torch.ones_like(y))[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step()
    for rows in (second, first):
        owner_T.copy_(rows.owner_T)
        starts_R1.copy_(rows.starts_R1)
        graph.replay()
        for replayed, plain in zip([t.clone() for t in outputs], step(), strict=True):
            assert torch.equal(replayed, plain)


@on_gpu
@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_gpu_layer_compiles_as_one_graph() -> None:
    torch.manual_seed(0)
    layer = EncoderLayer(EncoderConfig(1, 128, 2, 256, 10)).to("cuda", torch.bfloat16)
    x_TM = torch.randn(228, 128, dtype=torch.bfloat16, device="cuda")
    rows = packed([3, 20, 60, 17, 128])
    kernel = transformer.row_kernel(x_TM.device, x_TM.dtype, 64)
    assert kernel is transformer._attend_rows
    outputs = []
    for run in (layer, torch.compile(layer, fullgraph=True)):
        y = run(x_TM, rows)
        matrices = [p for p in layer.parameters() if p.dim() == 2]
        outputs.append([y, *torch.autograd.grad(y.float().square().sum(), matrices)])
    for plain, compiled in zip(*outputs, strict=True):
        plain, compiled = plain.flatten().double(), compiled.flatten().double()
        assert torch.nn.functional.cosine_similarity(plain, compiled, dim=0) > 0.999
