"""SONAR's text decoder: from a concept to the logits of a sentence in any language, in plain torch.

It computes the same as sonar-space's decoder. The cross-attention sees exactly one vector, the
concept, so its softmax has one entry and every position receives output_proj(v_proj(concept)). This
is computed once per sentence; the q, k and norm weights of the cross-attention have no effect and
are left out.

Shapes: R rows (one sentence in one language), T tokens of a packed batch, P past positions,
M model dim, D concept dim, H heads, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcm_cli.space.transformer import (
    Embedding,
    FeedForward,
    Packed,
    SelfAttention,
    Stack,
    pack_rows,
)


@dataclass(frozen=True)
class DecoderConfig:
    """Shapes of a text decoder; `max_length` counts tokens, including start and language token."""

    layers: int
    model_dim: int
    heads: int
    ffn_dim: int
    vocabulary: int
    concept_dim: int
    max_length: int = 512


class DecoderCache:
    """Keys and values of the tokens so far: per layer a buffer (room, 2, R, H, d), oldest first.

    The position comes first, so that appending a token writes one contiguous block and growing the
    buffer one contiguous copy.
    """

    GROWTH = 32  # positions added to a full buffer

    def __init__(self, layers: int) -> None:
        self.length = 0
        self._kv: list[Tensor | None] = [None] * layers

    def append(self, layer: int, k_RHd: Tensor, v_RHd: Tensor) -> tuple[Tensor, Tensor]:
        """Append one position to a layer; return its keys and values, (R, H, P + 1, d) each."""
        new = torch.stack([k_RHd, v_RHd])
        kv = self._kv[layer]
        if kv is None or len(kv) == self.length:
            room = new.new_empty(self.length + self.GROWTH, *new.shape)
            if kv is not None:
                room[: self.length] = kv
            self._kv[layer] = kv = room
        kv[self.length] = new
        k, v = kv[: self.length + 1].permute(1, 2, 3, 0, 4)
        return k, v

    def reorder(self, rows: Tensor) -> None:
        """Keep `rows` (R',) in this order; a row occurs twice where its beam has branched."""
        for layer, kv in enumerate(self._kv):
            if kv is not None:
                # Room for one more position only: beam search reorders at nearly every step.
                room = kv.new_empty(self.length + 1, 2, len(rows), *kv.shape[3:])
                torch.index_select(kv[: self.length], 2, rows, out=room[: self.length])
                self._kv[layer] = room


class CrossAttention(nn.Module):
    """Attention to a single vector, which reduces to two linear maps."""

    def __init__(self, dim: int, concept_dim: int) -> None:
        super().__init__()
        self.v_proj = nn.Linear(concept_dim, dim)
        self.output_proj = nn.Linear(dim, dim)

    def forward(self, concepts_RD: Tensor) -> Tensor:
        """Return the attention output of every position of each row, (R, M)."""
        return self.output_proj(self.v_proj(concepts_RD))


class DecoderLayer(nn.Module):
    """A pre-norm Transformer decoder layer."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(config.model_dim)
        self.self_attn = SelfAttention(config.model_dim, config.heads)
        self.encoder_decoder_attn = CrossAttention(config.model_dim, config.concept_dim)
        self.ffn_layer_norm = nn.LayerNorm(config.model_dim)
        self.ffn = FeedForward(config.model_dim, config.ffn_dim)
        self.dropout = nn.Dropout(0.0)  # training sets the rate

    def forward(self, x_TM: Tensor, rows: Packed, cross_TM: Tensor) -> Tensor:
        """Map packed tokens (T, M) to (T, M); `cross_TM` is each token's cross-attention."""
        y_TM = self.self_attn(self.self_attn_layer_norm(x_TM), rows, causal=True)
        x_TM = x_TM + self.dropout(y_TM) + cross_TM
        return x_TM + self.dropout(self.ffn(self.ffn_layer_norm(x_TM)))

    def step(self, x_RM: Tensor, cross_RM: Tensor, cache: DecoderCache, index: int) -> Tensor:
        """Map the newest token of each row, (R, M) to (R, M), as layer number `index`."""
        attention = self.self_attn
        y_RM = self.self_attn_layer_norm(x_RM)
        shape = (len(y_RM), attention.heads, -1)
        q, k, v = (
            p(y_RM).view(shape) for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        k, v = cache.append(index, k, v)
        y_RHd = F.scaled_dot_product_attention(q.unsqueeze(2), k, v).squeeze(2)
        x_RM = x_RM + attention.output_proj(y_RHd.reshape(len(y_RM), -1)) + cross_RM
        return x_RM + self.ffn(self.ffn_layer_norm(x_RM))


class TextDecoder(nn.Module):
    """The decoder: concepts to token logits."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder_frontend = Embedding(config.vocabulary, config.model_dim, config.max_length)
        layers = (DecoderLayer(config) for _ in range(config.layers))
        self.decoder = Stack(layers, norm_dim=config.model_dim)
        self.output: nn.Module | None = None

    def cross(self, concepts_RD: Tensor) -> list[Tensor]:
        """Return the cross-attention output of each layer, (R, M) each."""
        return [layer.encoder_decoder_attn(concepts_RD) for layer in self._layers()]

    def forward(self, concepts_RD: Tensor, rows: Sequence[Sequence[int]]) -> Tensor:
        """Return the last hidden state of each token under teacher forcing, packed, (T, M).

        `rows` are the input ids of each concept's sentence; sort them by length for speed.
        """
        return self.decode(concepts_RD, pack_rows(rows, concepts_RD.device))

    def decode(self, concepts_RD: Tensor, rows: Packed) -> Tensor:
        """Return the last hidden state of each token under teacher forcing, for packed rows."""
        x_TM = self.decoder_frontend(rows.ids_T, rows.positions_T)
        for layer, cross_RM in zip(self._layers(), self.cross(concepts_RD), strict=True):
            x_TM = layer(x_TM, rows, cross_RM.index_select(0, rows.owner_T))
        return self.decoder.layer_norm(x_TM)

    def step(self, ids_R: Tensor, cross: Sequence[Tensor], cache: DecoderCache) -> Tensor:
        """Feed one token to each row; return the logits of the next, (R, V)."""
        x_RM = self.decoder_frontend(ids_R, torch.full_like(ids_R, cache.length))
        for index, (layer, cross_RM) in enumerate(zip(self._layers(), cross, strict=True)):
            x_RM = layer.step(x_RM, cross_RM, cache, index)
        cache.length += 1
        return self.project(self.decoder.layer_norm(x_RM))

    def project(self, hidden: Tensor) -> Tensor:
        """Return the logits of hidden states, (..., M) to (..., V).

        Uses `output` if a faster projection was set there, else the tied token embedding.
        """
        if self.output is not None:
            return self.output(hidden)
        return F.linear(hidden, self.decoder_frontend.embed.weight)

    def _layers(self) -> list[DecoderLayer]:
        return cast(list[DecoderLayer], list(self.decoder.layers))
