"""Whether the Triton kernels work here: once per process and device, torch checks them.

Triton compiles them for the GPU at hand, with the compiler and the driver at hand. Where that fails
or gives other numbers, the slower path of plain torch takes their place.
"""

import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcm_cli.space import row_attention
from lcm_cli.space.beam_attention import attend_beams, give_up, runs
from lcm_cli.space.decoder import attend_slots
from lcm_cli.space.logits import launch_largest, launch_total
from lcm_cli.space.norms import launch_add_norm
from lcm_cli.space.transformer import pack_rows, row_kernel

ROOM, BEAMS, POSITION = 8, 5, 6
LENGTHS, SIZE = (5, 70, 1), 64  # of the rows and heads of attention within rows


@cache
def check_kernels(device: torch.device) -> None:
    """Let decoding do without kernels that do not work on `device`."""
    if runs(device) and not kernels_work(device):
        give_up(device)


@cache
def check_row_kernel(device: torch.device) -> None:
    """Let attention within rows do without a kernel of ours that does not work on `device`."""
    used = row_attention.AVAILABLE and row_kernel(device, torch.float16, SIZE) is not None
    if used and not _works("attention within rows", rows_agree, device):
        row_attention.give_up()


def kernels_work(device: torch.device) -> bool:
    """Return whether all kernels of decoding agree with torch on `device`; warn if not."""
    return _works("decoding", kernels_agree, device)


def _works(what: str, agree: Callable[[torch.device], bool], device: torch.device) -> bool:
    try:
        reason = "" if agree(device) else "they give other numbers than torch"
    except Exception as error:  # Triton and the driver raise errors of many kinds
        reason = f"{type(error).__name__}: {error}"
    if reason:
        warnings.warn(f"{what} on {device} without Triton kernels: {reason}", stacklevel=3)
    return not reason


@torch.inference_mode()
def rows_agree(device: torch.device) -> bool:
    """Return whether attention within rows is what torch computes, up to rounding."""
    rows = pack_rows([[0] * length for length in LENGTHS], device)
    generator = torch.Generator().manual_seed(0)
    qkv_T3Hd = torch.randn(sum(LENGTHS), 3, 2, SIZE, generator=generator).to(device, torch.float16)
    found = row_attention.attend_rows(qkv_T3Hd, rows.owner_T, rows.starts_R1, False)
    q, k, v = qkv_T3Hd.permute(1, 2, 0, 3).float()
    seen_TT = rows.owner_T[:, None] == rows.owner_T
    wanted = F.scaled_dot_product_attention(q, k, v, seen_TT).transpose(0, 1)
    return torch.allclose(found.float(), wanted, rtol=4e-3, atol=4e-3)


@torch.inference_mode()
def kernels_agree(device: torch.device) -> bool:
    """Return whether the kernels compute what torch does, up to rounding in half precision."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, torch.float16)

    logits = draw(4, 20_000)
    near = [(launch_total(logits), logits.float().logsumexp(1, keepdim=True))]
    values, columns = launch_largest(logits, 10)
    near += [(values, logits.topk(10).values), (logits.gather(1, columns), values)]
    norm = nn.LayerNorm(64, device=device, dtype=torch.float16)
    x, y = draw(4, 64), draw(4, 64)
    near += zip(launch_add_norm(norm, x, y), (x + y, norm(x + y)), strict=True)
    near.append(_attention(draw))
    return all(torch.allclose(a.float(), b.float(), rtol=4e-3, atol=4e-3) for a, b in near)


def _attention(draw: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    """Return the attention of beams by the kernel, and by torch under a mask."""
    qkv_N3Hd, kv = draw(3 * BEAMS, 3, 2, 64), draw(2, 3, ROOM, BEAMS, 2, 64)
    own_B = torch.arange(BEAMS, device=kv.device)
    # Each beam descends from the one before it at every other position.
    shift_P = torch.arange(ROOM, device=kv.device) % 2
    slots_SBP = ((own_B[:, None] + shift_P) % BEAMS).expand(3, -1, -1).contiguous()
    position_1 = torch.tensor([POSITION], device=kv.device)
    q, k, v = qkv_N3Hd.unbind(1)
    found = attend_beams(q, k, v, kv, slots_SBP, position_1)
    seen = slots_SBP[..., : POSITION + 1, None] == own_B
    seen[:, :, POSITION] = torch.eye(BEAMS, dtype=torch.bool, device=kv.device)
    kv[:, :, POSITION] = qkv_N3Hd[:, 1:].transpose(0, 1).unflatten(1, (3, BEAMS))
    k, v = kv[:, :, : POSITION + 1].flatten(2, 3).transpose(2, 3)
    mask = torch.zeros(seen.flatten(2).shape, dtype=kv.dtype, device=kv.device)
    mask = mask.masked_fill(~seen.flatten(2), -torch.inf)[:, None]
    return found, attend_slots(q, k, v, mask)
