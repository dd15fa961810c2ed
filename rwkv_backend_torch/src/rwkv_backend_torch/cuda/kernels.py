"""Triton kernels for a layer's vector operations and, for one token, its matrix products.

Each kernel fuses several operations of `rwkv4.block`: the launch of a kernel takes at least as long
as a small operation, so fewer launches save time. `TensorOps.wkv` has the scan's equations.
Strides are numbers of array elements. The rows of a layer's state are `width` elements apart.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _normalized(x, weight, bias, width, column, ok, EPSILON: tl.constexpr):
    row = tl.load(x + column, mask=ok, other=0)
    centered = tl.where(ok, row - tl.sum(row, 0) / width, 0)
    variance = tl.sum(centered * centered, 0) / width
    weights = tl.load(weight + column, mask=ok, other=0)
    biases = tl.load(bias + column, mask=ok, other=0)
    return centered / tl.sqrt(variance + EPSILON) * weights + biases


@triton.jit
def norm_and_mix(
    x, before, weight, bias, mixes, mixed, after, n_rows, n_time, width,
    before_stride, after_stride,
    ROW: tl.constexpr, N_MIXES: tl.constexpr, BLOCK: tl.constexpr, EPSILON: tl.constexpr,
):  # fmt: skip
    """Compute the layer norm of x [B, T, D], then N_MIXES token shifts.

    Writes the results for the mix vectors `mixes` [N, D] to `mixed` [N, B * T, D]. The predecessor
    of the first token is row ROW of the state `before`. The last token's norm is written to row ROW
    of the state `after`.
    """
    row = tl.program_id(0).to(tl.int64)
    sequence, time = row // n_time, row % n_time
    column = tl.arange(0, BLOCK)
    ok = column < width
    now = _normalized(x + row * width, weight, bias, width, column, ok, EPSILON)
    if time == 0:
        last = tl.load(before + sequence * before_stride + ROW * width + column, mask=ok, other=0)
    else:
        last = _normalized(x + (row - 1) * width, weight, bias, width, column, ok, EPSILON)
    for i in tl.static_range(N_MIXES):
        mix = tl.load(mixes + i * width + column, mask=ok, other=0)
        both = last + mix * (now - last)
        where = mixed + (i * n_rows + row) * width + column
        tl.store(where, both.to(mixed.dtype.element_ty), mask=ok)
    if time == n_time - 1:
        tl.store(after + sequence * after_stride + ROW * width + column, now, mask=ok)


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _mean(p, a, b, k, v, first):
    top = tl.maximum(p, first + k)
    kept, added = tl.exp(p - top), tl.exp(first + k - top)
    return (kept * a + added * v) / (kept * b + added)


@triton.jit
def _join(decay_1, p_1, a_1, b_1, decay_2, p_2, a_2, b_2):
    """Combine the sums of two consecutive stretches of time, both in units of exp(p)."""
    p_1 += decay_2
    top = tl.maximum(p_1, p_2)
    kept, added = tl.exp(p_1 - top), tl.exp(p_2 - top)
    return decay_1 + decay_2, top, kept * a_1 + added * a_2, kept * b_1 + added * b_2


@triton.jit
def wkv_of_a_token(
    k, v, r, decay, first, before, after, y, width, before_stride, after_stride,
    AA: tl.constexpr, BB: tl.constexpr, PP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute one step of the scan for k, v, r [B, D].

    Writes sigmoid(r) times the weighted mean to `y`, and the rows AA, BB and PP of `after`.
    """
    sequence = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ok = column < width
    here = sequence * width + column
    key = tl.load(k + here, mask=ok, other=0).to(tl.float32)
    value = tl.load(v + here, mask=ok, other=0).to(tl.float32)
    gate = _sigmoid(tl.load(r + here, mask=ok, other=0).to(tl.float32))
    state = before + sequence * before_stride + column
    a = tl.load(state + AA * width, mask=ok, other=0)
    b = tl.load(state + BB * width, mask=ok, other=0)
    p = tl.load(state + PP * width, mask=ok, other=0)
    mean = _mean(p, a, b, key, value, tl.load(first + column, mask=ok, other=0))
    tl.store(y + here, (gate * mean).to(y.dtype.element_ty), mask=ok)
    decays = tl.load(decay + column, mask=ok, other=0)
    _, p, a, b = _join(decays, p, a, b, decays, key, value, 1.0)
    state = after + sequence * after_stride + column
    tl.store(state + AA * width, a, mask=ok)
    tl.store(state + BB * width, b, mask=ok)
    tl.store(state + PP * width, p, mask=ok)


