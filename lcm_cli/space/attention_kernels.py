"""Triton kernels of attention within packed rows; `row_attention` calls them.

A program takes one head of a block of B consecutive tokens. The tokens that these see, and those
that see them, form one range, from a row's start to a row's end. The loops run over such ranges, N
tokens at a time, however many rows these belong to. No two programs write to the same place, so
results are the same in every run.

Scores are in base 2 throughout, since exp2 is what GPUs compute. Shapes as in `transformer`.
"""

import triton
import triton.language as tl


@triton.jit
def _rows_of(owner_T, starts_R1, own_B, T):
    """Return the first token of the row of each token, and the one after its last, (B,) each."""
    row_B = tl.load(owner_T + tl.minimum(own_B, T - 1))
    return tl.load(starts_R1 + row_B), tl.load(starts_R1 + row_B + 1)


@triton.jit
def _tokens(x, first, count: tl.constexpr, stop, stride: tl.constexpr, D: tl.constexpr):
    """Return pointers to D numbers of `count` tokens from `first` on, and which are below `stop`.

    Consecutive tokens are `stride` numbers apart.
    """
    n = tl.arange(0, count)
    at = n[:, None] * stride + tl.arange(0, D)[None, :]
    # A large batch has more numbers than 32 bits can count.
    return x + tl.cast(first, tl.int64) * stride + at, (first + n < stop)[:, None]


@triton.jit
def _load(x, first, count: tl.constexpr, stop, stride: tl.constexpr, D: tl.constexpr):
    """Return D numbers of `count` tokens from `first` on, (count, D): zeros from `stop` on."""
    at, there = _tokens(x, first, count, stop, stride, D)
    return tl.load(at, mask=there, other=0.0)


@triton.jit
def _store(x, value, first, count: tl.constexpr, stop, stride: tl.constexpr, D: tl.constexpr):
    at, there = _tokens(x, first, count, stop, stride, D)
    tl.store(at, value.to(x.dtype.element_ty), mask=there)


@triton.jit
def _scores(own_BD, other_ND, since_B, until_B, first, N: tl.constexpr, scale: tl.constexpr):
    """Return scores (B, N), -inf but for others in the range [since_B, until_B) of each own one."""
    other_N = first + tl.arange(0, N)[None, :]
    seen_BN = (other_N >= since_B[:, None]) & (other_N < until_B[:, None])
    return tl.where(seen_BN, tl.dot(own_BD, tl.trans(other_ND)) * scale, float("-inf"))


