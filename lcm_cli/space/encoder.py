"""SONAR's text encoder: token ids of a sentence to its concept, in plain torch.

Equal to sonar-space's encoder (same weights, same numbers) without fairseq2, and padding-free:
see layers.py. Architecture: SONAR (Duquenne et al. 2023), section 4; masked mean pooling.

Shapes: S sentences, T tokens of the whole batch, M model dim = D concept dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lcm_cli.space.layers import Embedding, FeedForward, SelfAttention, Stack, blocks, positions


@dataclass(frozen=True)
class EncoderConfig:
    """Shapes of a text encoder; `max_length` counts tokens, language and end token included."""

    layers: int
    model_dim: int
    heads: int
    ffn_dim: int
    vocabulary: int
    max_length: int = 514


class EncoderLayer(nn.Module):
    """One pre-norm Transformer encoder layer."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(config.model_dim)
        self.self_attn = SelfAttention(config.model_dim, config.heads)
        self.ffn_layer_norm = nn.LayerNorm(config.model_dim)
        self.ffn = FeedForward(config.model_dim, config.ffn_dim)

    def forward(self, x_TM: Tensor, lengths: Sequence[int]) -> Tensor:
        """Map packed tokens (T, M) to (T, M)."""
        x_TM = x_TM + self.self_attn(self.self_attn_layer_norm(x_TM), lengths)
        return x_TM + self.ffn(self.ffn_layer_norm(x_TM))


class TextEncoder(nn.Module):
    """Token ids to concepts."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder_frontend = Embedding(config.vocabulary, config.model_dim, config.max_length)
        self.encoder = Stack(EncoderLayer(config) for _ in range(config.layers))
        self.layer_norm = nn.LayerNorm(config.model_dim)

    def forward(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Encode tokenized sentences; returns concepts (S, D) in the order given.

        The result of a row does not depend on the others: they share matrix products only.
        """
        device = self.layer_norm.weight.device
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        lengths = [len(rows[i]) for i in order]
        ids_T = torch.tensor([token for i in order for token in rows[i]], device=device)
        x_TM = self.encoder_frontend(ids_T, positions(lengths, device))
        for layer in self.encoder.layers:
            x_TM = layer(x_TM, lengths)
        pooled = _mean_pool(self.layer_norm(x_TM), lengths)
        back = torch.empty(len(order), dtype=torch.long)
        back[order] = torch.arange(len(order))
        return pooled[back.to(device)]


def _mean_pool(x_TM: Tensor, lengths: Sequence[int]) -> Tensor:
    spans = (
        x_TM[start : start + n * length].view(n, length, -1) for start, n, length in blocks(lengths)
    )
    return torch.cat([span.sum(dim=1) / span.shape[1] for span in spans])
