"""The speech encoder: from the features of an utterance to its concept, in plain torch.

A w2v-BERT 2.0 encoder (Conformer blocks with relative positions; Gulati et al. 2020, Dai et al.
2019, appendix B) and an attention pooling layer: a learned query that reads the frames through the
layers of a Transformer decoder. It computes the same as sonar-space's speech encoders (SONAR,
Duquenne et al. 2023, section 4.2), from the same weights under the same names, with these
simplifications, all exact:
- the pooling's embedding of <s> and its position are one vector, `query`;
- the query's attention to itself is a linear map, because a single position has weight 1;
- convolutions over single frames are linear maps.

Shapes: N rows, L frames of the longest row, F features of a frame, M model dim, H heads,
d head dim, D concept dim.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcm_cli.space.decoder import CrossAttention
from lcm_cli.space.transformer import FeedForward, Stack
from lcm_cli.speech.config import SpeechShapes

_MOMENTUM = 0.1  # of the running statistics, in training


class SwishFeedForward(FeedForward):
    """Two linear maps with a SiLU between them."""

    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__(dim, inner_dim)
        self.inner_dropout = nn.Dropout(0.0)  # training sets the rate

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., M) to (..., M)."""
        inner = F.silu(self.inner_proj(x), inplace=not torch.is_grad_enabled())
        return self.output_proj(self.inner_dropout(inner))


def relative_sinusoids(length: int, dim: int, like: Tensor) -> Tensor:
    """Return the table (2 * length - 1, dim) of distances length - 1, ..., 0, ..., 1 - length.

    Sines and cosines alternate. The table has the type and device of `like`.
    """
    rates = torch.exp(torch.arange(0, dim, 2, device=like.device) * (-math.log(10000.0) / dim))
    distances = torch.arange(length - 1, -length, -1.0, device=like.device)
    angles = torch.outer(distances, rates)
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1).to(like.dtype)


