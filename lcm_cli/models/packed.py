"""A memory layout of concept models for generation on the CPU: fewer, larger matrix products.

A product with few rows takes as long as reading its weights from memory, and large matrices are
read at a higher rate than small ones. The following maps are therefore merged; results are equal
up to rounding:

    q, k, v               of self-attention, which share their input
    gate, inner           of SwiGLU, which share their input
    output_proj v_proj    of denoiser positions, which see only themselves: one map of half the size

Shapes: B rows (documents), S concepts, M model dim, H heads, W head width.
"""

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcm_cli.models.layers import Attention, Block, FeedForward, Rotation, rotate, split_heads
from lcm_cli.models.two_tower import DenoiserLayer
from lcm_cli.space.kernels import PackedLinear, can_pack, pack_linear, page_out

Model = TypeVar("Model", bound=nn.Module)

# The number of rows that oneDNN lays weights out for. From 7 rows on it uses blocks of 32 outputs
# instead of 64; products of one or two rows then take a quarter less time, those of some hundred
# rows 5 % more.
ROWS = 8


class PackedAttention(Attention):
    """Self-attention with a single product for queries, keys and values."""

    def __init__(self, part: Attention) -> None:
        nn.Module.__init__(self)
        self.heads, self.kv_heads, self.dropout = part.heads, part.kv_heads, part.dropout
        self.qkv_proj = joined(part.q_proj, part.k_proj, part.v_proj)
        self.output_proj = part.output_proj

    def project(self, x_BSM: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values; see Attention.project."""
        all_BHSW = split_heads(self.qkv_proj(x_BSM), self.heads + 2 * self.kv_heads)
        qk, v = all_BHSW.split([self.heads + self.kv_heads, self.kv_heads], dim=1)
        if rotation is not None:
            qk = rotate(qk, rotation)
        q, k = qk.split([self.heads, self.kv_heads], dim=1)
        return q, k, v


class SelfOnlyAttention(nn.Module):
    """Self-attention of positions that see only themselves, as a single linear map."""

    def __init__(self, part: Attention) -> None:
        super().__init__()
        # Grouped heads: v_proj has a row per value head's channel, output_proj a column per query
        # head's, so `share` repeats the rows. The bias is the map's value at zero.
        weight_MM = part.output_proj.weight @ part.share(part.v_proj.weight.T).T
        bias_M = part.alone(weight_MM.new_zeros(weight_MM.shape[1]))
        self.proj = PackedLinear(weight_MM, bias_M, ROWS)
        for layer in (part.q_proj, part.k_proj, part.v_proj, part.output_proj):
            page_out(layer.weight)

    def alone(self, x: Tensor) -> Tensor:
        """Map (..., M) to (..., M); see Attention.alone."""
        y: Tensor = self.proj(x)
        return y


class PackedFeedForward(nn.Module):
    """SwiGLU with a single product for gate and inner."""

    def __init__(self, part: FeedForward) -> None:
        super().__init__()
        assert part.gate_proj is not None
        self.gate_inner_proj = joined(part.gate_proj, part.inner_proj)
        self.output_proj = part.output_proj

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., M) to (..., M)."""
        gate, inner = self.gate_inner_proj(x).chunk(2, dim=-1)
        y: Tensor = self.output_proj(F.silu(gate) * inner)
        return y


def joined(*layers: nn.Linear) -> PackedLinear:
    """Return one linear map that computes the outputs of all `layers`, side by side."""
    weight = torch.cat([layer.weight for layer in layers])
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
    for layer in layers:
        page_out(layer.weight)
    return PackedLinear(weight, bias, ROWS)


@torch.no_grad()
def lay_out(model: Model) -> Model:
    """Lay out a float32 CPU model for generation, in place; return any other model unchanged.

    A model that was laid out can be neither trained nor saved.
    """
    if not can_pack(model):
        return model
    layers = list(model.modules())
    while layers:  # popped, so that the list keeps no replaced layer in memory
        layer = layers.pop()
        if isinstance(layer, DenoiserLayer):
            layer.self_attn = SelfOnlyAttention(layer.self_attn)  # type: ignore[assignment]
        elif isinstance(layer, Block) and isinstance(layer.self_attn.q_layer_norm, nn.Identity):
            layer.self_attn = PackedAttention(layer.self_attn)
        if isinstance(layer, DenoiserLayer | Block) and layer.ffn.gate_proj is not None:
            layer.ffn = PackedFeedForward(layer.ffn)  # type: ignore[assignment]
    return pack_linear(model, ROWS)
