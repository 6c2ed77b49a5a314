"""Transformer parts that the concept models share.

Pre-norm blocks with RMSNorm, rotary positions and SwiGLU are the paper's; the other styles are the
ones its official code offers, with that code's parameter names, so that its state dicts load as
they are. Documents are padded on the right and attention is causal, so no mask is ever needed for
padding: a real position never looks at one.

Shapes: B rows (documents), S concepts, K keys, M model dim, H heads, W head width.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcm_cli.models.config import Activation, Norm, RopeScaling, TransformerConfig

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
Rotation = tuple[Tensor, Tensor]  # factors of a channel and of its partner, (..., S, W)


def linear(inputs: int, outputs: int, *, bias: bool = True, weight_norm: bool = False) -> nn.Linear:
    """Return a linear map, its weight split into direction and length if `weight_norm`."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    if weight_norm:
        nn.utils.parametrizations.weight_norm(layer)
    return layer


def norm_layer(kind: Norm, dim: int) -> nn.Module:
    """Return a normalization over the last dimension of width `dim`."""
    if kind == "rms":
        return nn.RMSNorm(dim, eps=EPSILON)
    if kind == "unit":
        return nn.LayerNorm(dim, eps=EPSILON, elementwise_affine=False)
    if kind == "fp32":
        return Float32LayerNorm(dim, eps=EPSILON, bias=False)
    return nn.LayerNorm(dim, eps=EPSILON)


class Float32LayerNorm(nn.LayerNorm):
    """Layer normalization computed in float32 whatever comes in."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (..., M)."""
        shape = tuple(self.normalized_shape)
        return F.layer_norm(x.float(), shape, self.weight.float(), None, self.eps).type_as(x)


def sinusoidal_positions(positions: Tensor, dim: int) -> Tensor:
    """Return fixed position vectors (..., dim): sines in the first half, cosines after."""
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=positions.device)
    rates = torch.exp(steps * (-math.log(10000.0) / (half - 1)))
    angles = positions[..., None].float() * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


@cache
def rope_rates(
    width: int, theta: float, scaling: RopeScaling | None = None, device: str = "cpu"
) -> Tensor:
    """Return the angle each pair of channels turns per position, (W / 2,)."""
    rates = theta ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    if scaling is None:
        return rates.to(device)
    # Llama 3: slow rotations are slowed further, fast ones kept, those between blended.
    turns = scaling.original_length * rates / (2 * math.pi)
    low, high = scaling.low_frequency, scaling.high_frequency
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (rates * (kept + (1 - kept) / scaling.factor)).to(device)


def rope(positions: Tensor, rates: Tensor) -> Rotation:
    """Return the rotation at `positions` (...), for `rotate`: (..., W) each."""
    angles = positions[..., None].float() * rates
    cos, sin = angles.cos(), angles.sin()
    # A pair (a, b) becomes (a cos - b sin, b cos + a sin).
    return torch.stack((cos, cos), dim=-1).flatten(-2), torch.stack((-sin, sin), dim=-1).flatten(-2)


def rotate(x_BHSW: Tensor, rotation: Rotation) -> Tensor:
    """Turn neighbouring channel pairs by their position's angle (RoPE)."""
    own, partner = rotation
    x = x_BHSW.float()
    swapped = x.view(*x.shape[:-1], -1, 2).flip(-1).view(x.shape)
    return torch.addcmul(x * own, swapped, partner).type_as(x_BHSW)


def standing(segments_BS: Tensor) -> Tensor:
    """Return where in its document each concept of packed rows stands, (B, S).

    `segments_BS` numbers the documents of each row.
    """
    places_S = torch.arange(segments_BS.shape[1], device=segments_BS.device)
    begins_BS = F.pad(segments_BS.diff(dim=1) != 0, (1, 0), value=True)
    return places_S - torch.where(begins_BS, places_S, 0).cummax(dim=1).values


def packed_mask(segments_BS: Tensor) -> Tensor:
    """Return who sees whom in packed rows, (B, 1, S, S): causally, within a document."""
    same_BSS = segments_BS[:, :, None] == segments_BS[:, None, :]
    return same_BSS.tril()[:, None]


