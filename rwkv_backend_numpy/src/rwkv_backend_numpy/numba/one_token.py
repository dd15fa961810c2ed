"""One token of one sequence through the whole model, compiled by Numba: `rwkv4.last_logits`.

A layer is four phases (see `work_sharing`): the products that can be computed at the same time,
and what follows from a row of them alone. What needs a whole vector before that, norms and token
shifts, each thread computes for itself. What a phase gives is written to a place that nothing else
is written to while the token lasts, so a thread that has been held up finds it as it was.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkv_backend_numpy.numba.activations import prepared
from rwkv_backend_numpy.numba.compiled import compiled, inner_sums
from rwkv_backend_numpy.numba.panel_kernels import one_row
from rwkv_backend_numpy.numba.panels import ROWS
from rwkv_backend_numpy.numba.vector_kernels import layer_norm_row, sigmoid_of, wkv_row
from rwkv_backend_numpy.numba.work_sharing import Counters, done, inner, is_over, take, wait
from rwkv_core.architectures.rwkv4 import AA, BB, CHANNEL_X, PP, TIME_X

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

# The rows of a layer's vectors [11, D], and its matrices.
LN1, MIX_K, MIX_V, MIX_R, DECAY, FIRST, LN2, CHANNEL_K, CHANNEL_R = 0, 2, 3, 4, 5, 6, 7, 9, 10
KEY, VALUE, RECEPTANCE, OUTPUT, CHANNEL_KEY, CHANNEL_RECEPTANCE, CHANNEL_VALUE = range(7)
PHASES = 4
# Bytes of weights that a thread takes at a time, about: with fewer the beginnings show, of blocks
# and of the processor's reading ahead; with more the wait for the last block of a phase.
_BLOCK = 2**16


class Token(NamedTuple):
    """What a token is computed from, and where to.

    Attributes:
        kind: of all matrices; see `panels`.
        wide, deep: of matrices with D and with F columns: `depth`, `n_groups`, bytes of a panel.
        vectors: [L, 11, D].
        norms: [4, D], weight and bias of the first and of the last.
        matrices: addresses [L, 7].
        head: address.
        n_ffn: F.
        x: the embedding [D].
        state, after: [L, 5, D].
        between: [L, 4 D' + F'], what phases give; D', F' and V' are whole panels.
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
    """Fill the token's `after` and `logits`; in PHASES L + 1 phases."""
    x = np.empty(t.x.size, np.float32)
    layer_norm_row(t.x, t.norms[0], t.norms[1], x)
    for i in range(t.vectors.shape[0]):
        phase = PHASES * i
        wkv, attended, gate, mixed, k = _parts(t, i)
        _keys_and_values(counts, thread, phase, t, i, x, wkv)
        _product(counts, thread, phase + 1, t.kind, t.wide, t.matrices[i, OUTPUT], wkv, attended)
        for j in range(x.size):
            x[j] += attended[j]
        _channel_keys(counts, thread, phase + 2, t, i, x, gate, k)
        _product(counts, thread, phase + 3, t.kind, t.deep, t.matrices[i, CHANNEL_VALUE], k, mixed)
        _add_gated(x, gate, mixed)
    normed = np.empty(x.size, np.float32)
    layer_norm_row(x, t.norms[2], t.norms[3], normed)
    _product(counts, thread, PHASES * t.vectors.shape[0], t.kind, t.wide, t.head, normed, t.logits)


@inner
def _parts(t: Token, i: int) -> Any:
    """What the phases of layer i give: [D] four times, and [F], each to be written in panels."""
    row, d = t.between[i], t.x.size
    n = (d + ROWS - 1) // ROWS * ROWS
    k = row[4 * n : 4 * n + t.n_ffn]
    return row[:d], row[n : n + d], row[2 * n : 2 * n + d], row[3 * n : 3 * n + d], k


@inner
def _n_blocks(counts: Counters, n_out: int, n_bytes: int) -> Any:
    """In how many blocks so many rows are taken: as many for each thread. A panel is `n_bytes`."""
    n_panels, n_threads = (n_out + ROWS - 1) // ROWS, counts.shape[1] - 1
    of_each = (n_panels * n_bytes + _BLOCK * n_threads - 1) // (_BLOCK * n_threads)
    return min(n_panels, of_each * n_threads)


@inner
def _range(block: int, n_blocks: int, n_out: int) -> Any:
    """The rows of a block."""
    n_panels = (n_out + ROWS - 1) // ROWS
    start, end = block * n_panels // n_blocks, (block + 1) * n_panels // n_blocks
    return start * ROWS, min(end * ROWS, n_out)


@inner
def _multiply(
    kind: Any, form: Integers, matrix: int, start: int, end: int, activations: Any, out: Floats
) -> None:
    """Rows of the matrix, from the start of a panel on, times the activations, to `out`."""
    depth, n_groups, n_bytes = form[0], form[1], form[2]
    row, sums, unit = activations
    for first in range(start, end, ROWS):
        one_row(
            kind, matrix + first // ROWS * n_bytes, depth, n_groups, row.ctypes.data, 0,
            sums.ctypes.data, unit.ctypes.data, out[first:].ctypes.data, 0,
        )  # fmt: skip


