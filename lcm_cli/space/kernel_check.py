"""Whether the Triton kernels of decoding steps work here: once per process, torch checks them.

Triton compiles them for the GPU at hand, with the compiler and the driver at hand. Where that fails
or gives other numbers, the slower path of plain torch takes their place.
"""

import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from lcm_cli.space.beam_attention import attend_beams, give_up, runs
from lcm_cli.space.decoder import attend_slots
from lcm_cli.space.logits import launch_largest, launch_total
from lcm_cli.space.norms import launch_add_norm

ROOM, BEAMS, POSITION = 8, 5, 6


@cache
def check_kernels(device: torch.device) -> None:
    """Let decoding do without kernels that do not work on `device`."""
    if runs(device) and not kernels_work(device):
        give_up(device)


def kernels_work(device: torch.device) -> bool:
    """Return whether all kernels agree with torch on `device`; warn if they do not."""
    try:
        reason = "" if kernels_agree(device) else "they give other numbers than torch"
    except Exception as error:  # Triton and the driver raise errors of many kinds
        reason = f"{type(error).__name__}: {error}"
    if reason:
        warnings.warn(f"decoding on {device} without Triton kernels: {reason}", stacklevel=2)
    return not reason


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
