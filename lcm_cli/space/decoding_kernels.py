"""Triton kernels of decoding steps; `beam_attention` and `logits` call them.

Exponentials are in base 2 throughout, since exp2 is what GPUs compute. Shapes as in `captured`.
"""

import triton
import triton.language as tl


@triton.jit
def _log_add(top_W, total_W, x_WE):
    """Return the maxima and sums of exponentials of W lanes after E more numbers of each."""
    new_W = tl.maximum(top_W, tl.max(x_WE, 1))
    p_WE = tl.exp2((x_WE - new_W[:, None]) * 1.4426950408889634)
    shrink_W = tl.exp2((top_W - new_W) * 1.4426950408889634)
    return new_W, total_W * shrink_W + tl.sum(p_WE, 1)


@triton.jit(do_not_specialize=["V"])
def log_total(logits_NV, total_N, stride, V, W: tl.constexpr, E: tl.constexpr):
    """Write the log of the sum of the exponentials of a row's V logits.

    W lanes go through the row, E numbers each at a time, and are combined at its end.
    """
    row = tl.program_id(0)
    logits_V = logits_NV + row.to(tl.int64) * stride
    at_WE = tl.arange(0, W)[:, None] * E + tl.arange(0, E)[None, :]
    # The lowest number, not -inf: a lane that sees none but -inf has a total of 0. What is not a
    # number, or infinite, makes the total not a number, whichever way the maxima treat it.
    top_W = tl.full((W,), -3.4028234663852886e38, tl.float32)
    total_W = tl.zeros((W,), tl.float32)
    # A mask would keep loads from being of several numbers each, so only the rest has one.
    whole = V // (W * E) * (W * E)
    for first in range(0, whole, W * E):
        x_WE = tl.load(logits_V + first + at_WE).to(tl.float32)
        top_W, total_W = _log_add(top_W, total_W, x_WE)
    x_WE = tl.load(logits_V + whole + at_WE, mask=whole + at_WE < V, other=float("-inf"))
    top_W, total_W = _log_add(top_W, total_W, x_WE.to(tl.float32))
    top = tl.max(top_W, 0)
    total = tl.sum(total_W * tl.exp2((top_W - top) * 1.4426950408889634), 0)
    tl.store(total_N + row, top + tl.log(total))


@triton.jit(do_not_specialize=["V", "G"])
def group_maxima(logits_NV, best_NG, stride, V, G, W: tl.constexpr, E: tl.constexpr):
    """Write the largest of each E logits, of W such groups of a row."""
    row, first = tl.program_id(0).to(tl.int64), tl.program_id(1) * W
    group_W = first + tl.arange(0, W)
    at_WE = group_W[:, None] * E + tl.arange(0, E)[None, :]
    logits_V = logits_NV + row * stride
    if (first + W) * E <= V:  # a mask would keep loads from being of several numbers each
        best_W = tl.max(tl.load(logits_V + at_WE).to(tl.float32), 1)
    else:
        x_WE = tl.load(logits_V + at_WE, mask=at_WE < V, other=float("-inf"))
        best_W = tl.max(x_WE.to(tl.float32), 1)
    tl.store(best_NG + row * G + group_W, best_W.to(best_NG.dtype.element_ty), mask=group_W < G)


@triton.jit
def _ranks(x, place):
    """Return integers in the order of the numbers; of equal ones, the first place is the largest.

    What is not a number counts as -inf.
    """
    bits = tl.where(x == x, x, float("-inf")).to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (key.to(tl.int64) << 32) | (0x7FFFFFFF - place).to(tl.int64)


@triton.jit
def _place(rank):
    """Return the place that a rank is of."""
    return 0x7FFFFFFF - (rank & 0x7FFFFFFF).to(tl.int32)


