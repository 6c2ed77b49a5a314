"""Attention within packed rows on a GPU, as one operator with its own Triton kernels.

General kernels for packed rows work on tiles of 128 x 128 for each row and head, of which a
sentence of twenty tokens fills little. These take a block of tokens, whichever rows they belong to.
For autograd and torch.compile the operator is a single node.

Shapes as in `transformer`.
"""

import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SIZES = (16, 32, 64, 128)  # of heads: a tile has a power of two of columns

# How the kernels are launched: tokens of a block, tokens at a time in its loops, warps and stages.
# Of heads of 64, four programs (forward) and three (backward) share a multiprocessor of an H100.
FORWARD = {"B": 64, "N": 64, "num_warps": 4, "num_stages": 2}
BACKWARD = {"B": 64, "N": 32, "num_warps": 4, "num_stages": 2}


def missing() -> str | None:
    """Return what Triton needs to build kernels and is not installed, or None."""
    if find_spec("triton") is None:
        return "Triton (pip install triton)"
    if os.name == "nt":  # Triton's build for Windows brings its own compiler
        return None
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "a C compiler, such as gcc"
    scheme = sysconfig.get_default_scheme()
    # Debian's own Python installs into /usr/local, where its headers are not. Triton knows as well.
    scheme = "posix_prefix" if scheme == "posix_local" else scheme
    header = Path(sysconfig.get_path("include", scheme), "Python.h")
    return None if header.is_file() else "Python's headers (python3-dev or python3-devel)"


AVAILABLE = missing() is None


def give_up() -> None:
    """Do without these kernels from now on."""
    global AVAILABLE
    AVAILABLE = False


# Not as `custom_op`s, which import torch's compiler, for seconds, when they are first called.
_NAME, _GRADIENT = "lcm::row_attention", "lcm::row_attention_backward"
_ROWS = "Tensor qkv, Tensor owner, Tensor starts"
for _name, _schema in (
    (_NAME, f"({_ROWS}, bool causal) -> (Tensor, Tensor)"),
    (_GRADIENT, f"({_ROWS}, Tensor y, Tensor lse, Tensor grad_y, bool causal) -> Tensor"),
):
    torch.library.define(_name, _schema, tags=torch.Tag.pt2_compliant_tag)


@torch.library.impl(_NAME, "default")
def _attend(
    qkv_T3Hd: Tensor, owner_T: Tensor, starts_R1: Tensor, causal: bool
) -> tuple[Tensor, Tensor]:
    """Return the attention (T, H, d), and the log of each softmax's denominator, (H, T)."""
    from lcm_cli.space import attention_kernels

    qkv_T3Hd = qkv_T3Hd.contiguous()
    y_THd, lse_HT = _outputs(qkv_T3Hd)
    arguments = qkv_T3Hd, owner_T, starts_R1, y_THd, lse_HT
    _launch(attention_kernels.forward, FORWARD, arguments, causal)
    return y_THd, lse_HT


@torch.library.impl(_GRADIENT, "default")
def _gradient(
    qkv_T3Hd: Tensor,
    owner_T: Tensor,
    starts_R1: Tensor,
    y_THd: Tensor,
    lse_HT: Tensor,
    grad_y_THd: Tensor,
    causal: bool,
) -> Tensor:
    """Return the gradient of queries, keys and values, (T, 3, H, d)."""
    from lcm_cli.space import attention_kernels

    qkv_T3Hd, grad_y_THd = qkv_T3Hd.contiguous(), grad_y_THd.contiguous()
    grad_T3Hd = qkv_T3Hd.new_empty(qkv_T3Hd.shape)
    arguments = qkv_T3Hd, owner_T, starts_R1, y_THd, lse_HT, grad_y_THd, grad_T3Hd
    _launch(attention_kernels.backward, BACKWARD, arguments, causal)
    return grad_T3Hd


def _launch(kernel: Any, how: dict[str, int], tensors: tuple[Tensor, ...], causal: bool) -> None:
    tokens, _, heads, size = tensors[0].shape
    grid = heads, -(-tokens // how["B"])
    with torch.cuda.device_of(tensors[0]):  # Triton launches on the current device
        kernel[grid](*tensors, tokens, H=heads, D=size, CAUSAL=causal, **how)


def _outputs(qkv_T3Hd: Tensor) -> tuple[Tensor, Tensor]:
    tokens, _, heads, size = qkv_T3Hd.shape
    y_THd = qkv_T3Hd.new_empty(tokens, heads, size)
    return y_THd, qkv_T3Hd.new_empty(heads, tokens, dtype=torch.float32)


def _fake(qkv_T3Hd: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return _outputs(qkv_T3Hd)


def _fake_gradient(qkv_T3Hd: Tensor, *others: Any) -> Tensor:
    return qkv_T3Hd.new_empty(qkv_T3Hd.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.causal = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)  # the denominators have none


def _backward(ctx: Any, grad_y_THd: Tensor, _: None) -> tuple[Tensor, None, None, None]:
    grad_T3Hd = torch.ops.lcm.row_attention_backward(*ctx.saved_tensors, grad_y_THd, ctx.causal)
    return grad_T3Hd, None, None, None


torch.library.register_fake(_NAME, _fake)
torch.library.register_fake(_GRADIENT, _fake_gradient)
torch.library.register_autograd(_NAME, _backward, setup_context=_save)


def attend_rows(qkv_T3Hd: Tensor, owner_T: Tensor, starts_R1: Tensor, causal: bool) -> Tensor:
    """Return the attention of tokens within their rows, (T, H, d), in half precision.

    `qkv_T3Hd` are queries, keys and values; owners and starts are those of `Packed`.
    """
    y_THd, _ = torch.ops.lcm.row_attention(qkv_T3Hd, owner_T, starts_R1, causal)
    return y_THd
