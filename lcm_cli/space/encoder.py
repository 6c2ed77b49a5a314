"""SONAR's text encoder: from the token ids of a sentence to its concept, in plain torch.

It computes the same as sonar-space's encoder, from the same weights, but without fairseq2 and
without padding (see transformer.py). Architecture: SONAR (Duquenne et al. 2023), section 4, with
mean pooling over tokens.

Shapes: S sentences, R rows, T tokens of the whole batch, M model dim = D concept dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lcm_cli.space.transformer import (
    Embedding,
    FeedForward,
    Packed,
    SelfAttention,
    Stack,
    pack_rows,
    to_device,
)


@dataclass(frozen=True)
class EncoderConfig:
    """Shapes of a text encoder; `max_length` counts tokens, including language and end token."""

    layers: int
    model_dim: int
    heads: int
    ffn_dim: int
    vocabulary: int
    max_length: int = 514


class EncoderLayer(nn.Module):
    """A pre-norm Transformer encoder layer."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(config.model_dim)
        self.self_attn = SelfAttention(config.model_dim, config.heads)
        self.ffn_layer_norm = nn.LayerNorm(config.model_dim)
        self.ffn = FeedForward(config.model_dim, config.ffn_dim)
        self.dropout = nn.Dropout(0.0)  # training sets the rate

    def forward(self, x_TM: Tensor, rows: Packed) -> Tensor:
        """Map packed tokens (T, M) to (T, M)."""
        x_TM = x_TM + self.dropout(self.self_attn(self.self_attn_layer_norm(x_TM), rows))
        return x_TM + self.dropout(self.ffn(self.ffn_layer_norm(x_TM)))


class TextEncoder(nn.Module):
    """The encoder: token ids to concepts."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder_frontend = Embedding(config.vocabulary, config.model_dim, config.max_length)
        self.encoder = Stack(EncoderLayer(config) for _ in range(config.layers))
        self.layer_norm = nn.LayerNorm(config.model_dim)

    def forward(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Encode tokenized sentences; return concepts (S, D) in the order given.

        Rows share matrix products but do not influence each other.
        """
        # Sorted by length, so that rows of one length are neighbours and attend in one call.
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        device = self.layer_norm.weight.device
        pooled = self.encode(pack_rows([rows[i] for i in order], device))
        # The place of each sentence in the sorted order.
        back = torch.empty(len(order), dtype=torch.long)
        back[order] = torch.arange(len(order))
        return pooled[to_device(back, device)]

    def encode(self, rows: Packed) -> Tensor:
        """Encode packed rows; return concepts (R, D). The concept of an empty row is zero."""
        x_TM = self.encoder_frontend(rows.ids_T, rows.positions_T)
        for layer in self.encoder.layers:
            x_TM = layer(x_TM, rows)
        return _mean_pool(self.layer_norm(x_TM), rows)


def _mean_pool(x_TM: Tensor, rows: Packed) -> Tensor:
    # Sum in float32: half precision would lose digits over long sentences.
    length_R1 = rows.starts_R1.diff().clamp(min=1)[:, None]
    sums_RM = x_TM.new_zeros(len(length_R1), x_TM.shape[1], dtype=torch.float32)
    return (sums_RM.index_add(0, rows.owner_T, x_TM.float()) / length_R1).to(x_TM.dtype)