class RelativeBias(nn.Module):
    """The part of the attention that depends on relative positions (Dai et al. 2019)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.u_bias = nn.Parameter(torch.empty(heads, dim // heads))
        self.v_bias = nn.Parameter(torch.empty(heads, dim // heads))
        self.r_proj = nn.Linear(dim, dim, bias=False)
        nn.init.normal_(self.u_bias, std=0.1)
        nn.init.normal_(self.v_bias, std=0.1)

    def forward(self, q_NHLd: Tensor, table_PM: Tensor) -> Tensor:
        """Return the scaled scores (N, H, L, L) of all pairs of frames by their distance."""
        rows, heads, length, width = q_NHLd.shape
        r_HdP = self.r_proj(table_PM).view(-1, heads, width).permute(1, 2, 0)
        query_NHLd = (q_NHLd + self.v_bias[:, None]) * width**-0.5
        all_NHLP = (query_NHLd @ r_HdP).contiguous()
        # Frame i needs L of the P = 2L - 1 distances, those from index L - 1 - i on: a view of rows
        # that are P - 1 apart instead of P.
        line = 2 * length - 1
        strides = (heads * length * line, length * line, line - 1, 1)
        return all_NHLP.as_strided((rows, heads, length, length), strides, length - 1)


class RelativeAttention(nn.Module):
    """Multi-head attention of frames to each other, with relative positions."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.sdpa = RelativeBias(dim, heads)

    def forward(self, x_NLM: Tensor, table_PM: Tensor, mask_NL: Tensor | None) -> Tensor:
        """Attend within each row to the frames in `mask_NL`, by default to all."""
        q, k, v = (p(x_NLM) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        bias_NHLL = self.sdpa(q, table_PM)
        if mask_NL is None:
            bias_NHLL = bias_NHLL.contiguous()  # kernels on GPUs need aligned rows
        else:
            bias_NHLL = bias_NHLL.masked_fill(~mask_NL[:, None, None], -torch.inf)
        # The kernel scales the products of q and k; the bias is scaled already.
        y = F.scaled_dot_product_attention(q + self.sdpa.u_bias[:, None], k, v, attn_mask=bias_NHLL)
        return self.output_proj(y.transpose(1, 2).flatten(2))


class FrameNorm(nn.Module):
    """Batch normalization of channels over the frames of a batch, padding excluded."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, x_NML: Tensor, mask_NL: Tensor | None) -> Tensor:
        """Normalize (N, M, L) with the running statistics, or those of the batch in training."""
        if not self.training or mask_NL is None:
            return self._norm(x_NML)
        # The frames that count as one (frames, M) matrix, whose axis 1 holds the channels, too.
        x_NLM = x_NML.transpose(1, 2)
        y_NLM = torch.zeros_like(x_NLM)
        y_NLM[mask_NL] = self._norm(x_NLM[mask_NL])
        return y_NLM.transpose(1, 2)

    def _norm(self, x: Tensor) -> Tensor:
        running = self.running_mean, self.running_var
        return F.batch_norm(x, *running, self.weight, self.bias, self.training, _MOMENTUM)


class ConvolutionModule(nn.Module):
    """The Conformer's convolution over neighbouring frames (Gulati et al. 2020, figure 2)."""

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.pointwise_conv1 = nn.Linear(dim, 2 * dim, bias=False)
        self.depthwise_conv = nn.Conv1d(dim, dim, kernel, padding="same", groups=dim, bias=False)
        self.batch_norm = FrameNorm(dim)
        self.pointwise_conv2 = nn.Linear(dim, dim, bias=False)

    def forward(self, x_NLM: Tensor, mask_NL: Tensor | None) -> Tensor:
        """Map (N, L, M) to (N, L, M)."""
        if mask_NL is not None:  # no row may depend on its padding
            x_NLM = x_NLM * mask_NL[:, :, None]
        x_NML = F.glu(self.pointwise_conv1(x_NLM)).transpose(1, 2)
        x_NML = F.silu(self.batch_norm(self.depthwise_conv(x_NML), mask_NL))
        return self.pointwise_conv2(x_NML.transpose(1, 2))


class ConformerLayer(nn.Module):
    """A Conformer block: half a feed-forward, attention, convolution, half a feed-forward."""

    def __init__(self, config: SpeechShapes) -> None:
        super().__init__()
        dim = config.model_dim
        self.ffn1_layer_norm = nn.LayerNorm(dim)
        self.ffn1 = SwishFeedForward(dim, config.ffn_dim)
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.self_attn = RelativeAttention(dim, config.heads)
        self.conv_layer_norm = nn.LayerNorm(dim)
        self.conv = ConvolutionModule(dim, config.kernel)
        self.ffn2_layer_norm = nn.LayerNorm(dim)
        self.ffn2 = SwishFeedForward(dim, config.ffn_dim)
        self.layer_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(0.0)  # training sets the rate

    def forward(self, x: Tensor, table_PM: Tensor, mask_NL: Tensor | None) -> Tensor:
        """Map frames (N, L, M) to (N, L, M)."""
        # Half a feed-forward before the others and half behind, as in Macaron-Net (Lu et al. 2019).
        x = x + self.dropout(0.5 * self.ffn1(self.ffn1_layer_norm(x)))
        x = x + self.dropout(self.self_attn(self.self_attn_layer_norm(x), table_PM, mask_NL))
        x = x + self.dropout(self.conv(self.conv_layer_norm(x), mask_NL))
        x = x + self.dropout(0.5 * self.ffn2(self.ffn2_layer_norm(x)))
        return self.layer_norm(x)


class Frontend(nn.Module):
    """The map from features to the model dim."""

    def __init__(self, config: SpeechShapes) -> None:
        super().__init__()
        self.post_extract_layer_norm = nn.LayerNorm(config.features)
        self.model_dim_proj = nn.Linear(config.features, config.model_dim)
        self.dropout = nn.Dropout(0.0)  # training sets the rate

    def forward(self, x_NLF: Tensor) -> Tensor:
        """Map features (N, L, F) to (N, L, M)."""
        return self.dropout(self.model_dim_proj(self.post_extract_layer_norm(x_NLF)))


class QueryAttention(nn.Module):
    """Multi-head attention of one query to the frames of its row."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)

    def forward(self, x_NM: Tensor, frames_NLM: Tensor, mask_NL: Tensor | None) -> Tensor:
        """Map the queries (N, M) to (N, M)."""
        q, k, v = self.q_proj(x_NM[:, None]), self.k_proj(frames_NLM), self.v_proj(frames_NLM)
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        mask = None if mask_NL is None else mask_NL[:, None, None]
        y_NH1d = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.output_proj(y_NH1d.flatten(1))


class PoolLayer(nn.Module):
    """A post-norm Transformer decoder layer for a single position."""

    def __init__(self, config: SpeechShapes) -> None:
        super().__init__()
        dim = config.model_dim
        self.self_attn = CrossAttention(dim, dim)  # of a single position to itself
        self.self_attn_layer_norm = nn.LayerNorm(dim)
        self.encoder_decoder_attn = QueryAttention(dim, config.pool_heads)
        self.encoder_decoder_attn_layer_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, config.pool_ffn_dim)
        self.ffn_layer_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(0.0)  # training sets the rate

    def forward(self, x_NM: Tensor, frames_NLM: Tensor, mask_NL: Tensor | None) -> Tensor:
        """Map the queries (N, M) to (N, M)."""
        x = self.self_attn_layer_norm(x_NM + self.dropout(self.self_attn(x_NM)))
        read = self.encoder_decoder_attn(x, frames_NLM, mask_NL)
        x = self.encoder_decoder_attn_layer_norm(x + self.dropout(read))
        return self.ffn_layer_norm(x + self.dropout(self.ffn(x)))


class Pooler(nn.Module):
    """The attention pooling: from the frames of a row to its concept."""

    def __init__(self, config: SpeechShapes) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(config.model_dim))
        nn.init.normal_(self.query)
        self.decoder = Stack(PoolLayer(config) for _ in range(config.pool_layers))
        self.projection_out = nn.Linear(config.model_dim, config.concept_dim, bias=False)

    def forward(self, frames_NLM: Tensor, mask_NL: Tensor | None) -> Tensor:
        """Pool frames (N, L, M) to concepts (N, D)."""
        x_NM = self.query.expand(len(frames_NLM), -1)
        for layer in self.decoder.layers:
            x_NM = layer(x_NM, frames_NLM, mask_NL)
        return self.projection_out(x_NM)


class SpeechEncoder(nn.Module):
    """The encoder: features of utterances to concepts."""

    def __init__(self, config: SpeechShapes) -> None:
        super().__init__()
        self.config = config
        self.encoder_frontend = Frontend(config)
        self.encoder = Stack(ConformerLayer(config) for _ in range(config.layers))
        self.layer_norm = nn.LayerNorm(config.model_dim)
        self.final_dropout = nn.Dropout(0.0)  # training sets the rate
        self.encoder_pooler = Pooler(config)

    def forward(self, features_NLF: Tensor, lengths_N: Tensor) -> Tensor:
        """Encode features (N, L, F), of which `lengths_N` frames count; return concepts (N, D).

        Padding does not influence the concepts. Every row must have at least one frame.
        """
        length = features_NLF.shape[1]
        mask_NL = _frame_mask(lengths_N.to(features_NLF.device), length)
        x_NLM = self.encoder_frontend(features_NLF)
        table_PM = relative_sinusoids(length, self.config.model_dim, x_NLM)
        for layer in self.encoder.layers:
            x_NLM = layer(x_NLM, table_PM, mask_NL)
        return self.encoder_pooler(self.final_dropout(self.layer_norm(x_NLM)), mask_NL)


def _frame_mask(lengths_N: Tensor, length: int) -> Tensor | None:
    """Return the mask (N, L) of the frames that are not padding; None if there is none."""
    if bool((lengths_N == length).all()):
        return None
    return torch.arange(length, device=lengths_N.device) < lengths_N[:, None]
