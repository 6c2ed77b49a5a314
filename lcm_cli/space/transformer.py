"""The Transformer layers of SONAR's text encoder and decoder (pre-norm, ReLU, sinusoids).

Sequences are packed, never padded: the rows of a batch lie end to end in one (T, M) matrix, and
only attention needs their boundaries. Parameter names are those of the official checkpoints, whose
state dicts load unchanged.

Shapes: T tokens of the whole batch, R rows, M model dim, H heads, d head dim, L length of a row,
N rows of one length.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from inspect import signature
from itertools import chain, groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcm_cli.space import row_attention

# Looked up once, here: within a compiled layer, torch.compile could not follow the import.
_varlen_attn: Callable[..., Tensor] | None = None
with suppress(ImportError):
    _varlen_attn = import_module("torch.nn.attention.varlen").varlen_attn  # from torch 2.10 on
_NAMES_CAUSAL = _varlen_attn is not None and "is_causal" in signature(_varlen_attn).parameters

# The first sinusoidal position. The official weights were trained with fairseq, which counts from
# padding index + 1 with padding index 1. The tokenizer's own padding index, 0, would give silently
# wrong results.
FIRST_POSITION = 2

Joined = tuple[Tensor, Tensor]  # weight (3 M, M) and bias (3 M,) of queries, keys and values


def sinusoids(length: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Return the position table (length, dim): sines in the first half, cosines in the second."""
    half = dim // 2
    # Divided by half - 1, as in fairseq, so that the last frequency is exactly 1 / 10000.
    rates = torch.exp(torch.arange(half, dtype=torch.float32) * (-math.log(10000.0) / (half - 1)))
    steps = torch.arange(FIRST_POSITION, FIRST_POSITION + length, dtype=torch.float32)
    angles = torch.outer(steps, rates)
    return torch.cat([angles.sin(), angles.cos()], dim=1).to(device)


@dataclass(frozen=True)
class Packed:
    """Rows of tokens laid end to end, on one device. Sort them by length for speed on the CPU.

    `positions_T` are the positions of the tokens within their rows, `owner_T` the numbers of those
    rows. `starts_R1` (int32) are the indices at which rows begin, followed by T. `longest` is at
    least the length of the longest row.
    """

    ids_T: Tensor
    positions_T: Tensor
    owner_T: Tensor
    starts_R1: Tensor
    longest: int

    @cached_property
    def lengths(self) -> list[int]:
        """The length of each row. On a GPU, the first access waits for the device."""
        lengths: list[int] = self.starts_R1.diff().tolist()
        return lengths

    def blocks(self) -> Iterator[tuple[int, int, int]]:
        """Yield (first token, number of rows, length) for each run of rows of equal length."""
        start = 0
        for length, run in groupby(self.lengths):
            rows = sum(1 for _ in run)
            if length:
                yield start, rows, length
            start += rows * length


def pack_rows(rows: Sequence[Sequence[int]], device: torch.device) -> Packed:
    """Pack tokenized sentences end to end, in the order given."""
    # With numpy: torch would start its threads, which on a busy machine takes milliseconds.
    lengths_R = np.array([len(row) for row in rows])
    starts_R1 = np.append(0, lengths_R.cumsum())
    owner_T = np.repeat(np.arange(len(rows)), lengths_R)
    ids_T = np.fromiter(chain.from_iterable(rows), np.int64, len(owner_T))
    positions_T = np.arange(len(owner_T)) - starts_R1[owner_T]
    ids, positions, owner, starts = (
        to_device(torch.from_numpy(array), device)
        for array in (ids_T, positions_T, owner_T, starts_R1.astype(np.int32))
    )
    return Packed(ids, positions, owner, starts, int(lengths_R.max()))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on `device`; a GPU that still computes is not waited for."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)

    def forward(self, x_TM: Tensor, rows: Packed, causal: bool = False) -> Tensor:
        """Attend within each row of the packed (T, M) batch."""
        if _joins_maps(x_TM):
            y_THd = _attend(self.joint(x_TM), rows, causal)
        else:
            y_THd = _attend_by_length(self.project(x_TM), rows, causal)
        return self.output_proj(y_THd.reshape(len(x_TM), -1))

    def project(self, x_TM: Tensor, joined: Joined | None = None) -> Sequence[Tensor]:
        """Return the queries, keys and values of tokens, (T, H, d) each.

        `joined` are this module's own joined maps, if the caller keeps them.
        """
        if joined is not None or _joins_maps(x_TM):
            return self.joint(x_TM, joined).unbind(1)
        return [p(x_TM).view(len(x_TM), self.heads, -1) for p in self._maps()]

    def joint(self, x_TM: Tensor, joined: Joined | None = None) -> Tensor:
        """Return the queries, keys and values of tokens in one tensor, (T, 3, H, d)."""
        joined = joined or self.join()
        if joined is None:
            qkv = torch.cat([p(x_TM) for p in self._maps()], dim=1)
        else:
            qkv = F.linear(x_TM, *joined)
        return qkv.view(len(x_TM), 3, self.heads, -1)

    def join(self) -> Joined | None:
        """Return a copy of the maps to queries, keys and values as one; None if they are adapted.

        An adapted map has no matrix of its own that could be joined.
        """
        maps = self._maps()
        if not all(isinstance(p, nn.Linear) for p in maps):
            return None
        return torch.cat([p.weight for p in maps]), torch.cat([p.bias for p in maps])

    def _maps(self) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
        return self.q_proj, self.k_proj, self.v_proj


def _joins_maps(x_TM: Tensor) -> bool:
    """Return whether one product with three matrices is faster than three: not on the CPU."""
    return x_TM.is_cuda


