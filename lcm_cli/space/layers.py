"""The Transformer blocks that SONAR's text encoder and decoder share (pre-norm, ReLU, sinusoids).

Sequences are packed, never padded: the rows of a batch lie end to end in one (T, M) matrix, sorted
by length, and only attention looks at the borders. Parameter names are those of the official
checkpoints, so a state dict loads as it is.

Shapes: T tokens of the whole batch, M model dim, H heads, L length of a row, N rows of one length.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Sinusoids start here: fairseq counted positions from padding index + 1, with padding index 1.
# (The tokenizer's own padding index is 0; taking that is silently wrong for the real weights.)
FIRST_POSITION = 2


def sinusoids(length: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Return the fixed position table (length, dim): sines in the first half, cosines after."""
    half = dim // 2
    rates = torch.exp(torch.arange(half, dtype=torch.float32) * (-math.log(10000.0) / (half - 1)))
    steps = torch.arange(FIRST_POSITION, FIRST_POSITION + length, dtype=torch.float32)
    angles = torch.outer(steps, rates)
    return torch.cat([angles.sin(), angles.cos()], dim=1).to(device)


def blocks(lengths: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield (first token, rows, length) for every run of equal neighbours in `lengths`."""
    start = 0
    for length, run in groupby(lengths):
        rows = sum(1 for _ in run)
        yield start, rows, length
        start += rows * length


def positions(lengths: Sequence[int], device: torch.device | None = None) -> Tensor:
    """Return the position of each token in its row, (T,), for rows that lie end to end."""
    return torch.cat([torch.arange(length) for length in lengths]).to(device)


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)

    def forward(self, x_TM: Tensor, lengths: Sequence[int], causal: bool = False) -> Tensor:
        """Attend within each row of the packed (T, M) batch."""
        q, k, v = self.q_proj(x_TM), self.k_proj(x_TM), self.v_proj(x_TM)
        pieces = []
        for start, rows, length in blocks(lengths):
            span = slice(start, start + rows * length)
            split = (rows, length, self.heads, -1)
            q_NHLd, k_NHLd, v_NHLd = (t[span].view(split).transpose(1, 2) for t in (q, k, v))
            y = F.scaled_dot_product_attention(q_NHLd, k_NHLd, v_NHLd, is_causal=causal)
            pieces.append(y.transpose(1, 2).reshape(rows * length, -1))
        return self.output_proj(torch.cat(pieces))


class FeedForward(nn.Module):
    """Two linear maps with a ReLU between them."""

    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        self.inner_proj = nn.Linear(dim, inner_dim)
        self.output_proj = nn.Linear(inner_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., M) to (..., M)."""
        return self.output_proj(F.relu(self.inner_proj(x), inplace=not torch.is_grad_enabled()))


class Embedding(nn.Module):
    """Token embedding scaled by sqrt(M), plus sinusoidal positions."""

    def __init__(self, vocabulary: int, dim: int, max_length: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, dim)
        self.max_length = max_length
        self._table: Tensor | None = None

    def forward(self, ids_T: Tensor, positions_T: Tensor) -> Tensor:
        """Embed token ids (T,) at positions (T,) as (T, M)."""
        x = self.embed(ids_T) * math.sqrt(self.embed.embedding_dim)
        return (x.float() + self._sinusoids()[positions_T]).to(x.dtype)

    def _sinusoids(self) -> Tensor:
        # Built on first use: networks are created on the meta device, where it has no content.
        weight = self.embed.weight
        if self._table is None or self._table.device != weight.device:
            self._table = sinusoids(self.max_length, weight.shape[1], weight.device)
        return self._table


class Stack(nn.Module):
    """Layers under the name that the official checkpoints give them, and a last norm if any."""

    def __init__(self, layers: Iterable[nn.Module], norm_dim: int = 0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.layer_norm = nn.LayerNorm(norm_dim) if norm_dim else nn.Identity()
