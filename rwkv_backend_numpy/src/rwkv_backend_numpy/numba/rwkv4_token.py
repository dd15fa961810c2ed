"""One token of one sequence through the whole model, compiled by Numba: RWKV-4.

The kernel computes a layer in four phases. All threads share the work of a phase, and a phase
begins when the phase before it is complete; see `token_phases`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkv_backend_numpy.numba.activations import prepared
from rwkv_backend_numpy.numba.compiled import compiled, inner_sums
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
from rwkv_backend_numpy.numba.vector_operations import layer_norm_row, sigmoid_of, wkv_row
from rwkv_backend_numpy.numba.work_sharing import Counters, done, inner, is_over, take, wait
from rwkv_core.architectures.rwkv4 import AA, BB, CHANNEL_X, PP, TIME_X

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

# The rows of a layer's vectors [11, D], and its matrices.
LN1, MIX_K, MIX_V, MIX_R, DECAY, FIRST, LN2, CHANNEL_K, CHANNEL_R = 0, 2, 3, 4, 5, 6, 7, 9, 10
KEY, VALUE, RECEPTANCE, OUTPUT, CHANNEL_KEY, CHANNEL_RECEPTANCE, CHANNEL_VALUE = range(7)
PHASES = 4


class Token(NamedTuple):
    """Inputs and outputs of one token.

    Attributes:
        kind: type in which all matrices are stored; see `panels`.
        wide, deep: form of the matrices with D columns, and of those with F columns: (`depth`,
            `n_groups`, bytes of a panel).
        vectors: each layer's norms, mix vectors, decay and bonus, [L, 11, D].
        norms: [4, D], weight and bias of the first and of the last norm.
        matrices: addresses of each layer's matrices, [L, 7].
        head: address of the output matrix [V, D].
        n_ffn: F, channel mixing's inner width.
        x: the embedding [D].
        state, after: the state before the token, and memory for the state after it, [L, 5, D].
        between: memory for the results of phases, [L, 4 D' + F']; D', F' and V' are D, F and V
            padded to whole panels.
        logits: [V'].
    """

    kind: Any
    wide: Integers
    deep: Integers
    vectors: Floats
    norms: Floats
    matrices: Integers
    head: int
    n_ffn: int
    x: Floats
    state: Floats
    after: Floats
    between: Floats
    logits: Floats


@compiled
def one_token(counts: Counters, thread: int, t: Token) -> None:
    """Compute the token's `after` and `logits`, in PHASES * L + 1 phases."""
    x = np.empty(t.x.size, np.float32)
    layer_norm_row(t.x, t.norms[0], t.norms[1], x)
    for i in range(t.vectors.shape[0]):
        phase = PHASES * i
        wkv, attended, gate, mixed, k = _parts(t, i)
        _keys_and_values(counts, thread, phase, t, i, x, wkv)
        product(counts, thread, phase + 1, t.kind, t.wide, t.matrices[i, OUTPUT], wkv, attended)
        for j in range(x.size):
            x[j] += attended[j]
        _channel_keys(counts, thread, phase + 2, t, i, x, gate, k)
        product(counts, thread, phase + 3, t.kind, t.deep, t.matrices[i, CHANNEL_VALUE], k, mixed)
        _add_gated(x, gate, mixed)
    normed = np.empty(x.size, np.float32)
    layer_norm_row(x, t.norms[2], t.norms[3], normed)
    product(counts, thread, PHASES * t.vectors.shape[0], t.kind, t.wide, t.head, normed, t.logits)


@inner
def _parts(t: Token, i: int) -> Any:
    """Return the arrays for the results of layer i's phases: [D] four times, and [F], padded."""
    row, d = t.between[i], t.x.size
    n = (d + ROWS - 1) // ROWS * ROWS
    k = row[4 * n : 4 * n + t.n_ffn]
    return row[:d], row[n : n + d], row[2 * n : 2 * n + d], row[3 * n : 3 * n + d], k


@inner_sums
def _keys_and_values(
    counts: Counters, thread: int, phase: int, t: Token, i: int, x: Floats, wkv: Floats
) -> None:
    """Compute the first half of time mixing: keys, values, receptance, and the scan's step."""
    n_embd = x.size
    count = n_blocks(counts, n_embd, 3 * t.wide[2])
    if is_over(counts, phase, count):
        return
    v, before, after, matrices = t.vectors[i], t.state[i], t.after[i], t.matrices[i]
    time_x = np.empty(n_embd, np.float32)
    layer_norm_row(x, v[LN1], v[LN1 + 1], time_x)
    last = before[TIME_X]
    for_k = prepared(t.kind, t.wide[0], t.wide[1], shifted(time_x, last, v[MIX_K]))
    for_v = prepared(t.kind, t.wide[0], t.wide[1], shifted(time_x, last, v[MIX_V]))
    for_r = prepared(t.kind, t.wide[0], t.wide[1], shifted(time_x, last, v[MIX_R]))
    kvr = np.empty((3, n_embd + ROWS), np.float32)
    while True:
        block = take(counts, phase, thread, count)
        if block < 0:
            break
        start, end = block_range(block, count, n_embd)
        multiply(t.kind, t.wide, matrices[KEY], start, end, for_k, kvr[0])
        multiply(t.kind, t.wide, matrices[VALUE], start, end, for_v, kvr[1])
        multiply(t.kind, t.wide, matrices[RECEPTANCE], start, end, for_r, kvr[2])
        some = slice(start, end)
        for row in range(AA, PP + 1):
            copy(before[row, some], after[row, some])
        wkv_row(
            kvr[0, some], kvr[1, some], v[DECAY, some], v[FIRST, some],
            after[AA, some], after[BB, some], after[PP, some], wkv[some],
        )  # fmt: skip
        _times_sigmoid(wkv[some], kvr[2, some])
        copy(time_x[some], after[TIME_X, some])
        done(counts, phase)
    wait(counts, phase, count)


@inner
def _times_sigmoid(x: Floats, gate: Floats) -> None:
    for i in range(x.size):
        x[i] *= sigmoid_of(gate[i])


@inner_sums
def _channel_keys(
    counts: Counters, thread: int, phase: int, t: Token, i: int, x: Floats, gate: Floats, k: Floats
) -> None:
    """Compute the first half of channel mixing: squared keys, and the gate before its sigmoid."""
    n_embd = x.size
    n_keys, n_gates = n_blocks(counts, k.size, t.wide[2]), n_blocks(counts, n_embd, t.wide[2])
    if is_over(counts, phase, n_keys + n_gates):
        return
    v, before, after, matrices = t.vectors[i], t.state[i], t.after[i], t.matrices[i]
    channel_x = np.empty(n_embd, np.float32)
    layer_norm_row(x, v[LN2], v[LN2 + 1], channel_x)
    last = before[CHANNEL_X]
    for_k = prepared(t.kind, t.wide[0], t.wide[1], shifted(channel_x, last, v[CHANNEL_K]))
    for_r = prepared(t.kind, t.wide[0], t.wide[1], shifted(channel_x, last, v[CHANNEL_R]))
    while True:
        block = take(counts, phase, thread, n_keys + n_gates)
        if block < 0:
            break
        if block < n_keys:
            start, end = block_range(block, n_keys, k.size)
            multiply(t.kind, t.wide, matrices[CHANNEL_KEY], start, end, for_k, k)
            square_positive(k[start:end])
        else:
            start, end = block_range(block - n_keys, n_gates, n_embd)
            multiply(t.kind, t.wide, matrices[CHANNEL_RECEPTANCE], start, end, for_r, gate)
            copy(channel_x[start:end], after[CHANNEL_X, start:end])
        done(counts, phase)
    wait(counts, phase, n_keys + n_gates)


@inner
def _add_gated(x: Floats, gate: Floats, y: Floats) -> None:
    for i in range(x.size):
        x[i] += sigmoid_of(gate[i]) * y[i]
