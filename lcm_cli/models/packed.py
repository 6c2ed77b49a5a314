"""A layout of concept models for generation: fewer, larger and, on CPUs, smaller-typed products.

A product with few rows takes as long as reading its weights from memory, and large matrices are
read at a higher rate than small ones. The following maps are therefore merged; results are equal
up to rounding:

    q, k, v               of self-attention, which share their input
    gate, inner           of SwiGLU, which share their input
    output_proj v_proj    of denoiser positions, which see only themselves: one map of half the size
    norm, modulator       the norm's weight is a factor of AdaLN's scale
    norm, map             or of the columns of the map that reads it

On GPUs, where every operation is a kernel that has its own cost, the layers of a denoiser become
those of `folded`. On CPUs every linear map is then stored for the fastest product of its precision:

    "auto"      float16 weights, if the processor multiplies them faster, else as float32; inputs
                and sums stay float32, and a matrix that float16 would round too coarsely is kept
    "float32"   torch's own layout or oneDNN's, whichever is faster
    "int8"      int8 weights with a scale per row, inputs rounded at each product; float16 weights,
                as in "auto", where rounded inputs cost most: the first and last maps and the
                outputs of feed-forwards, whose inputs vary most in magnitude

Models in bfloat16 or float16 are merged but keep their type.

Shapes: B rows (documents), S concepts, M model dim, H heads, W head width, O outputs, I inputs.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcm_cli.errors import UsageError
from lcm_cli.int8 import Int8Linear, unchecked
from lcm_cli.models.folded import FoldedLayer, can_fold
from lcm_cli.models.layers import (
    Attention,
    Block,
    FeedForward,
    Frontend,
    Projection,
    Rotation,
    TimeEmbedding,
    Transformer,
    complex_rope,
    rotate,
    split_heads,
)
from lcm_cli.models.two_tower import DenoiserLayer, Modulator
from lcm_cli.space.kernels import PackedLinear, can_pack, page_out, return_memory

Model = TypeVar("Model", bound=nn.Module)
MakeLinear = Callable[[Tensor, Tensor | None], nn.Module]

# The number of rows that oneDNN lays weights out for. From 7 rows on it uses blocks of 32 outputs
# instead of 64; products of one or two rows then take a quarter less time, those of some hundred
# rows 5 % more.
ROWS = 8
COARSE = 2.0**-10  # relative error of a matrix from which float16 is not used; usually 2^-12
TRIAL = (1536, 512)  # outputs and inputs of the matrices that kernels are compared with
TRIAL_LAYERS = 3  # enough that none stays in the innermost caches
TRIAL_ROWS = (2, 8)  # one document with guidance, eight without
TRIAL_ROUNDS = 6
WORTH = 0.9  # share of float32's time from which float16 is used


class HalfLinear(nn.Module):
    """A linear map with float16 weights and float32 inputs, sums and outputs."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        # The operator holds weights in a layout of its own, and adds the bias.
        self.packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)
        self.product = unchecked(torch.ops.quantized.linear_dynamic_fp16)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., I) to (..., O)."""
        y: Tensor = self.product(x, self.packed)
        return y


class PlainLinear(nn.Module):
    """A linear map in torch's own layout, frozen."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., I) to (..., O)."""
        return F.linear(x, self.weight, self.bias)