@triton.jit(do_not_specialize=["T"])
def forward(
    qkv_T3HD, owner_T, starts_R1, y_THD, lse_HT, T,
    H: tl.constexpr, D: tl.constexpr, B: tl.constexpr, N: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """Write the attention of a block's queries, and the log of the sum of their exponentials."""
    M: tl.constexpr = H * D
    scale: tl.constexpr = 1.4426950408889634 / D**0.5
    head, begin = tl.program_id(0), tl.program_id(1) * B
    own_B = begin + tl.arange(0, B)
    since_B, until_B = _rows_of(owner_T, starts_R1, own_B, T)
    if CAUSAL:
        until_B = tl.minimum(own_B, T - 1) + 1
    q = qkv_T3HD + head * D
    q_BD = _load(q, begin, B, T, 3 * M, D)
    # Finite, so that a query that has not seen any key yet is no case of its own.
    top_B = tl.full((B,), -1e30, tl.float32)
    total_B = tl.zeros((B,), tl.float32)
    y_BD = tl.zeros((B, D), tl.float32)
    stop = tl.max(until_B, 0)
    for first in range(tl.min(since_B, 0), stop, N):
        k_ND = _load(q + M, first, N, stop, 3 * M, D)
        v_ND = _load(q + 2 * M, first, N, stop, 3 * M, D)
        s_BN = _scores(q_BD, k_ND, since_B, until_B, first, N, scale)
        new_B = tl.maximum(top_B, tl.max(s_BN, 1))
        p_BN = tl.exp2(s_BN - new_B[:, None])
        shrink_B = tl.exp2(top_B - new_B)
        total_B = total_B * shrink_B + tl.sum(p_BN, 1)
        y_BD = tl.dot(p_BN.to(v_ND.dtype), v_ND, y_BD * shrink_B[:, None])
        top_B = new_B
    _store(y_THD + head * D, y_BD / total_B[:, None], begin, B, T, M, D)
    lse_B = top_B + tl.log2(total_B)
    tl.store(lse_HT + head.to(tl.int64) * T + own_B, lse_B, mask=own_B < T)


@triton.jit(do_not_specialize=["T"])
def backward(
    qkv_T3HD, owner_T, starts_R1, y_THD, lse_HT, grad_y_THD, grad_T3HD, T,
    H: tl.constexpr, D: tl.constexpr, B: tl.constexpr, N: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """Write the gradients of a block's queries, keys and values."""
    M: tl.constexpr = H * D
    scale: tl.constexpr = 1.4426950408889634 / D**0.5
    head, begin = tl.program_id(0), tl.program_id(1) * B
    own_B = begin + tl.arange(0, B)
    start_B, end_B = _rows_of(owner_T, starts_R1, own_B, T)
    q, grad = qkv_T3HD + head * D, grad_T3HD + head * D
    y, grad_y = y_THD + head * D, grad_y_THD + head * D
    lse = lse_HT + head.to(tl.int64) * T

    # The block's tokens as keys, seen by the queries of their rows.
    since_B, until_B = start_B, end_B
    if CAUSAL:
        since_B = tl.minimum(own_B, T - 1)
    k_BD = _load(q + M, begin, B, T, 3 * M, D)
    v_BD = _load(q + 2 * M, begin, B, T, 3 * M, D)
    grad_k_BD = tl.zeros((B, D), tl.float32)
    grad_v_BD = tl.zeros((B, D), tl.float32)
    stop = tl.max(until_B, 0)
    for first in range(tl.min(since_B, 0), stop, N):
        q_ND = _load(q, first, N, stop, 3 * M, D)
        grad_y_ND = _load(grad_y, first, N, stop, M, D)
        y_ND = _load(y, first, N, stop, M, D)
        other_N = first + tl.arange(0, N)
        lse_N = tl.load(lse + other_N, mask=other_N < stop, other=0.0)
        mean_N = tl.sum(grad_y_ND.to(tl.float32) * y_ND.to(tl.float32), 1)
        s_BN = _scores(k_BD, q_ND, since_B, until_B, first, N, scale)
        p_BN = tl.exp2(s_BN - lse_N[None, :])
        grad_v_BD = tl.dot(p_BN.to(q_ND.dtype), grad_y_ND, grad_v_BD)
        grad_p_BN = tl.dot(v_BD, tl.trans(grad_y_ND))
        grad_s_BN = p_BN * (grad_p_BN - mean_N[None, :])
        grad_k_BD = tl.dot(grad_s_BN.to(q_ND.dtype), q_ND, grad_k_BD)
    _store(grad + M, grad_k_BD / D**0.5, begin, B, T, 3 * M, D)
    _store(grad + 2 * M, grad_v_BD, begin, B, T, 3 * M, D)

    # The same tokens as queries, which see the keys of their rows.
    since_B, until_B = start_B, end_B
    if CAUSAL:
        until_B = tl.minimum(own_B, T - 1) + 1
    q_BD = _load(q, begin, B, T, 3 * M, D)
    grad_y_BD = _load(grad_y, begin, B, T, M, D)
    y_BD = _load(y, begin, B, T, M, D)
    lse_B = tl.load(lse + own_B, mask=own_B < T, other=0.0)
    mean_B = tl.sum(grad_y_BD.to(tl.float32) * y_BD.to(tl.float32), 1)
    grad_q_BD = tl.zeros((B, D), tl.float32)
    stop = tl.max(until_B, 0)
    for first in range(tl.min(since_B, 0), stop, N):
        k_ND = _load(q + M, first, N, stop, 3 * M, D)
        v_ND = _load(q + 2 * M, first, N, stop, 3 * M, D)
        s_BN = _scores(q_BD, k_ND, since_B, until_B, first, N, scale)
        p_BN = tl.exp2(s_BN - lse_B[:, None])
        grad_p_BN = tl.dot(grad_y_BD, tl.trans(v_ND))
        grad_s_BN = p_BN * (grad_p_BN - mean_B[:, None])
        grad_q_BD = tl.dot(grad_s_BN.to(k_ND.dtype), k_ND, grad_q_BD)
    _store(grad, grad_q_BD / D**0.5, begin, B, T, 3 * M, D)
