"""SONAR's text decoder: from a concept to the logits of a sentence in any language, in plain torch.

It computes the same as sonar-space's decoder. The cross-attention sees exactly one vector, the
concept, so its softmax has one entry and every position receives output_proj(v_proj(concept)). This
is computed once per sentence; the q, k and norm weights of the cross-attention have no effect and
are left out.

Shapes: S sentences (each in one language), B beams of each, R = S B rows, T tokens of a packed
batch, P past positions, M model dim, D concept dim, H heads, d head dim, V vocabulary.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lcm_cli.space.norms import add_norm
from lcm_cli.space.transformer import (
    Embedding,
    FeedForward,
    Joined,
    Packed,
    SelfAttention,
    Stack,
    pack_rows,
    to_device,
)


@dataclass(frozen=True)
class DecoderConfig:
    """Shapes of a text decoder; `max_length` counts tokens, including start and language token.

    `scores_language`: whether the log probability of the language token, which is given, counts in
    the score of a sentence, as in fairseq2. Where no training has taught a decoder to predict it,
    it is a large arbitrary constant, which divided by the length favours long sentences.
    """

    layers: int
    model_dim: int
    heads: int
    ffn_dim: int
    vocabulary: int
    concept_dim: int
    max_length: int = 512
    scores_language: bool = True


class Cache(Protocol):
    """Keeps the keys and values of the tokens so far, for `TextDecoder.step`."""

    def joined(self, layer: int) -> Joined | None:
        """Return the layer's joined maps to queries, keys and values, if they are kept."""

    def position(self, ids_R: Tensor) -> Tensor:
        """Return the position of the next tokens, one or (R,)."""

    def mask(self, like: Tensor) -> Tensor | None:
        """Return what to add to the next position's scores, in the dtype of `like`."""

    def attend(
        self, layer: int, q_RHd: Tensor, k_RHd: Tensor, v_RHd: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Append one position to a layer; return the attention of its queries, (R, M).

        `mask` is what `mask` returned for this position.
        """

    def advance(self) -> None:
        """Go on to the next position: all layers have this one."""


class DecoderCache:
    """Keys and values of the tokens so far: per layer a buffer (2, S, room, B, H, d).

    Nothing moves when beams branch: at every position each beam writes to its own slot among the B
    of its sentence, and `_slots` (S, B, P) holds the slots of its ancestors. A beam attends to all
    slots of its sentence, under a mask that hides those of other lines.
    """

    GROWTH = 32  # positions added to a full buffer

    def __init__(self, layers: int, sentences: int) -> None:
        self.length = 0
        self._sentences = sentences
        self._kv: list[Tensor | None] = [None] * layers
        self._slots: Tensor | None = None  # None: one beam per sentence, which sees all keys

    def joined(self, layer: int) -> Joined | None:
        """Return None: nothing is kept of the layers."""
        return None

    def position(self, ids_R: Tensor) -> Tensor:
        """Return the position of the next token of each row, (R,)."""
        return torch.full_like(ids_R, self.length)

    def advance(self) -> None:
        """Go on to the next position."""
        self.length += 1

    def attend(
        self, layer: int, q_RHd: Tensor, k_RHd: Tensor, v_RHd: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Append one position to a layer; return the attention of its queries, (R, M)."""
        return attend_slots(q_RHd, *self._append(layer, k_RHd, v_RHd), mask)

    def _append(self, layer: int, k_RHd: Tensor, v_RHd: Tensor) -> tuple[Tensor, Tensor]:
        """Append one position to a layer; return its keys and values, (S, H, (P + 1) B, d) each."""
        new = torch.stack([k_RHd, v_RHd]).unflatten(1, (self._sentences, -1))
        kv = self._kv[layer]
        if kv is None or kv.shape[2] == self.length:
            room = new.new_empty(*new.shape[:2], self.length + self.GROWTH, *new.shape[2:])
            if kv is not None:
                room[:, :, : self.length] = kv[:, : self._sentences]
            self._kv[layer] = kv = room
        kv = kv[:, : self._sentences]
        kv[:, :, self.length] = new
        # Positions and slots become one axis of keys, position by position.
        k, v = kv[:, :, : self.length + 1].flatten(2, 3).transpose(2, 3)
        return k, v

    def mask(self, like: Tensor) -> Tensor | None:
        """Return what to add to the next position's scores, (S, 1, B, (P + 1) B); None: nothing.

        It has the dtype of `like`.
        """
        if self._slots is None:
            return None
        own_B = torch.arange(self._slots.shape[1], device=like.device)
        # Compares every key's slot with that of each beam's line, in the order of `_append`.
        hidden = (self._lines(own_B)[..., None] != own_B).flatten(2)
        # Rows start at multiples of 8 numbers, as the memory-efficient kernel needs on a GPU.
        size = hidden.shape[2]
        mask = like.new_zeros(*hidden.shape[:2], -(-size // 8) * 8)[..., :size]
        return mask.masked_fill_(hidden, -torch.inf)[:, None]

    def follow(self, beams_SB: Tensor) -> None:
        """Continue beam `beams_SB` of each sentence; the first call turns one beam into B."""
        own_B = torch.arange(beams_SB.shape[1], device=beams_SB.device)
        if self._slots is not None:
            lines_SBP = self._lines(own_B)
            index = beams_SB[..., None].expand(-1, -1, lines_SBP.shape[2])
            self._slots = lines_SBP.gather(1, index)
        elif len(own_B) > 1:
            self._kv = [None if kv is None else self._copied(kv, len(own_B)) for kv in self._kv]
            self._slots = own_B[:, None].expand(self._sentences, -1, self.length)

    def keep(self, sentences: Sequence[int]) -> None:
        """Keep these sentences, in this order; only those that change places are moved."""
        self._sentences = len(sentences)
        moves = [(place, s) for place, s in enumerate(sentences) if place != s]
        for kv in self._kv:
            if kv is not None and moves:
                places, old = to_device(torch.tensor(moves).T.contiguous(), kv.device)
                used = kv[:, :, : self.length]
                used[:, places] = used[:, old]  # index_copy_ would copy all of it
        if self._slots is not None:
            self._slots = self._slots[to_device(torch.tensor(sentences), self._slots.device)]

    def _lines(self, own_B: Tensor) -> Tensor:
        """Return the slots of each beam's ancestors and its own, (S, B, P + 1)."""
        assert self._slots is not None
        return torch.cat([self._slots, own_B[:, None].expand(self._sentences, -1, 1)], dim=2)

    def _copied(self, kv: Tensor, beams: int) -> Tensor:
        """Return a buffer with the keys and values of one beam in all slots."""
        room = kv.new_empty(*kv.shape[:3], beams, *kv.shape[4:])
        room[:, :, : self.length] = kv[:, :, : self.length]
        return room


def attend_slots(q_RHd: Tensor, k_SHKd: Tensor, v_SHKd: Tensor, mask: Tensor | None) -> Tensor:
    """Return the attention to all K slots of a sentence, under a mask for its beams, (R, M)."""
    # The beams of a sentence are queries of one attention, over the keys of all of them.
    q_SHBd = q_RHd.unflatten(0, (len(k_SHKd), -1)).transpose(1, 2)
    y_SHBd = F.scaled_dot_product_attention(q_SHBd, k_SHKd, v_SHKd, mask)
    return y_SHBd.transpose(1, 2).reshape(len(q_RHd), -1)


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
        # The cross-attention does not depend on x_TM, so both results are added at once.
        x_TM = x_TM + self.dropout(y_TM) + cross_TM
        return x_TM + self.dropout(self.ffn(self.ffn_layer_norm(x_TM)))

    def step(
        self,
        parts: Sequence[Tensor],
        cross_RM: Tensor,
        cache: Cache,
        index: int,
        mask: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Map the newest token of each row, (R, M), as layer number `index`.

        What is given is the sum of `parts`, and what is returned are two parts: a GPU adds them in
        the kernel of the next norm. `mask` is the cache's for this step.
        """
        attention = self.self_attn
        x_RM, normed_RM = add_norm(self.self_attn_layer_norm, *parts)
        q, k, v = attention.project(normed_RM, cache.joined(index))
        y_RM = attention.output_proj(cache.attend(index, q, k, v, mask))
        x_RM, normed_RM = add_norm(self.ffn_layer_norm, x_RM, y_RM, cross_RM)
        return x_RM, self.ffn(normed_RM)


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

    def step(self, ids_R: Tensor, cross: Sequence[Tensor], cache: Cache) -> Tensor:
        """Feed one token to each row; return the logits of the next, (R, V)."""
        x_RM = self.decoder_frontend(ids_R, cache.position(ids_R))
        mask = cache.mask(x_RM)
        with _mask_kernels(mask):
            parts: Sequence[Tensor] = (x_RM,)
            for index, (layer, cross_RM) in enumerate(zip(self._layers(), cross, strict=True)):
                parts = layer.step(parts, cross_RM, cache, index, mask)
        cache.advance()
        return self.project(add_norm(self.decoder.layer_norm, *parts)[1])

    def project(self, hidden: Tensor) -> Tensor:
        """Return the logits of hidden states, (..., M) to (..., V).

        Uses `output` if a faster projection was set there, else the tied token embedding.
        """
        if self.output is not None:
            return self.output(hidden)
        return F.linear(hidden, self.decoder_frontend.embed.weight)

    def join(self) -> list[Joined | None]:
        """Return a copy of each layer's joined maps to queries, keys and values."""
        return [layer.self_attn.join() for layer in self._layers()]

    def _layers(self) -> list[DecoderLayer]:
        return cast(list[DecoderLayer], list(self.decoder.layers))


def _mask_kernels(mask: Tensor | None) -> AbstractContextManager[None]:
    """Return a context that chooses the kernels of attention under `mask`."""
    if mask is None or not mask.is_cuda:
        return nullcontext()
    # cuDNN would build a plan for each number of keys, at every step another.
    return sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])