@triton.jit
def _number(rank):
    """Return the number that a rank is of."""
    key = (rank >> 32).to(tl.int32)
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["V", "G"])
def largest(
    logits_NV, best_NG, values_NC, columns_NC, stride, V, G,
    C: tl.constexpr, P: tl.constexpr, W: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """Write the C largest logits of a row and their columns, from the groups of E with the largest.

    W >= G and P >= C are powers of two.
    """
    none: tl.constexpr = -0x8000000000000000
    row = tl.program_id(0).to(tl.int64)
    group_W, place_P = tl.arange(0, W), tl.arange(0, P)
    best_W = tl.load(best_NG + row * G + group_W, mask=group_W < G, other=float("-inf"))
    rank_W = tl.where(group_W < G, _ranks(best_W.to(tl.float32), group_W), none)
    group_P = tl.zeros((P,), tl.int32)
    for c in range(C):
        top = tl.max(rank_W, 0)
        group_P = tl.where(place_P == c, _place(top), group_P)
        rank_W = tl.where(rank_W == top, none, rank_W)

    column_PE = group_P[:, None] * E + tl.arange(0, E)[None, :]
    there_PE = (place_P < C)[:, None] & (column_PE < V)
    x_PE = tl.load(logits_NV + row * stride + column_PE, mask=there_PE, other=float("-inf"))
    rank_PE = tl.where(there_PE, _ranks(x_PE.to(tl.float32), column_PE), none)
    for c in range(C):
        top = tl.max(tl.max(rank_PE, 1), 0)
        tl.store(values_NC + row * C + c, _number(top).to(values_NC.dtype.element_ty))
        tl.store(columns_NC + row * C + c, _place(top).to(tl.int64))
        rank_PE = tl.where(rank_PE == top, none, rank_PE)


@triton.jit
def add_norm(
    x_NM, a_NM, b_NM, weight_M, bias_M, sum_NM, y_NM, eps,
    M: tl.constexpr, W: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Write the sum of x, a and, if there are three parts, b for a row of W >= M, and its norm."""
    w_W = tl.arange(0, W)
    there_W = w_W < M
    at_W = tl.program_id(0).to(tl.int64) * M + w_W
    half = x_NM.dtype.element_ty
    # Each sum is rounded, as one by itself would be.
    x_W = tl.load(x_NM + at_W, mask=there_W, other=0.0).to(tl.float32)
    x_W = (x_W + tl.load(a_NM + at_W, mask=there_W, other=0.0).to(tl.float32)).to(half)
    if PARTS == 3:
        b_W = tl.load(b_NM + at_W, mask=there_W, other=0.0).to(tl.float32)
        x_W = (x_W.to(tl.float32) + b_W).to(half)
    tl.store(sum_NM + at_W, x_W, mask=there_W)
    x_W = x_W.to(tl.float32)
    x_W = tl.where(there_W, x_W - tl.sum(x_W, 0) / M, 0.0)
    y_W = x_W / tl.sqrt(tl.sum(x_W * x_W, 0) / M + eps)
    y_W *= tl.load(weight_M + w_W, mask=there_W, other=0.0).to(tl.float32)
    y_W += tl.load(bias_M + w_W, mask=there_W, other=0.0).to(tl.float32)
    tl.store(y_NM + at_W, y_W.to(half), mask=there_W)


@triton.jit(do_not_specialize=["P"])
def attend_beams(
    q_NHD, k_NHD, v_NHD, kv_2SPBHD, slots_SBP, position_1, y_NHD, q_stride, k_stride, v_stride, P,
    B: tl.constexpr, H: tl.constexpr, D: tl.constexpr, Q: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Append a position of one head of a sentence; write the attention of its B beams.

    The beams are Q >= B queries, most of which are padding, of K keys at a time. At the new
    position each sees its own key alone. Before it they see those of their ancestors, and only
    keys and values that one of them sees are read.
    """
    M: tl.constexpr = H * D
    scale: tl.constexpr = 1.4426950408889634 / D**0.5
    head, sentence = tl.program_id(0) % H, (tl.program_id(0) // H).to(tl.int64)
    keys = kv_2SPBHD + sentence * P * (B * M) + head * D
    values = keys + tl.num_programs(0).to(tl.int64) * P * (B * D)
    past = tl.load(position_1).to(tl.int32) * B
    own_Q1, d_1D = tl.arange(0, Q)[:, None], tl.arange(0, D)[None, :]
    real_Q1 = own_Q1 < B
    row_Q1 = sentence * B + own_Q1
    q_QD = tl.load(q_NHD + row_Q1 * q_stride + head * D + d_1D, mask=real_Q1, other=0.0)
    k_QD = tl.load(k_NHD + row_Q1 * k_stride + head * D + d_1D, mask=real_Q1, other=0.0)
    v_QD = tl.load(v_NHD + row_Q1 * v_stride + head * D + d_1D, mask=real_Q1, other=0.0)
    # No program reads what is written here before the next step.
    new_QD = (past + own_Q1) * M + d_1D
    tl.store(keys + new_QD, k_QD, mask=real_Q1)
    tl.store(values + new_QD, v_QD, mask=real_Q1)

    top_Q = tl.sum(q_QD.to(tl.float32) * k_QD.to(tl.float32), 1) * scale
    total_Q = tl.full((Q,), 1.0, tl.float32)
    y_QD = v_QD.to(tl.float32)
    lines = slots_SBP + sentence * P * B
    for first in range(0, past, K):
        key_K = first + tl.arange(0, K)
        there_QK = real_Q1 & (key_K < past)[None, :]
        slot_QK = tl.load(lines + own_Q1 * P + (key_K // B)[None, :], mask=there_QK, other=-1)
        seen_QK = slot_QK == (key_K % B)[None, :]
        used_K1 = (tl.max(seen_QK.to(tl.int32), 0) > 0)[:, None]
        at_KD = key_K[:, None] * M + d_1D
        k_KD = tl.load(keys + at_KD, mask=used_K1, other=0.0)
        v_KD = tl.load(values + at_KD, mask=used_K1, other=0.0)
        s_QK = tl.where(seen_QK, tl.dot(q_QD, tl.trans(k_KD)) * scale, float("-inf"))
        new_Q = tl.maximum(top_Q, tl.max(s_QK, 1))
        p_QK = tl.exp2(s_QK - new_Q[:, None])
        shrink_Q = tl.exp2(top_Q - new_Q)
        total_Q = total_Q * shrink_Q + tl.sum(p_QK, 1)
        y_QD = tl.dot(p_QK.to(v_KD.dtype), v_KD, y_QD * shrink_Q[:, None])
        top_Q = new_Q
    y_QD = y_QD / total_Q[:, None]
    tl.store(y_NHD + row_Q1 * M + head * D + d_1D, y_QD.to(y_NHD.dtype.element_ty), mask=real_Q1)