class KeyValueCache:
    """Keys and values of every layer, for rows that grow a concept at a time.

    Rows may have different lengths: row b writes at `lengths_B[b]` and sees what lies before.
    A forward pass writes; `advance` makes what was written count. What is written and not counted
    is overwritten by the next pass, which is how a denoiser tries its noisy concept again and again
    against the same context.
    """

    def __init__(
        self, layers: int, rows: int, capacity: int, device: torch.device | None = None
    ) -> None:
        self.capacity = capacity
        self.keys: list[Tensor] = [torch.empty(0)] * layers
        self.values: list[Tensor] = [torch.empty(0)] * layers
        self.lengths_B = torch.zeros(rows, dtype=torch.long, device=device)
        self._even = True  # all rows equally long: slices serve, no mask is needed
        self._used = 0

    @property
    def rows(self) -> int:
        """Number of rows held."""
        return len(self.lengths_B)

    def positions(self, count: int) -> Tensor:
        """Return where the next `count` concepts stand: (S,) if rows are even, else (B, S)."""
        steps = torch.arange(count, device=self.lengths_B.device)
        return steps + self._used if self._even else self.lengths_B[:, None] + steps

    def mask(self, count: int) -> Tensor | None:
        """Return what the next `count` concepts may see, (B or 1, 1, S, K); None is everything."""
        if self._even and count == 1:
            return None
        keys = torch.arange(self._used + count, device=self.lengths_B.device)
        visible = keys <= self.positions(count)[..., None]
        return visible[None, None] if self._even else visible[:, None]

    def filled(self) -> Tensor | None:
        """Return which keys of `read` hold something, (B, 1, 1, K); None is all of them."""
        if self._even:
            return None
        keys = torch.arange(self._used, device=self.lengths_B.device)
        return (keys < self.lengths_B[:, None])[:, None, None]

    def put(self, layer: int, k_BHSW: Tensor, v_BHSW: Tensor) -> None:
        """Write behind each row's end."""
        self.keys[layer] = self._write(self.keys[layer], k_BHSW)
        self.values[layer] = self._write(self.values[layer], v_BHSW)

    def read(self, layer: int, beyond: int = 0) -> tuple[Tensor, Tensor]:
        """Return all keys and values, and `beyond` that do not count yet, (B, H, K, W) each."""
        end = self._used + beyond
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def _write(self, store: Tensor, x_BHSW: Tensor) -> Tensor:
        rows, heads, count, width = x_BHSW.shape
        if store.numel() == 0:
            store = x_BHSW.new_zeros(rows, heads, self.capacity, width)
        if self._even:
            store[:, :, self._used : self._used + count] = x_BHSW
        else:
            rows_B1 = torch.arange(rows, device=store.device)[:, None]
            store[rows_B1, :, self.positions(count)] = x_BHSW.transpose(1, 2)
        return store

    def advance(self, counts: Tensor | int) -> None:
        """Count `counts` of the written concepts (one number, or one a row) as seen."""
        self.lengths_B = self.lengths_B + counts
        if isinstance(counts, int):
            self._used += counts
        else:
            self._measure()

    def keep(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row may be named twice."""
        self.lengths_B = self.lengths_B[rows]
        self.keys = [store[rows] if store.numel() else store for store in self.keys]
        self.values = [store[rows] if store.numel() else store for store in self.values]
        self._measure()

    def _measure(self) -> None:
        lengths = self.lengths_B.tolist()
        self._used = max(lengths, default=0)
        self._even = min(lengths, default=0) == self._used


class Attention(nn.Module):
    """Multi-head attention; with fewer key heads than query heads it is grouped."""

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
        # Three maps feed one product: the smaller gain keeps its variance, as fairseq2 does.
        yield from ((layer, 2**-0.5) for layer in (self.q_proj, self.k_proj, self.v_proj))
        yield self.output_proj, 1.0

    def queries(self, x_BSM: Tensor, rotation: Rotation | None = None) -> Tensor:
        """Return what each position asks for, (B, H, S, W)."""
        q = split_heads(self.q_layer_norm(self.q_proj(x_BSM)), self.heads)
        return q if rotation is None else rotate(q, rotation)

    def keys_values(self, x_BSM: Tensor, rotation: Rotation | None = None) -> tuple[Tensor, Tensor]:
        """Return what each position offers: keys and values, (B, H, S, W) each."""
        k = split_heads(self.k_layer_norm(self.k_proj(x_BSM)), self.kv_heads)
        v = split_heads(self.v_proj(x_BSM), self.kv_heads)
        return (k, v) if rotation is None else (rotate(k, rotation), v)

    def project(self, x_BSM: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of the same positions, (B, H, S, W) each."""
        return self.queries(x_BSM, rotation), *self.keys_values(x_BSM, rotation)

    def alone(self, x: Tensor) -> Tensor:
        """Return what positions that see themselves only get, (..., M) to (..., M).

        With a single key its weight is 1: queries and keys do not matter.
        """
        return self.output_proj(self.share(self.v_proj(x)))

    def share(self, v: Tensor) -> Tensor:
        """Give every query head its value head, (..., kv_heads W) to (..., H W)."""
        groups = self.heads // self.kv_heads
        if groups == 1:
            return v
        heads = v.view(*v.shape[:-1], self.kv_heads, -1)
        return heads.repeat_interleave(groups, dim=-2).flatten(-2)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """Return the mixed values with the heads joined, (B, S, H W), not yet projected."""
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
    ) -> Tensor:
        """Attend among the concepts of each row, (B, S, M) to (B, S, M).

        Without `mask` and `cache`, causally. With a `cache`, to what it holds and to `x_BSM`
        itself; rows beyond the cache's are unconditional: each of their positions sees itself only.
        """
        q, k, v = self.project(x_BSM, rotation)
        if cache is None:
            y = self.attend(q, k, v, mask, causal=mask is None and q.shape[2] > 1)
        else:
            n = cache.rows
            cache.put(layer, k[:n], v[:n])
            y = self.attend(q[:n], *cache.read(layer, beyond=q.shape[2]), mask)
            if n < len(x_BSM):
                y = torch.cat([y, self.share(_join(v[n:]))])
        return self.output_proj(y)