def packed(weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Return a linear map in oneDNN's layout."""
    return PackedLinear(weight, bias, ROWS)


def half(weight: Tensor, bias: Tensor | None) -> nn.Module:
    """Return a linear map with float16 weights, or with float32 ones if float16 is too coarse."""
    error = (weight.half().float() - weight).norm() / weight.norm()
    # Also false for NaN, from infinite weights or from zeros.
    return HalfLinear(weight, bias) if error < COARSE else fastest_float32()(weight, bias)


@cache
@torch.inference_mode()
def relative_times() -> dict[MakeLinear, float]:
    """Return the time of each kernel's products relative to torch's own layout.

    The mean over TRIAL_ROWS of the shortest times, since load only adds to them. Kernels take
    turns, so that a busy moment does not slow one of them alone.
    """
    makes: list[MakeLinear] = [PlainLinear]
    if can_pack(nn.Linear(1, 1)):
        makes.append(packed)
    if torch.backends.quantized.engine in ("x86", "fbgemm"):  # others only simulate float16
        makes.append(half)
    # Each with weights of its own: shared ones would stay in the innermost caches.
    layers = {
        make: [make(torch.ones(TRIAL), torch.zeros(TRIAL[0])) for _ in range(TRIAL_LAYERS)]
        for make in makes
    }
    ratios: dict[MakeLinear, float] = dict.fromkeys(makes, 0.0)
    for rows in TRIAL_ROWS:
        x, least = torch.ones(rows, TRIAL[1]), dict.fromkeys(makes, float("inf"))
        for make in makes * TRIAL_ROUNDS:
            start = time.perf_counter()
            for layer in layers[make]:
                layer(x)
            least[make] = min(least[make], time.perf_counter() - start)
        for make in makes:
            ratios[make] += least[make] / least[PlainLinear] / len(TRIAL_ROWS)
    return ratios


def fastest_float32() -> MakeLinear:
    """Return the faster of the float32 layouts on this processor, by a short measurement."""
    return packed if relative_times().get(packed, 1.0) < 1.0 else PlainLinear


def fastest() -> MakeLinear:
    """Return the fastest layout with float32 inputs and sums, by a short measurement."""
    float32, ratios = fastest_float32(), relative_times()
    return half if ratios.get(half, 1.0) < WORTH * ratios[float32] else float32


class RootMeanSquareNorm(nn.Module):
    """RMSNorm without weight or factor sqrt(M), in fewer operations: x / sqrt(sum x^2 + M eps)."""

    least: Tensor

    def __init__(self, part: nn.RMSNorm) -> None:
        super().__init__()
        self.register_buffer("least", torch.tensor((part.weight.numel() * (part.eps or 0)) ** 0.5))

    @staticmethod
    def missing(part: nn.RMSNorm) -> Tensor:
        """Return what RMSNorm multiplies this norm by, (M,)."""
        return part.weight * part.weight.numel() ** 0.5

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (..., M)."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x / torch.hypot(length, self.least)


class PackedModulator(nn.Module):
    """A modulator that also multiplies each scale by the weight of the norm before it."""

    def __init__(self, part: Modulator, norms: list[nn.RMSNorm], make: MakeLinear) -> None:
        super().__init__()
        weight, bias = part.fc.weight.clone(), part.fc.bias.clone()
        # The scales are parts 1, 4 and 7 of three times (shift, scale, gate). The 1 that the
        # original adds to each of them becomes part of its bias.
        scales = zip(weight.chunk(9)[1::3], bias.chunk(9)[1::3], norms, strict=True)
        for weight_MM, bias_M, norm in scales:  # views, changed in place
            factor_M = RootMeanSquareNorm.missing(norm)
            weight_MM *= factor_M[:, None]
            bias_M.add_(1).mul_(factor_M)
        page_out(part.fc.weight)
        self.fc = make(weight, bias)

    def forward(self, time: Tensor) -> Tensor:
        """Map (..., M) to (..., 9 M); see Modulator.forward."""
        y: Tensor = self.fc(F.silu(time))
        return y


class PackedAttention(Attention):
    """Self-attention with a single product for queries, keys and values.

    Its input is multiplied by `factor_M`.
    """

    def __init__(self, part: Attention, make: MakeLinear, factor_M: Tensor | None = None) -> None:
        nn.Module.__init__(self)
        self.heads, self.kv_heads, self.dropout = part.heads, part.kv_heads, part.dropout
        self.qkv_proj = joined(make, part.q_proj, part.k_proj, part.v_proj, factor_M=factor_M)
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

    def __init__(self, part: Attention, make: MakeLinear) -> None:
        super().__init__()
        # Grouped heads: v_proj has a row per value head's channel, output_proj a column per query
        # head's, so `share` repeats the rows. The bias is the map's value at zero.
        weight_MM = part.output_proj.weight @ part.share(part.v_proj.weight.T).T
        bias_M = part.alone(weight_MM.new_zeros(weight_MM.shape[1]))
        self.proj = make(weight_MM, bias_M)
        for layer in (part.q_proj, part.k_proj, part.v_proj, part.output_proj):
            page_out(layer.weight)

    def alone(self, x: Tensor) -> Tensor:
        """Map (..., M) to (..., M); see Attention.alone."""
        y: Tensor = self.proj(x)
        return y


class PackedFeedForward(nn.Module):
    """SwiGLU with a single product for gate and inner; its input is multiplied by `factor_M`."""

    def __init__(self, part: FeedForward, make: MakeLinear, factor_M: Tensor | None = None) -> None:
        super().__init__()
        assert part.gate_proj is not None
        self.gate_inner_proj = joined(make, part.gate_proj, part.inner_proj, factor_M=factor_M)
        self.output_proj = part.output_proj

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., M) to (..., M)."""
        gate, inner = self.gate_inner_proj(x).chunk(2, dim=-1)
        y: Tensor = self.output_proj(F.silu(gate).mul_(inner))
        return y


def joined(make: MakeLinear, *layers: nn.Linear, factor_M: Tensor | None = None) -> nn.Module:
    """Return one linear map that computes the outputs of all `layers`, side by side.

    It multiplies its input by `factor_M`.
    """
    weight = torch.cat([layer.weight for layer in layers])
    if factor_M is not None:
        weight *= factor_M
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
    for layer in layers:
        page_out(layer.weight)
    return make(weight, bias)


@dataclass(frozen=True)
class Kernels:
    """How the linear maps of a model are stored."""

    inner: MakeLinear
    sensitive: MakeLinear  # first and last maps, feed-forward outputs, modulators
    dtype: torch.dtype | None = torch.float32  # of everything else; None: as it is
    norms: bool = True  # whether norms are merged; GPUs have a fused kernel for them

    @classmethod
    def of(cls, precision: str) -> "Kernels":
        """Return the fastest kernels that compute in `precision`.

        Raises UsageError if this build of torch has no int8 kernels.
        """
        if precision == "int8":
            if torch.backends.quantized.engine == "none":
                message = "this build of torch has no int8 kernels"
                raise UsageError(message, "use --precision float32")
            return cls(Int8Linear, fastest())
        if precision in ("auto", "float32"):
            make = fastest() if precision == "auto" else fastest_float32()
            return cls(make, make)
        return cls(PlainLinear, PlainLinear, None)

    def store(self, layer: nn.Linear, *, sensitive: bool) -> nn.Module:
        """Return the same map in its new layout."""
        weight, bias = layer.weight, layer.bias
        new = (self.sensitive if sensitive else self.inner)(
            weight.to(self.dtype or weight.dtype),
            None if bias is None else bias.to(self.dtype or bias.dtype),
        )
        page_out(weight)
        return new


@torch.no_grad()
def lay_out(model: Model, precision: str = "auto") -> Model:
    """Lay out a model on a CPU or CUDA GPU for generation, in place; leave it unchanged elsewhere.

    On a GPU it keeps its type. On a CPU, with "auto", "float32" or "int8", the result computes in
    float32, whatever type its weights had. With "bfloat16" or "float16", the model must have this
    type already. A model that was laid out can be neither trained nor saved.
    """
    device = next(model.parameters()).device.type
    if device == "cuda":
        merge(model)
    if device != "cpu":
        return model
    kernels = Kernels.of(precision)
    _store(model, kernels)
    if kernels.dtype is not None:
        model.to(kernels.dtype)
    return_memory()
    return model


def merge(module: nn.Module) -> None:
    """Merge the maps below `module` that can be merged, each in its own type, for GPUs."""
    for name, part in list(module.named_children()):
        if isinstance(part, DenoiserLayer) and can_fold(part):
            setattr(module, name, FoldedLayer(part))
        elif isinstance(part, Block):
            _merge(part, Kernels(PlainLinear, PlainLinear, None, norms=False))
        else:
            merge(part)


def _store(module: nn.Module, kernels: Kernels) -> None:
    """Merge and store the maps below `module`, one layer at a time to spare memory."""
    if isinstance(module, DenoiserLayer | Block):
        if kernels.dtype is not None:
            module.to(kernels.dtype)
        _merge(module, kernels)
    if isinstance(module, Transformer):
        module.rope = complex_rope
    ends = isinstance(module, Projection | Frontend | FeedForward | PackedFeedForward)
    for name, part in list(module.named_children()):
        if isinstance(part, nn.Dropout):
            setattr(module, name, nn.Identity())
        elif isinstance(part, nn.Linear):
            setattr(module, name, kernels.store(part, sensitive=ends))
        elif not isinstance(part, TimeEmbedding):  # computed once per run
            _store(part, kernels)
    if isinstance(module, DenoiserLayer | Block):
        return_memory()


def _merge(layer: DenoiserLayer | Block, kernels: Kernels) -> None:
    """Merge the maps of a layer that can be merged."""
    make = kernels.inner
    if isinstance(layer, DenoiserLayer):
        layer.self_attn = SelfOnlyAttention(layer.self_attn, make)  # type: ignore[assignment]
        _merge_norms(layer, kernels.sensitive)
    elif isinstance(layer.self_attn.q_layer_norm, nn.Identity):
        factor_M = _take_norm(layer, "self_attn_layer_norm") if kernels.norms else None
        layer.self_attn = PackedAttention(layer.self_attn, make, factor_M)
    if layer.ffn.gate_proj is not None:
        factor_M = _take_norm(layer, "ffn_layer_norm") if kernels.norms else None
        layer.ffn = PackedFeedForward(layer.ffn, make, factor_M)  # type: ignore[assignment]


def _take_norm(layer: DenoiserLayer | Block, name: str) -> Tensor | None:
    """Replace an RMSNorm before a map by one without weight; return the factor for the map.

    None if the map reads something else, such as a modulated or another norm.
    """
    norm = getattr(layer, name)
    if isinstance(layer, DenoiserLayer) or layer.order == "post":
        return None
    if not isinstance(norm, nn.RMSNorm):
        return None
    setattr(layer, name, RootMeanSquareNorm(norm))
    return RootMeanSquareNorm.missing(norm)


def _merge_norms(layer: DenoiserLayer, make: MakeLinear) -> None:
    """Merge the norms of a layer with its modulator."""
    names = ("self_attn_layer_norm", "cross_attention_layer_norm", "ffn_layer_norm")
    norms = [getattr(layer, name) for name in names]
    if not all(isinstance(norm, nn.RMSNorm) for norm in norms):
        return
    layer.modulator = PackedModulator(layer.modulator, norms, make)  # type: ignore[assignment]
    for name, norm in zip(names, norms, strict=True):
        setattr(layer, name, RootMeanSquareNorm(norm))