@inner_sums
def _shifted(x: Floats, last: Floats, share: Floats) -> Any:
    mixed = np.empty(x.size, np.float32)
    for i in range(x.size):
        mixed[i] = last[i] + share[i] * (x[i] - last[i])
    return mixed


@inner
def _product(
    counts: Counters,
    thread: int,
    phase: int,
    kind: Any,
    form: Integers,
    matrix: int,
    x: Floats,
    out: Floats,
) -> None:
    """A phase that is a product alone: of `x` with the matrix, to `out`."""
    n_blocks = _n_blocks(counts, out.size, form[2])
    if is_over(counts, phase, n_blocks):
        return
    activations = prepared(kind, form[0], form[1], x)
    while True:
        block = take(counts, phase, thread, n_blocks)
        if block < 0:
            break
        start, end = _range(block, n_blocks, out.size)
        _multiply(kind, form, matrix, start, end, activations, out)
        done(counts, phase)
    wait(counts, phase, n_blocks)


@inner_sums
def _keys_and_values(
    counts: Counters, thread: int, phase: int, t: Token, i: int, x: Floats, wkv: Floats
) -> None:
    """The first half of time mixing: keys, values, receptance, and the scan's step."""
    n_embd = x.size
    n_blocks = _n_blocks(counts, n_embd, 3 * t.wide[2])
    if is_over(counts, phase, n_blocks):
        return
    v, before, after, matrices = t.vectors[i], t.state[i], t.after[i], t.matrices[i]
    time_x = np.empty(n_embd, np.float32)
    layer_norm_row(x, v[LN1], v[LN1 + 1], time_x)
    last = before[TIME_X]
    for_k = prepared(t.kind, t.wide[0], t.wide[1], _shifted(time_x, last, v[MIX_K]))
    for_v = prepared(t.kind, t.wide[0], t.wide[1], _shifted(time_x, last, v[MIX_V]))
    for_r = prepared(t.kind, t.wide[0], t.wide[1], _shifted(time_x, last, v[MIX_R]))
    kvr = np.empty((3, n_embd + ROWS), np.float32)
    while True:
        block = take(counts, phase, thread, n_blocks)
        if block < 0:
            break
        start, end = _range(block, n_blocks, n_embd)
        _multiply(t.kind, t.wide, matrices[KEY], start, end, for_k, kvr[0])
        _multiply(t.kind, t.wide, matrices[VALUE], start, end, for_v, kvr[1])
        _multiply(t.kind, t.wide, matrices[RECEPTANCE], start, end, for_r, kvr[2])
        some = slice(start, end)
        for row in range(AA, PP + 1):
            _copy(before[row, some], after[row, some])
        wkv_row(
            kvr[0, some], kvr[1, some], v[DECAY, some], v[FIRST, some],
            after[AA, some], after[BB, some], after[PP, some], wkv[some],
        )  # fmt: skip
        _times_sigmoid(wkv[some], kvr[2, some])
        _copy(time_x[some], after[TIME_X, some])
        done(counts, phase)
    wait(counts, phase, n_blocks)


@inner
def _copy(x: Floats, to: Floats) -> None:
    # To assign a slice would compile for a second what makes the message of its errors.
    for i in range(x.size):
        to[i] = x[i]


@inner
def _times_sigmoid(x: Floats, gate: Floats) -> None:
    for i in range(x.size):
        x[i] *= sigmoid_of(gate[i])


@inner_sums
def _channel_keys(
    counts: Counters, thread: int, phase: int, t: Token, i: int, x: Floats, gate: Floats, k: Floats
) -> None:
    """The first half of channel mixing: keys, squared, and the gate before its sigmoid."""
    n_embd = x.size
    n_keys, n_gates = _n_blocks(counts, k.size, t.wide[2]), _n_blocks(counts, n_embd, t.wide[2])
    if is_over(counts, phase, n_keys + n_gates):
        return
    v, before, after, matrices = t.vectors[i], t.state[i], t.after[i], t.matrices[i]
    channel_x = np.empty(n_embd, np.float32)
    layer_norm_row(x, v[LN2], v[LN2 + 1], channel_x)
    last = before[CHANNEL_X]
    for_k = prepared(t.kind, t.wide[0], t.wide[1], _shifted(channel_x, last, v[CHANNEL_K]))
    for_r = prepared(t.kind, t.wide[0], t.wide[1], _shifted(channel_x, last, v[CHANNEL_R]))
    while True:
        block = take(counts, phase, thread, n_keys + n_gates)
        if block < 0:
            break
        if block < n_keys:
            start, end = _range(block, n_keys, k.size)
            _multiply(t.kind, t.wide, matrices[CHANNEL_KEY], start, end, for_k, k)
            _square_positive(k[start:end])
        else:
            start, end = _range(block - n_keys, n_gates, n_embd)
            _multiply(t.kind, t.wide, matrices[CHANNEL_RECEPTANCE], start, end, for_r, gate)
            _copy(channel_x[start:end], after[CHANNEL_X, start:end])
        done(counts, phase)
    wait(counts, phase, n_keys + n_gates)


@inner
def _add_gated(x: Floats, gate: Floats, y: Floats) -> None:
    for i in range(x.size):
        x[i] += sigmoid_of(gate[i]) * y[i]


@inner
def _square_positive(x: Floats) -> None:
    for i in range(x.size):
        x[i] = np.float32(0) if x[i] < 0 else x[i] * x[i]