@triton.jit
def wkv_of_many(
    k, v, r, decay, first, before, after, y, n_time, width, before_stride, after_stride,
    AA: tl.constexpr, BB: tl.constexpr, PP: tl.constexpr,
    BLOCK_TIME: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute `wkv_of_a_token` for k, v, r [B, T, D], in parallel for BLOCK_TIME tokens per step.

    A token's mean needs the sums of all tokens before it. So the parallel scan of a step's tokens
    is shifted by one: its first element is the state before the step, and the others are all tokens
    of the step but the last.
    """
    sequence = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ok = column < width
    decays = tl.load(decay + column, mask=ok, other=0)
    firsts = tl.load(first + column, mask=ok, other=0)
    state = before + sequence * before_stride + column
    a = tl.load(state + AA * width, mask=ok, other=0)
    b = tl.load(state + BB * width, mask=ok, other=0)
    p = tl.load(state + PP * width, mask=ok, other=0)
    step = tl.arange(0, BLOCK_TIME)
    begins = (step == 0)[:, None]
    for start in range(0, n_time, BLOCK_TIME):
        time = start + step
        there = (time < n_time)[:, None] & ok[None, :]
        here = (sequence * n_time + time.to(tl.int64))[:, None] * width + column[None, :]
        earlier = there & (step > 0)[:, None]
        key = tl.load(k + here - width, mask=earlier, other=0).to(tl.float32)
        value = tl.load(v + here - width, mask=earlier, other=0).to(tl.float32)
        all_decays = tl.broadcast_to(decays[None, :], (BLOCK_TIME, BLOCK))
        ones = tl.full((BLOCK_TIME, BLOCK), 1.0, tl.float32)
        element = (
            all_decays,
            tl.where(begins, p[None, :], key),
            tl.where(begins, a[None, :], value),
            tl.where(begins, b[None, :], ones),
        )
        _, tops, sums, counts = tl.associative_scan(element, 0, _join)
        key = tl.load(k + here, mask=there, other=0).to(tl.float32)
        value = tl.load(v + here, mask=there, other=0).to(tl.float32)
        gate = _sigmoid(tl.load(r + here, mask=there, other=0).to(tl.float32))
        mean = _mean(tops, sums, counts, key, value, firsts[None, :])
        tl.store(y + here, (gate * mean).to(y.dtype.element_ty), mask=there)
        ends = (step == tl.minimum(BLOCK_TIME, n_time - start) - 1)[:, None]
        _, p, a, b = _join(
            decays,
            tl.sum(tl.where(ends, tops, 0), 0),
            tl.sum(tl.where(ends, sums, 0), 0),
            tl.sum(tl.where(ends, counts, 0), 0),
            decays,
            tl.sum(tl.where(ends, key, 0), 0),
            tl.sum(tl.where(ends, value, 0), 0),
            1.0,
        )
    state = after + sequence * after_stride + column
    tl.store(state + AA * width, a, mask=ok)
    tl.store(state + BB * width, b, mask=ok)
    tl.store(state + PP * width, p, mask=ok)


@triton.jit
def relu_squared(x, y, n_values, BLOCK: tl.constexpr):
    """Write max(x, 0) squared in `y`'s dtype; NaN stays NaN."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    ok = index < n_values
    value = tl.load(x + index, mask=ok, other=0).to(tl.float32)
    value = tl.where(value < 0, 0, value)
    tl.store(y + index, (value * value).to(y.dtype.element_ty), mask=ok)


@triton.jit
def _row_times_plain(
    x, matrix, n_out, n_in, block, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr
):
    """Return BLOCK_OUT outputs of the product of x [in] with a matrix [out, in]."""
    out = (block * BLOCK_OUT + tl.arange(0, BLOCK_OUT)).to(tl.int64)
    total = tl.zeros((BLOCK_OUT, BLOCK_IN), tl.float32)
    for start in range(0, n_in, BLOCK_IN):
        column = start + tl.arange(0, BLOCK_IN)
        ok = column < n_in
        where = out[:, None] * n_in + column[None, :]
        weight = tl.load(matrix + where, mask=(out < n_out)[:, None] & ok[None, :], other=0)
        value = tl.load(x + column, mask=ok, other=0).to(tl.float32)
        total += weight.to(tl.float32) * value[None, :]
    return tl.sum(total, 1)


@triton.jit
def _row_times_groups(
    x, codes, scales, offsets, n_out, n_in, block,
    BITS: tl.constexpr, GROUP: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """`_row_times_plain` for codes in groups of GROUP; in 4 bits, even columns are the low half."""
    per_byte: tl.constexpr = 8 // BITS
    group_bytes: tl.constexpr = GROUP // per_byte
    groups: tl.constexpr = BLOCK_IN // GROUP
    out = (block * BLOCK_OUT + tl.arange(0, BLOCK_OUT)).to(tl.int64)
    n_groups = n_in // GROUP
    total = tl.zeros((BLOCK_OUT, groups, group_bytes), tl.float32)
    for start in range(0, n_groups, groups):
        group = start + tl.arange(0, groups)
        group_ok = (group < n_groups)[:, None]
        byte = group[:, None] * group_bytes + tl.arange(0, group_bytes)[None, :]
        ok = (out < n_out)[:, None] & (group < n_groups)[None, :]
        where = out[:, None, None] * (n_in // per_byte) + byte[None, :, :]
        code = tl.load(codes + where, mask=ok[:, :, None], other=0)
        per_group = out[:, None] * n_groups + group[None, :]
        scale = tl.load(scales + per_group, mask=ok, other=0).to(tl.float32)[:, :, None]
        offset = tl.load(offsets + per_group, mask=ok, other=0).to(tl.float32)[:, :, None]
        column = x + byte * per_byte
        one = tl.load(column, mask=group_ok, other=0).to(tl.float32)
        if BITS == 4:
            two = tl.load(column + 1, mask=group_ok, other=0).to(tl.float32)
            low, high = (code & 15).to(tl.float32), (code >> 4).to(tl.float32)
            product = low * one[None, :, :] + high * two[None, :, :]
            total += scale * product + offset * (one + two)[None, :, :]
        else:
            total += (code.to(tl.float32) * scale + offset) * one[None, :, :]
    return tl.sum(tl.sum(total, 2), 1)


@triton.jit
def _row_times_matrix(
    x, codes, scales, offsets, n_out, n_in, block,
    BITS: tl.constexpr, GROUP: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    if BITS > 8:
        value = _row_times_plain(x, codes, n_out, n_in, block, BLOCK_OUT, BLOCK_IN)
    else:
        value = _row_times_groups(
            x, codes, scales, offsets, n_out, n_in, block, BITS, GROUP, BLOCK_OUT, BLOCK_IN
        )
    return value


@triton.jit
def _finish(value, base, gate, y, out, ok, FINISH: tl.constexpr):
    if FINISH == "relu_squared":
        value = tl.where(value < 0, 0, value)
        value = value * value
    if FINISH == "sigmoid":
        value = _sigmoid(value)
    if FINISH == "add":
        value += tl.load(base + out, mask=ok, other=0)
    if FINISH == "add_gated":
        value = value * tl.load(gate + out, mask=ok, other=0) + tl.load(
            base + out, mask=ok, other=0
        )
    tl.store(y + out, value, mask=ok)


@triton.jit
def products_of_a_row(
    x, x_stride,
    codes_0, scales_0, offsets_0, y_0, n_0,
    codes_1, scales_1, offsets_1, y_1, n_1,
    codes_2, scales_2, offsets_2, y_2, n_2,
    base, gate, n_in,
    FINISH_0: tl.constexpr, FINISH_1: tl.constexpr, FINISH_2: tl.constexpr,
    BITS: tl.constexpr, GROUP: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """Multiply up to three matrices [out, in], each with one row of x [n, in]: float32 y [out]."""
    block = tl.program_id(0)
    blocks_0, blocks_1 = tl.cdiv(n_0, BLOCK_OUT), tl.cdiv(n_1, BLOCK_OUT)
    if block < blocks_0:
        value = _row_times_matrix(
            x, codes_0, scales_0, offsets_0, n_0, n_in, block, BITS, GROUP, BLOCK_OUT, BLOCK_IN
        )
        out = block * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
        _finish(value, base, gate, y_0, out, out < n_0, FINISH_0)
    elif block < blocks_0 + blocks_1:
        block -= blocks_0
        value = _row_times_matrix(
            x + x_stride, codes_1, scales_1, offsets_1, n_1, n_in, block,
            BITS, GROUP, BLOCK_OUT, BLOCK_IN,
        )  # fmt: skip
        out = block * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
        _finish(value, base, gate, y_1, out, out < n_1, FINISH_1)
    else:
        block -= blocks_0 + blocks_1
        value = _row_times_matrix(
            x + 2 * x_stride, codes_2, scales_2, offsets_2, n_2, n_in, block,
            BITS, GROUP, BLOCK_OUT, BLOCK_IN,
        )  # fmt: skip
        out = block * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
        _finish(value, base, gate, y_2, out, out < n_2, FINISH_2)
