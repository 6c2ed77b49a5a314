"""Denoiser layers with fewer kernels, for generation on GPUs.

With few rows, most kernels take a few microseconds whatever they compute, so only their number
counts. During a run each timestep is visited once per concept, and what depends on it alone is
computed once:

    W ((1 + scale) norm(x) + shift) + b = W (scale' rms(x)) + b'

where scale' includes the norm's weight and b' = W shift + b. So modulation is part of the norm and
of the bias. The two maps of self-attention become one (see `packed`), as do gate and inner of
SwiGLU, which share their input. Results are equal up to rounding.

Shapes: B rows (documents), S concepts, M model dim.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcm_cli.models.layers import Attention, RMSNorm, split_heads
from lcm_cli.models.two_tower import DenoiserLayer, Memory


def can_fold(layer: DenoiserLayer) -> bool:
    """Return whether a layer's norms are such that they take the scales as their weights."""
    return all(isinstance(norm, RMSNorm) for norm in _norms(layer))


def _norms(layer: DenoiserLayer) -> tuple[nn.Module, nn.Module, nn.Module]:
    return layer.self_attn_layer_norm, layer.cross_attention_layer_norm, layer.ffn_layer_norm


class FoldedLayer(nn.Module):
    """A denoiser layer whose modulations are those of `modulator`, in another form."""

    def __init__(self, layer: DenoiserLayer) -> None:
        super().__init__()
        self.norms = nn.ModuleList(_norms(layer))
        self.source = layer.modulator
        self.cross_attention = layer.cross_attention
        self.ffn = layer.ffn
        weight, bias = _alone(layer.self_attn)
        inner = [layer.ffn.inner_proj]
        if layer.ffn.gate_proj is not None:
            inner.insert(0, layer.ffn.gate_proj)
        inputs = torch.cat([part.weight for part in inner])
        self.weights = nn.ParameterList(
            nn.Parameter(part.detach(), requires_grad=False)
            for part in (weight, layer.cross_attention.q_proj.weight, inputs)
        )
        biases = bias, _bias(layer.cross_attention.q_proj), torch.cat([_bias(p) for p in inner])
        self.biases = nn.ParameterList(
            nn.Parameter(part.detach(), requires_grad=False) for part in biases
        )
        # The merged maps take their place.
        layer.ffn.gate_proj, self.gated = None, layer.ffn.gate_proj is not None
        del layer.ffn.inner_proj
        self.sizes = [n for w in self.weights for n in (w.shape[1], w.shape[1], len(w))]

    def modulator(self, time: Tensor) -> Tensor:
        """Map (..., M) to scale', gate and b' of each sublayer, side by side."""
        modulation, found = self.source(time).chunk(9, dim=-1), list[Tensor]()
        for number, (norm, weight, bias) in enumerate(
            zip(self.norms, self.weights, self.biases, strict=True)
        ):
            shift, scale, gate = modulation[3 * number : 3 * number + 3]
            found += [scale * norm.weight, gate, F.linear(shift, weight, bias)]
        return torch.cat(found, dim=-1)

    def forward(self, x_BSM: Tensor, modulation: Tensor, memory: Memory) -> Tensor:
        """Map (B, S, M) to (B, S, M), at one timestep, whose `modulation` is a vector."""
        parts = modulation.flatten().split(self.sizes)
        x = torch.addcmul(x_BSM, parts[1], self._input(0, x_BSM, parts))
        q = self._query(self._input(1, x[: len(memory.k_BHKW)], parts))
        x = torch.addcmul(x, parts[4], self.cross_attention.answer(q, memory, len(x)))
        return torch.addcmul(x, parts[7], self._feed(self._input(2, x, parts)))

    def _input(self, number: int, x: Tensor, parts: tuple[Tensor, ...]) -> Tensor:
        """Return what a sublayer's first map makes of its normalized and modulated input."""
        scale, bias = parts[3 * number], parts[3 * number + 2]
        h = F.rms_norm(x, scale.shape, scale, self.norms[number].eps)  # type: ignore[arg-type]
        return F.linear(h, self.weights[number], bias)

    def _query(self, q_BSF: Tensor) -> Tensor:
        part = self.cross_attention
        return split_heads(part.q_layer_norm(q_BSF), part.heads)

    def _feed(self, h: Tensor) -> Tensor:
        if not self.gated:
            return self.ffn.output_proj(self.ffn.inner_layer_norm(self.ffn.activation(h)))
        gate, inner = h.chunk(2, dim=-1)
        return self.ffn.output_proj(F.silu(gate).mul_(inner))


def _bias(layer: nn.Linear) -> Tensor:
    return layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias


def _alone(part: Attention) -> tuple[Tensor, Tensor]:
    """Return `Attention.alone` as one linear map: its weight, (M, M), and bias, (M,)."""
    # In float32: the sums are as long as the rows of a matrix.
    output, value = part.output_proj.weight.float(), part.v_proj.weight.float()
    weight_MM = (output @ part.share(value.T).T).to(part.v_proj.weight.dtype)
    return weight_MM, part.alone(weight_MM.new_zeros(1, weight_MM.shape[1]))[0]