def _attend(qkv_T3Hd: Tensor, rows: Packed, causal: bool) -> Tensor:
    """Attend within rows on a GPU, with one kernel if there is one."""
    attend = row_kernel(qkv_T3Hd.device, qkv_T3Hd.dtype, qkv_T3Hd.shape[-1])
    if attend is not None:
        return attend(qkv_T3Hd, rows, causal)
    return _attend_by_length(qkv_T3Hd.unbind(1), rows, causal)


def _attend_by_length(qkv: Sequence[Tensor], rows: Packed, causal: bool) -> Tensor:
    """Attend within rows, one run of equal lengths at a time; all tensors are (T, H, d)."""
    pieces = []
    for start, count, length in rows.blocks():
        span = slice(start, start + count * length)
        q_NHLd, k_NHLd, v_NHLd = (
            t[span].view(count, length, *t.shape[1:]).transpose(1, 2) for t in qkv
        )
        y = F.scaled_dot_product_attention(q_NHLd, k_NHLd, v_NHLd, is_causal=causal)
        pieces.append(y.transpose(1, 2).reshape(count * length, *qkv[0].shape[1:]))
    return torch.cat(pieces)


Attend = Callable[[Tensor, Packed, bool], Tensor]


def row_kernel(device: torch.device, dtype: torch.dtype, size: int) -> Attend | None:
    """Return the kernel for attention within packed rows with heads of `size`, if there is one."""
    half = dtype in (torch.float16, torch.bfloat16)
    # torch.compile knows this function, but not get_device_capability.
    if not (device.type == "cuda" and half and torch.cuda.get_device_properties(device).major >= 8):
        return None
    if row_attention.AVAILABLE and size in row_attention.SIZES:
        return _attend_rows
    if size % 8 or size > 256:
        return None
    if _varlen_attn is not None:
        return _attend_varlen
    # Reports whether torch was built with it; before torch 2.4.1 there is nothing to ask.
    available = getattr(torch.backends.cuda, "is_flash_attention_available", bool)
    return _attend_flash if available() and not torch.is_grad_enabled() else None


def _attend_rows(qkv_T3Hd: Tensor, rows: Packed, causal: bool) -> Tensor:
    return row_attention.attend_rows(qkv_T3Hd, rows.owner_T, rows.starts_R1, causal)


def _attend_varlen(qkv_T3Hd: Tensor, rows: Packed, causal: bool) -> Tensor:
    """Attend within packed rows with torch's kernel, where ours does not run."""
    how: dict[str, Any] = {"is_causal": causal}
    if not _NAMES_CAUSAL:  # from torch 2.11 on: the number of keys before and after each query
        how = {"window_size": (-1, 0) if causal else (-1, -1)}
    starts, longest = rows.starts_R1, rows.longest
    q, k, v = qkv_T3Hd.unbind(1)
    if torch.is_grad_enabled():  # the forward kernel alone reads them anywhere
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    assert _varlen_attn is not None
    y: Tensor = _varlen_attn(q, k, v, starts, starts, longest, longest, **how)
    return y


def _attend_flash(qkv_T3Hd: Tensor, rows: Packed, causal: bool) -> Tensor:
    """Attend within packed rows without gradients, with the kernel of torch before 2.10."""
    starts, longest = rows.starts_R1, rows.longest
    y: Tensor = torch.ops.aten._flash_attention_forward(
        *qkv_T3Hd.unbind(1), starts, starts, longest, longest, 0.0, causal, False
    )[0]
    return y


class FeedForward(nn.Module):
    """Two linear maps with a ReLU between them."""

    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        self.inner_proj = nn.Linear(dim, inner_dim)
        self.output_proj = nn.Linear(inner_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., M) to (..., M)."""
        if torch.is_grad_enabled():
            return self.output_proj(F.relu(self.inner_proj(x)))
        if x.is_cuda and x.dim() == 2:
            return self.output_proj(linear_relu(x, self.inner_proj))
        # In place: the inner activations are large.
        return self.output_proj(F.relu(self.inner_proj(x), inplace=True))


def linear_relu(x_TM: Tensor, linear: nn.Linear) -> Tensor:
    """Return the ReLU of a linear map, computed within the product's kernel; no gradients."""
    # The operator is undocumented; its default activation is the ReLU.
    return torch._addmm_activation(linear.bias, x_TM, linear.weight.t())


class Embedding(nn.Module):
    """Token embedding scaled by sqrt(M), plus sinusoidal positions."""

    def __init__(self, vocabulary: int, dim: int, max_length: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, dim)
        self.dropout = nn.Dropout(0.0)  # training sets the rate
        self.max_length = max_length
        self._table: Tensor | None = None

    def forward(self, ids_T: Tensor, positions_T: Tensor) -> Tensor:
        """Embed token ids (T,) at positions (T,) as (T, M)."""
        x = self.embed(ids_T) * math.sqrt(self.embed.embedding_dim)
        # Add positions in float32 and round once, as fairseq2 does.
        return self.dropout((x.float() + self._sinusoids()[positions_T]).to(x.dtype))

    def _sinusoids(self) -> Tensor:
        # Built on first use: networks are created on the meta device, where a table has no content.
        weight = self.embed.weight
        if self._table is None or self._table.device != weight.device:
            self._table = sinusoids(self.max_length, weight.shape[1], weight.device)
        return self._table


class Stack(nn.Module):
    """Layers, and a final norm if `norm_dim` is given, under the official checkpoints' names."""

    def __init__(self, layers: Iterable[nn.Module], norm_dim: int = 0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.layer_norm = nn.LayerNorm(norm_dim) if norm_dim else nn.Identity()
