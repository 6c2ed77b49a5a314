"""Attention of beams by its definition, and problems in which all that is hidden is no number."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lcm_cli.space.beam_attention import attend_beams
from lcm_cli.space.captured import HIDDEN


@dataclass
class Problem:
    """The arguments of `attend_beams`: S sentences of B beams, of which the last is not decoded."""

    qkv_N3Hd: Tensor
    kv_2SPBHd: Tensor
    slots_SBP: Tensor
    position: int

    @classmethod
    def drawn(
        cls, shape: tuple[int, int, int, int, int], position: int, dtype: torch.dtype, device: str
    ) -> "Problem":
        """Draw a problem of shape (S, P, B, H, d)."""
        sentences, room, beams, heads, size = shape
        qkv = torch.randn(sentences * beams, 3, heads, size).to(device, dtype)
        slots = torch.randint(beams, (sentences, beams, room), device=device)
        slots[..., position:], slots[-1] = HIDDEN, HIDDEN
        kv = torch.randn(2, *shape).to(device, dtype)
        seen_SPB = (slots[..., None] == torch.arange(beams, device=device)).any(1)
        return cls(qkv, kv.masked_fill_(~seen_SPB[..., None, None], torch.nan), slots, position)

    def attend(self) -> Tensor:
        position_1 = torch.tensor([self.position], device=self.slots_SBP.device)
        return attend_beams(*self.qkv_N3Hd.unbind(1), self.kv_2SPBHd, self.slots_SBP, position_1)

    def exact(self) -> Tensor:
        """Return the attention (N, M) in float64: each beam sees its ancestors, and itself."""
        _, sentences, _, beams, heads, size = self.kv_2SPBHd.shape
        own = torch.arange(beams, device=self.slots_SBP.device).expand(sentences, -1)
        kv, slots = self.after().double(), self.slots_SBP.clone()
        slots[..., self.position] = own
        seen_SBPB = slots[..., None] == own[0]
        q_SBHd = self.qkv_N3Hd[:, 0].double().view(sentences, beams, heads, size)
        k, v = kv.nan_to_num()
        scores = torch.einsum("sbhd,spchd->shbpc", q_SBHd, k) / size**0.5
        scores = scores.masked_fill(~seen_SBPB[:, None], -torch.inf)
        weights = scores.flatten(3).softmax(-1).view_as(scores)
        return torch.einsum("shbpc,spchd->sbhd", weights, v).reshape(sentences * beams, -1)

    def after(self) -> Tensor:
        """Return the buffer with the new keys and values."""
        kv = self.kv_2SPBHd.clone()
        kv[:, :, self.position] = self.qkv_N3Hd[:, 1:].transpose(0, 1).view_as(kv[:, :, 0])
        return kv
