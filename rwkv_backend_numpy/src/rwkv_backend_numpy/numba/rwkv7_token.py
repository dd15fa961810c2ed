"""One token of one sequence through the whole model, compiled by Numba: RWKV-7.

The kernel computes a layer in five phases. All threads share the work of a phase, and a phase
begins when the phase before it is complete; see `token_phases`. The equations are those of
`architectures.rwkv7`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkv_backend_numpy.numba.activations import prepared
from rwkv_backend_numpy.numba.compiled import compiled, inner_sums
from rwkv_backend_numpy.numba.head_kernels import wkv7_row
from rwkv_backend_numpy.numba.panels import ROWS
from rwkv_backend_numpy.numba.token_phases import (
    block_range,
    copy,
    multiply,
    n_blocks,
    product,
    shifted,
    square_positive,
)
from rwkv_backend_numpy.numba.vector_operations import exp_negative, layer_norm_row, sigmoid_of
from rwkv_backend_numpy.numba.work_sharing import Counters, done, inner, is_over, take, wait
from rwkv_core.architectures.matrix_state import CHANNEL_X, FIRST_OF_S, TIME_X
from rwkv_core.architectures.rwkv7 import EPSILON, SLOWEST

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

# The rows of a layer's vectors [19, D].
LN1, MIX_R, MIX_W, MIX_K, MIX_V, MIX_A, MIX_G = 0, 2, 3, 4, 5, 6, 7
W0, A0, V0, K_K, K_A, R_K, LN_X, LN2, CHANNEL_K = 8, 9, 10, 11, 12, 13, 14, 16, 18
# A layer's matrices, and its low-rank ones: those to the ranks, then those from the ranks.
RECEPTANCE, KEY, VALUE, OUTPUT, CHANNEL_KEY, CHANNEL_VALUE = range(6)
W, A, V, G, N_LOW_RANK = range(5)
PHASES = 5
_EPSILON, _SLOWEST = np.float32(EPSILON), np.float32(SLOWEST)
_ONE = np.float32(1)


class Token(NamedTuple):
    """Inputs and outputs of one token.

    Attributes:
        kind, low_kind: type in which the matrices are stored, and the same for the low-rank
            matrices; see `panels`.
        wide, deep: form of the matrices with D columns, and of those with F columns: (`depth`,
            `n_groups`, bytes of a panel).
        low: forms of the low-rank matrices, [5, 3]: first of those with D columns, then of those
            whose number of columns is the rank of w, a, v or g.
        ranks: ranks of w, a, v and g.
        vectors: each layer's vectors, [L, 19, D].
        norms: [4, D], weight and bias of the first and of the last norm.
        matrices, low_rank: addresses of each layer's matrices, [L, 6] and [L, 8].
        head: address of the output matrix [V, D].
        n_ffn: F, channel mixing's inner width.
        x: the embedding [D].
        state, after: the state before the token, and memory for the state after it, [L, 2 + N, D].
        between: memory for the results of phases, [L, 6 D' + R' + F']; D', R', F' and V' are D, the
            sum of the ranks, F and V, padded to whole panels.
        logits: [V'].
    """

    kind: Any
    low_kind: Any
    wide: Integers
    deep: Integers
    low: Integers
    ranks: Integers
    vectors: Floats
    norms: Floats
    matrices: Integers
    low_rank: Integers
    head: int
    n_ffn: int
    x: Floats
    state: Floats
    after: Floats
    between: Floats
    logits: Floats


class Between(NamedTuple):
    """Results of a layer's phases: [D] each, the inner values of all ranks, and [F]."""

    r: Floats
    k: Floats
    v: Floats
    y: Floats
    attended: Floats
    mixed: Floats
    low: Floats
    squares: Floats


@compiled
def one_token(counts: Counters, thread: int, t: Token) -> None:
    """Compute the token's `after` and `logits`, in PHASES * L + 1 phases."""
    x = np.empty(t.x.size, np.float32)
    layer_norm_row(t.x, t.norms[0], t.norms[1], x)
    for i in range(t.vectors.shape[0]):
        phase, parts, matrices = PHASES * i, _parts(t, i), t.matrices[i]
        _inputs(counts, thread, phase, t, i, x, parts)
        _heads(counts, thread, phase + 1, t, i, parts)
        product(
            counts, thread, phase + 2, t.kind, t.wide, matrices[OUTPUT], parts.y, parts.attended
        )
        _add(x, parts.attended)
        _channel_keys(counts, thread, phase + 3, t, i, x, parts.squares)
        product(
            counts, thread, phase + 4,
            t.kind, t.deep, matrices[CHANNEL_VALUE], parts.squares, parts.mixed,
        )  # fmt: skip
        _add(x, parts.mixed)
    normed = np.empty(x.size, np.float32)
    layer_norm_row(x, t.norms[2], t.norms[3], normed)
    product(counts, thread, PHASES * t.vectors.shape[0], t.kind, t.wide, t.head, normed, t.logits)


@inner
def _parts(t: Token, i: int) -> Any:
    row, d = t.between[i], t.x.size
    n = (d + ROWS - 1) // ROWS * ROWS
    low = row[6 * n : row.size - (t.n_ffn + ROWS - 1) // ROWS * ROWS]
    squares = row[6 * n + low.size :][: t.n_ffn]
    return Between(
        row[:d], row[n : n + d], row[2 * n : 2 * n + d], row[3 * n : 3 * n + d],
        row[4 * n : 4 * n + d], row[5 * n : 5 * n + d], low, squares,
    )  # fmt: skip


@inner
def _low_start(t: Token, which: int) -> Any:
    """Return where a rank's inner values begin; each rank is padded to whole panels."""
    start = 0
    for i in range(which):
        start += (t.ranks[i] + ROWS - 1) // ROWS * ROWS
    return start


@inner
def _inputs(
    counts: Counters, thread: int, phase: int, t: Token, i: int, x: Floats, parts: Any
) -> None:
    """Compute receptance, keys and values, and the inner values of low-rank products."""
    n_embd, m, low = x.size, t.matrices[i], t.low_rank[i]
    n_wide = n_blocks(counts, n_embd, 3 * t.wide[2])
    count = n_wide + N_LOW_RANK
    if is_over(counts, phase, count):
        return
    v, last = t.vectors[i], t.state[i, TIME_X]
    time_x = np.empty(n_embd, np.float32)
    layer_norm_row(x, v[LN1], v[LN1 + 1], time_x)
    # `shifted` takes a share of its first argument.
    for_r = prepared(t.kind, t.wide[0], t.wide[1], shifted(last, time_x, v[MIX_R]))
    for_k = prepared(t.kind, t.wide[0], t.wide[1], shifted(last, time_x, v[MIX_K]))
    for_v = prepared(t.kind, t.wide[0], t.wide[1], shifted(last, time_x, v[MIX_V]))
    while True:
        block = take(counts, phase, thread, count)
        if block < 0:
            break
        if block < n_wide:
            start, end = block_range(block, n_wide, n_embd)
            multiply(t.kind, t.wide, m[RECEPTANCE], start, end, for_r, parts.r)
            multiply(t.kind, t.wide, m[KEY], start, end, for_k, parts.k)
            multiply(t.kind, t.wide, m[VALUE], start, end, for_v, parts.v)
            copy(time_x[start:end], t.after[i, TIME_X, start:end])
        elif low[block - n_wide] != 0:
            which = block - n_wide
            share = (MIX_W, MIX_A, MIX_V, MIX_G)[which]
            mixed = prepared(t.low_kind, t.low[0, 0], 1, shifted(last, time_x, v[share]))
            out = parts.low[_low_start(t, which) :]
            multiply(t.low_kind, t.low[0], low[which], 0, t.ranks[which], mixed, out)
            _activate(which, out[: t.ranks[which]])
        done(counts, phase)
    wait(counts, phase, count)


@inner
def _activate(which: int, x: Floats) -> None:
    """Apply tanh to the decay's inner values, sigmoid to the gate's."""
    for i in range(x.size):
        if which == W:
            x[i] = np.float32(2) * sigmoid_of(np.float32(2) * x[i]) - _ONE
        elif which == G:
            x[i] = sigmoid_of(x[i])


@inner
def _from_rank(t: Token, i: int, which: int, parts: Any, head: slice) -> Any:
    """Return a head's part of the product of a low-rank matrix with a rank's inner values."""
    out = np.empty(head.stop - head.start, np.float32)
    start = _low_start(t, which)
    inputs = prepared(t.low_kind, t.low[1 + which, 0], 1, parts.low[start : start + t.ranks[which]])
    address = t.low_rank[i, N_LOW_RANK + which] + head.start // ROWS * t.low[1 + which, 2]
    multiply(t.low_kind, t.low[1 + which], address, 0, out.size, inputs, out)
    return out


@inner_sums
def _heads(counts: Counters, thread: int, phase: int, t: Token, i: int, parts: Any) -> None:
    """Compute the scan's step, and the operations that need only one head of its result."""
    n = t.state.shape[1] - FIRST_OF_S
    n_head = parts.y.size // n
    if is_over(counts, phase, n_head):
        return
    while True:
        h = take(counts, phase, thread, n_head)
        if h < 0:
            break
        _head(t, i, parts, slice(h * n, h * n + n))
        done(counts, phase)
    wait(counts, phase, n_head)


@inner_sums
def _head(t: Token, i: int, parts: Any, head: slice) -> None:
    n = head.stop - head.start
    vectors = t.vectors[i]
    r, k, v, y = parts.r[head], np.empty(n, np.float32), np.empty(n, np.float32), parts.y[head]
    w = _from_rank(t, i, W, parts, head)
    a = _from_rank(t, i, A, parts, head)
    g = _from_rank(t, i, G, parts, head)
    copy(parts.v[head], v)
    if i:
        share, first = _from_rank(t, i, V, parts, head), _parts(t, 0).v[head]
        for j in range(n):
            v[j] += (first[j] - v[j]) * sigmoid_of(vectors[V0, head.start + j] + share[j])
    kk, squares = np.empty(n, np.float32), np.float32(0)
    for j in range(n):
        c = head.start + j
        w[j] = exp_negative(-_SLOWEST * sigmoid_of(vectors[W0, c] + w[j]))
        a[j] = sigmoid_of(vectors[A0, c] + a[j])
        kk[j] = parts.k[c] * vectors[K_K, c]
        squares += kk[j] * kk[j]
        k[j] = parts.k[c] * (_ONE + (a[j] - _ONE) * vectors[K_A, c])
    scale = _ONE / max(np.sqrt(squares), np.float32(1e-12))
    bonus = np.float32(0)
    for j in range(n):
        kk[j] *= scale
        a[j] *= kk[j]
        bonus += r[j] * k[j] * vectors[R_K, head.start + j]
    for j in range(n):
        row = t.after[i, FIRST_OF_S + j, head]
        copy(t.state[i, FIRST_OF_S + j, head], row)
        y[j] = wkv7_row(row, r, w, k, kk, a, v[j])
    total = np.float32(0)
    for j in range(n):
        total += y[j]
    mean, squares = total / np.float32(n), np.float32(0)
    for j in range(n):
        squares += (y[j] - mean) * (y[j] - mean)
    scale = _ONE / np.sqrt(squares / np.float32(n) + _EPSILON)
    for j in range(n):
        c = head.start + j
        y[j] = (y[j] - mean) * scale * vectors[LN_X, c] + vectors[LN_X + 1, c]
        y[j] = (y[j] + bonus * v[j]) * g[j]


@inner
def _channel_keys(
    counts: Counters, thread: int, phase: int, t: Token, i: int, x: Floats, squares: Floats
) -> None:
    """Compute the first half of channel mixing: squared keys."""
    count = n_blocks(counts, squares.size, t.wide[2])
    if is_over(counts, phase, count):
        return
    v = t.vectors[i]
    channel_x = np.empty(x.size, np.float32)
    layer_norm_row(x, v[LN2], v[LN2 + 1], channel_x)
    mixed = shifted(t.state[i, CHANNEL_X], channel_x, v[CHANNEL_K])
    for_k = prepared(t.kind, t.wide[0], t.wide[1], mixed)
    while True:
        block = take(counts, phase, thread, count)
        if block < 0:
            break
        if block == 0:
            copy(channel_x, t.after[i, CHANNEL_X])
        start, end = block_range(block, count, squares.size)
        multiply(t.kind, t.wide, t.matrices[i, CHANNEL_KEY], start, end, for_k, squares)
        square_positive(squares[start:end])
        done(counts, phase)
    wait(counts, phase, count)


@inner
def _add(x: Floats, y: Floats) -> None:
    for i in range(x.size):
        x[i] += y[i]
