"""Transformer layers shared by the concept models.

The paper uses pre-norm blocks with RMSNorm, rotary positions and SwiGLU; the other variants are
those of the official code. Parameter names are the official ones, so official state dicts load
unchanged. Documents are padded on the right and attention is causal, so padding needs no mask: a
real position never attends to it.

Shapes: B rows (documents), S concepts, K keys, M model dim, H heads, W head width.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcm_cli.models.config import Activation, Norm, RopeScaling, TransformerConfig
from lcm_cli.models.key_value_cache import KeyValueCache

EPSILON = 1e-5
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "elu": F.elu,
    "selu": F.selu,
    "softsign": F.softsign,
}
# Of channel pairs: the factors of each channel and of its pair partner, (..., S, W) each, or
# complex numbers (..., S, W / 2).
Rotation = tuple[Tensor, Tensor] | Tensor


def linear(inputs: int, outputs: int, *, bias: bool = True, weight_norm: bool = False) -> nn.Linear:
    """Return a linear map; `weight_norm` splits its weight into direction and length."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    if weight_norm:
        nn.utils.parametrizations.weight_norm(layer)
    return layer


def norm_layer(kind: Norm, dim: int) -> nn.Module:
    """Return a normalization over a last dimension of width `dim`."""
    if kind == "rms":
        return RMSNorm(dim, eps=EPSILON)
    if kind == "unit":
        return nn.LayerNorm(dim, eps=EPSILON, elementwise_affine=False)
    if kind == "fp32":
        return Float32LayerNorm(dim, eps=EPSILON, bias=False)
    return nn.LayerNorm(dim, eps=EPSILON)


class RMSNorm(nn.RMSNorm):
    """RMS normalization with its weight in the dtype of its input, as torch's fused kernel needs.

    Under autocast, float32 weights would otherwise meet half-precision inputs.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (..., M); the result has the dtype of `x`."""
        return F.rms_norm(x, tuple(self.normalized_shape), self.weight.to(x.dtype), self.eps)


class Float32LayerNorm(nn.LayerNorm):
    """Layer normalization computed in float32, whatever the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (..., M); the result has the dtype of `x`."""
        shape = tuple(self.normalized_shape)
        return F.layer_norm(x.float(), shape, self.weight.float(), None, self.eps).type_as(x)


def sinusoidal_positions(positions: Tensor, dim: int) -> Tensor:
    """Return fixed position vectors (..., dim): sines in the first half, cosines in the second."""
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=positions.device)
    # Divided by half - 1 as in fairseq2, so that the last frequency is exactly 1 / 10000.
    rates = torch.exp(steps * (-math.log(10000.0) / (half - 1)))
    angles = positions[..., None].float() * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


@cache
def rope_rates(
    width: int, theta: float, scaling: RopeScaling | None = None, device: str = "cpu"
) -> Tensor:
    """Return the angle in radians that each channel pair turns per position, (W / 2,) float32."""
    rates = theta ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    if scaling is None:
        return rates.to(device)
    # Llama 3: slow down the low frequencies by `factor`, keep the high ones, blend those between.
    turns = scaling.original_length * rates / (2 * math.pi)
    low, high = scaling.low_frequency, scaling.high_frequency
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (rates * (kept + (1 - kept) / scaling.factor)).to(device)


def rope(positions: Tensor, rates: Tensor) -> Rotation:
    """Return what `rotate` needs at `positions` (...): two tensors (..., W)."""
    angles = _angles(positions, rates)
    cos, sin = angles.cos(), angles.sin()
    # A pair (a, b) becomes (a cos - b sin, b cos + a sin).
    return torch.stack((cos, cos), dim=-1).flatten(-2), torch.stack((-sin, sin), dim=-1).flatten(-2)


def complex_rope(positions: Tensor, rates: Tensor) -> Rotation:
    """Return the same as `rope`, as complex numbers (..., W / 2)."""
    angles = _angles(positions, rates)
    return torch.polar(torch.ones_like(angles), angles)


def _angles(positions: Tensor, rates: Tensor) -> Tensor:
    # In float32: half precision cannot tell neighbouring positions apart far into a document.
    return positions[..., None].float() * rates


def rotate(x_BHSW: Tensor, rotation: Rotation) -> Tensor:
    """Rotate each pair of neighbouring channels by its position's angle (RoPE).

    Computes in float32 and returns the dtype of `x_BHSW`.
    """
    pairs = x_BHSW.float().unflatten(-1, (-1, 2))
    if isinstance(rotation, Tensor):
        turned = torch.view_as_real(torch.view_as_complex(pairs) * rotation).flatten(-2)
    else:
        own, partner = rotation
        turned = torch.addcmul(pairs.flatten(-2) * own, pairs.flip(-1).flatten(-2), partner)
    return turned.type_as(x_BHSW)