class FeedForward(nn.Module):
    """SwiGLU, or two linear maps with an activation between."""

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
    """Self-attention and feed-forward, each on a residual stream."""

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
    ) -> Tensor:
        """Return the stream after both parts; the rest is for `Attention.forward`."""
        pre = self.order != "post"
        h = self.self_attn_layer_norm(x_BSM) if pre else x_BSM
        h = self.self_attn(h, rotation, mask, cache, layer)
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
        self.layer_norm = norm_layer(config.norm, dim) if config.final_norm else nn.Identity()
        self.dropout = nn.Dropout(config.final_dropout)

    def rotation(self, positions: Tensor) -> Rotation | None:
        """Return the rotary angles at `positions`, (S,) or (B, S), to broadcast over heads."""
        if self.config.positions != "rope":
            return None
        theta, scaling = self.config.rope_theta, self.config.rope_scaling
        rates = rope_rates(self.width, theta, scaling, str(positions.device))
        return rope(positions if positions.dim() == 1 else positions[:, None], rates)

    def forward(
        self,
        x_BSM: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Contextualize (B, S, M).

        Without `mask` (True where a query may look, broadcast to (B, H, S, S)) attention is
        causal. With a `cache` the concepts are written to it; call `cache.advance` to keep them.
        """
        if cache is not None:
            mask = cache.mask(x_BSM.shape[1]) if mask is None else mask
            positions = cache.positions(x_BSM.shape[1]) if positions is None else positions
        elif positions is None:
            positions = torch.arange(x_BSM.shape[1], device=x_BSM.device)
        assert positions is not None
        rotation = self.rotation(positions)
        for number, block in enumerate(self.layers):
            x_BSM = block(x_BSM, rotation, mask, cache, number)
        return self.dropout(self.layer_norm(x_BSM))


class Frontend(nn.Module):
    """The PreNet (paper 2.3.1): concepts to model width, plus learned or fixed positions."""

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
        """Map (B, S, D) standing at `positions`, (S,) or (B, S), to (B, S, M)."""
        x_BSM = self.pre_linear(x_BSD if self.scale == 1.0 else x_BSD * self.scale)
        if self.pos_encoder is not None:
            return x_BSM + self.pos_encoder(positions)
        if self.positions == "sine":
            return x_BSM + sinusoidal_positions(positions, x_BSM.shape[-1]).type_as(x_BSM)
        return x_BSM


class Projection(nn.Module):
    """The PostNet: model width back to concepts, with an optional activation."""

    def __init__(self, inputs: int, outputs: int, activation: Activation | None = None) -> None:
        super().__init__()
        self.fc = nn.Linear(inputs, outputs)
        self.activation = None if activation is None else ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., M) to (..., D)."""
        y = self.fc(x)
        return y if self.activation is None else self.activation(y)


class TimeEmbedding(nn.Module):
    """Diffusion steps as vectors: 256 sinusoids and two linear maps (Peebles and Xie 2023)."""

    FREQUENCIES = 256

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(self.FREQUENCIES, dim)
        self.fc2 = nn.Linear(dim, dim)
        for layer in (self.fc1, self.fc2):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def waves(self, timesteps: Tensor) -> Tensor:
        """Return cosines and sines of `timesteps` (...) at falling frequencies, (..., 256)."""
        half = self.FREQUENCIES // 2
        steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
        angles = timesteps[..., None].float() * torch.exp(-math.log(10000.0) * steps / half)
        return torch.cat([angles.cos(), angles.sin()], dim=-1)

    def forward(self, timesteps: Tensor) -> Tensor:
        """Embed (...) as (..., M)."""
        waves = self.waves(timesteps).to(self.fc1.bias.dtype)
        return self.fc2(F.silu(self.fc1(waves)))


def split_heads(x_BSF: Tensor, heads: int) -> Tensor:
    """Return (B, S, H W) as (B, H, S, W)."""
    return x_BSF.view(*x_BSF.shape[:-1], heads, x_BSF.shape[-1] // heads).transpose(1, 2)


def _join(y_BHSW: Tensor) -> Tensor:
    return y_BHSW.transpose(1, 2).flatten(2)