def positions_in_documents(segments_BS: Tensor) -> Tensor:
    """Return the position of each concept of packed rows within its own document, (B, S).

    `segments_BS` numbers the documents of each row.
    """
    places_S = torch.arange(segments_BS.shape[1], device=segments_BS.device)
    # A document begins with the row, and wherever the number changes.
    begins_BS = F.pad(segments_BS.diff(dim=1) != 0, (1, 0), value=True)
    # The running maximum carries each document's first place along to all its concepts.
    return places_S - torch.where(begins_BS, places_S, 0).cummax(dim=1).values


def packed_mask(segments_BS: Tensor) -> Tensor:
    """Return the causal mask of packed rows, blocked between documents, (B, 1, S, S)."""
    same_BSS = segments_BS[:, :, None] == segments_BS[:, None, :]
    return same_BSS.tril()[:, None]


class Attention(nn.Module):
    """Multi-head attention, grouped if there are fewer key heads than query heads."""

    def __init__(self, dim: int, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width(dim)
        self.heads, self.kv_heads = config.heads, config.kv_heads or config.heads
        self.dropout = config.attention_dropout
        inner, shared = self.heads * width, self.kv_heads * width
        options = {"bias": config.bias, "weight_norm": config.qkv_weight_norm}
        self.q_proj = linear(dim, inner, **options)
        self.k_proj = linear(dim, shared, **options)
        self.v_proj = linear(dim, shared, **options)
        self.output_proj = linear(
            inner, dim, bias=config.output_bias, weight_norm=config.output_weight_norm
        )
        self.q_layer_norm = norm_layer(config.norm, inner) if config.qk_norm else nn.Identity()
        self.k_layer_norm = norm_layer(config.norm, shared) if config.qk_norm else nn.Identity()
        self._reset()

    def _reset(self) -> None:
        for layer, gain in self._gains():
            nn.init.xavier_uniform_(layer.weight, gain=gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def _gains(self) -> Iterator[tuple[nn.Linear, float]]:
        # As in fairseq2: xavier's variance as for one joint q-k-v map, not for three single ones.
        yield from ((layer, 2**-0.5) for layer in (self.q_proj, self.k_proj, self.v_proj))
        yield self.output_proj, 1.0

    def queries(self, x_BSM: Tensor, rotation: Rotation | None = None) -> Tensor:
        """Return the query of each position, (B, H, S, W)."""
        q = split_heads(self.q_layer_norm(self.q_proj(x_BSM)), self.heads)
        return q if rotation is None else rotate(q, rotation)

    def keys_values(self, x_BSM: Tensor, rotation: Rotation | None = None) -> tuple[Tensor, Tensor]:
        """Return the key and value of each position, (B, kv_heads, S, W) each."""
        k = split_heads(self.k_layer_norm(self.k_proj(x_BSM)), self.kv_heads)
        v = split_heads(self.v_proj(x_BSM), self.kv_heads)
        return (k, v) if rotation is None else (rotate(k, rotation), v)

    def project(self, x_BSM: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return `queries` and `keys_values` of the same positions."""
        return self.queries(x_BSM, rotation), *self.keys_values(x_BSM, rotation)

    def alone(self, x: Tensor) -> Tensor:
        """Attend as positions that see only themselves do, (..., M) to (..., M).

        A single key has weight 1, so queries and keys do not matter.
        """
        return self.output_proj(self.share(self.v_proj(x)))

    def share(self, v: Tensor) -> Tensor:
        """Repeat each value head for its group of query heads, (..., kv_heads W) to (..., H W)."""
        groups = self.heads // self.kv_heads
        if groups == 1:
            return v
        heads = v.view(*v.shape[:-1], self.kv_heads, -1)
        return heads.repeat_interleave(groups, dim=-2).flatten(-2)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """Return the attention-weighted values with heads joined, (B, S, H W), not yet projected.

        `mask` is True, or 0 and not -inf, where a query sees a key and broadcasts to (B, H, S, K).
        """
        groups = self.heads // self.kv_heads
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        dropout = self.dropout if self.training else 0.0
        return _join(F.scaled_dot_product_attention(q, k, v, mask, dropout, causal))

    def forward(
        self,
        x_BSM: Tensor,
        rotation: Rotation | None = None,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        layer: int = 0,
        last_B: Tensor | None = None,
    ) -> Tensor:
        """Attend among the concepts of each row, (B, S, M) to (B, S, M).

        Without `mask`, attention is causal. With a `cache`, `x_BSM` attends to the cached concepts
        and to itself; rows beyond those of the cache are unconditional: each of their positions
        sees only itself. `last_B` is as in `Transformer.forward`.
        """
        q, k, v = self.project(x_BSM, rotation)
        count = q.shape[2]
        if last_B is not None:
            q = pick(q.transpose(1, 2), last_B).transpose(1, 2)
            mask = (torch.arange(count, device=q.device) <= last_B[:, None])[:, None, None]
        # A single position sees only itself and the cache, with or without the causal mask.
        causal = mask is None and count > 1
        if cache is None:
            y = self.attend(q, k, v, mask, causal)
        else:
            n = cache.rows
            cache.put(layer, k[:n], v[:n])
            y = self.attend(q[:n], *cache.read(layer, beyond=count), mask, causal)
            if n < len(x_BSM):
                y = torch.cat([y, self.share(_join(v[n:]))])
        return self.output_proj(y)


class FeedForward(nn.Module):
    """SwiGLU, or two linear maps with an activation between them."""

    def __init__(self, dim: int, config: TransformerConfig) -> None:
        super().__init__()
        inner = config.inner_dim
        self.gate_proj = nn.Linear(dim, inner, bias=config.bias) if config.gated else None
        self.inner_proj = nn.Linear(dim, inner, bias=config.bias)
        self.inner_layer_norm: nn.Module = nn.Identity()
        if config.norm_order == "normformer" and not config.gated:
            self.inner_layer_norm = nn.LayerNorm(inner, eps=EPSILON)
        self.output_proj = nn.Linear(inner, dim, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., M) to (..., M)."""
        inner = self.inner_proj(x)
        if self.gate_proj is not None:
            return self.output_proj(F.silu(self.gate_proj(x)) * inner)
        return self.output_proj(self.inner_layer_norm(self.activation(inner)))


class Block(nn.Module):
    """Self-attention and feed-forward, each added to the residual stream."""

    def __init__(self, dim: int, config: TransformerConfig) -> None:
        super().__init__()
        self.order = config.norm_order
        self.self_attn = Attention(dim, config)
        self.self_attn_layer_norm = norm_layer(config.norm, dim)
        self.self_attn_norm: nn.Module = nn.Identity()
        if self.order == "normformer":
            self.self_attn_norm = norm_layer(config.norm, dim)
        self.ffn = FeedForward(dim, config)
        self.ffn_layer_norm = norm_layer(config.norm, dim)
        self.dropout = nn.Dropout(config.dropout)
        self.residual_scale: nn.Parameter | None = None
        if config.residual_scale is not None:
            self.residual_scale = nn.Parameter(torch.full((dim,), config.residual_scale))

    def forward(
        self,
        x_BSM: Tensor,
        rotation: Rotation | None = None,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        layer: int = 0,
        last_B: Tensor | None = None,
    ) -> Tensor:
        """Map (B, S, M) to (B, S, M); all other arguments go to `Attention.forward`."""
        # Pre-norm and NormFormer: x + f(norm(x)). Post-norm: norm(x + f(x)).
        pre = self.order != "post"
        h = self.self_attn_layer_norm(x_BSM) if pre else x_BSM
        h = self.self_attn(h, rotation, mask, cache, layer, last_B)
        x_BSM = x_BSM if last_B is None else pick(x_BSM, last_B)
        x = x_BSM + self.dropout(self.self_attn_norm(h))
        x = x if pre else self.self_attn_layer_norm(x)
        h = self.dropout(self.ffn(self.ffn_layer_norm(x) if pre else x))
        x = (x if self.residual_scale is None else self.residual_scale * x) + h
        return x if pre else self.ffn_layer_norm(x)


class Transformer(nn.Module):
    """A stack of blocks with a final norm."""

    def __init__(self, dim: int, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.width = config.width(dim)
        self.layers = nn.ModuleList(Block(dim, config) for _ in range(config.layers))
        # Complex products take a tenth of the time on CPUs, but torch.compile has none.
        self.rope: Callable[[Tensor, Tensor], Rotation] = rope
        self.layer_norm = norm_layer(config.norm, dim) if config.final_norm else nn.Identity()
        self.dropout = nn.Dropout(config.final_dropout)

    def rotation(self, positions: Tensor) -> Rotation | None:
        """Return the rotation at `positions`, (S,) or (B, S), shaped to broadcast over heads.

        None if the stack has no rotary positions.
        """
        if self.config.positions != "rope":
            return None
        theta, scaling = self.config.rope_theta, self.config.rope_scaling
        rates = rope_rates(self.width, theta, scaling, str(positions.device))
        return self.rope(positions if positions.dim() == 1 else positions[:, None], rates)

    def forward(
        self,
        x_BSM: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
        last_B: Tensor | None = None,
    ) -> Tensor:
        """Contextualize (B, S, M).

        `mask` is True where a query sees a key and broadcasts to (B, H, S, K); without it,
        attention is causal. With a `cache`, the concepts follow those it holds and are written to
        it; call `cache.advance` to keep them. `last_B` spares most work of the last layer: only the
        output at this position of each row is returned, (B, 1, M). It needs causal attention, and
        an empty cache or none.
        """
        if cache is not None:
            mask = cache.mask(x_BSM.shape[1]) if mask is None else mask
            positions = cache.positions(x_BSM.shape[1]) if positions is None else positions
        elif positions is None:
            positions = torch.arange(x_BSM.shape[1], device=x_BSM.device)
        assert positions is not None
        rotation = self.rotation(positions)
        final = len(self.layers) - 1
        for number, block in enumerate(self.layers):
            last = last_B if number == final else None
            x_BSM = block(x_BSM, rotation, mask, cache, number, last)
        return self.dropout(self.layer_norm(x_BSM))


class Frontend(nn.Module):
    """The PreNet (paper 2.3.1): concepts to model width, with learned or fixed positions added."""

    def __init__(
        self,
        inputs: int,
        dim: int,
        config: TransformerConfig,
        max_length: int,
        *,
        scale: float = 1.0,
        weight_norm: bool = False,
    ) -> None:
        super().__init__()
        self.scale, self.positions = scale, config.positions
        self.pre_linear = linear(inputs, dim, weight_norm=weight_norm)
        self.pos_encoder: nn.Embedding | None = None
        if config.positions == "learned":
            self.pos_encoder = nn.Embedding(max_length, dim)
            nn.init.normal_(self.pos_encoder.weight, std=0.02)

    def forward(self, x_BSD: Tensor, positions: Tensor) -> Tensor:
        """Map concepts (B, S, D) at `positions`, (S,) or (B, S), to (B, S, M)."""
        x_BSM = self.pre_linear(x_BSD if self.scale == 1.0 else x_BSD * self.scale)
        if self.pos_encoder is not None:
            return x_BSM + self.pos_encoder(positions)
        if self.positions == "sine":
            return x_BSM + sinusoidal_positions(positions, x_BSM.shape[-1]).type_as(x_BSM)
        return x_BSM


class Projection(nn.Module):
    """The PostNet: model width back to concepts, with an optional activation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        activation: Activation | None = None,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.fc = nn.Linear(inputs, outputs, bias=bias)
        self.activation = None if activation is None else ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., M) to (..., D)."""
        y = self.fc(x)
        return y if self.activation is None else self.activation(y)


class AddedProjection(Projection):
    """A linear map that starts at zero: adding its output to a trained model changes nothing."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)
        nn.init.zeros_(self.fc.weight)


class TimeEmbedding(nn.Module):
    """The embedding of diffusion timesteps: 256 sinusoids and an MLP (Peebles and Xie 2023)."""

    FREQUENCIES = 256

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(self.FREQUENCIES, dim)
        self.fc2 = nn.Linear(dim, dim)
        for layer in (self.fc1, self.fc2):
            nn.init.normal_(layer.weight, std=0.02)  # as in DiT
            nn.init.zeros_(layer.bias)

    def waves(self, timesteps: Tensor) -> Tensor:
        """Return cosines and sines of `timesteps` (...) at decreasing frequencies, (..., 256).

        The cosines come first, and t is the raw step number, as in the official code.
        """
        half = self.FREQUENCIES // 2
        steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
        # Divided by half, not by half - 1 as in `sinusoidal_positions`: DiT's frequencies.
        angles = timesteps[..., None].float() * torch.exp(-math.log(10000.0) * steps / half)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)

    def forward(self, timesteps: Tensor) -> Tensor:
        """Embed timesteps (...) as (..., M)."""
        waves = self.waves(timesteps).to(self.fc1.bias.dtype)
        return self.fc2(F.silu(self.fc1(waves)))


def split_heads(x_BSF: Tensor, heads: int) -> Tensor:
    """Reshape (B, S, H W) to (B, H, S, W)."""
    return x_BSF.view(*x_BSF.shape[:-1], heads, x_BSF.shape[-1] // heads).transpose(1, 2)


def pick(x_BSM: Tensor, places_B: Tensor) -> Tensor:
    """Return one position of each row, (B, S, ...) to (B, 1, ...)."""
    return x_BSM[torch.arange(len(x_BSM), device=x_BSM.device), places_B][:, None]


def stacks(model: nn.Module) -> list[nn.ModuleList]:
    """Return a model's stacks of Transformer layers, whatever its architecture."""
    return [module for module in model.modules() if isinstance(module, nn.ModuleList)]


def _join(y_BHSW: Tensor) -> Tensor:
    return y_BHSW.transpose(1, 2).flatten(2)
