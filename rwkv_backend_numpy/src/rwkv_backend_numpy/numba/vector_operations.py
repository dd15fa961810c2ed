"""Kernels for vectors, between the products, compiled by Numba: each runs over all rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_backend_numpy.numba.compiled import compiled, inner_sums
from rwkv_backend_numpy.numba.work_sharing import Counters, inner, take_range

Floats = NDArray[np.float32]

EPSILON = np.float32(1e-5)
# Channels per block; a thread computes a block for all tokens of a chunk.
_CHANNELS = 128
# Approximate numbers per block: 32 kB, a few microseconds of work.
_NUMBERS = 2**13


@inner
def exp_negative(x: np.float32) -> np.float32:
    """Return exp(x) for x <= 0, to about 1 unit in the last place; NaN stays NaN.

    The polynomial is that of Cephes' expf (S. Moshier, 1989). LLVM vectorizes this arithmetic, but
    not a call of the C library.
    """
    # The exponent n is limited to -127, for which the bits of 2**n are those of 0.
    x = np.float32(-88.0) if x < np.float32(-88.0) else x
    n = np.int32(x * np.float32(1.44269504088896341) - np.float32(0.5))
    r = x - np.float32(n) * np.float32(0.693359375) - np.float32(n) * np.float32(-2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    power = np.int32((n + np.int32(127)) << np.int32(23)).view(np.float32)
    return (p * r * r + r + np.float32(1)) * power


@inner
def sigmoid_of(x: np.float32) -> np.float32:
    e = exp_negative(-abs(x))
    return (np.float32(1) if x >= 0 else e) / (np.float32(1) + e)


@inner
def _take_rows(counts: Counters, thread: int, x: Floats) -> Any:
    return take_range(counts, thread, x.shape[0], max(1, _NUMBERS // x.shape[1]))


@inner_sums
def layer_norm_row(x: Floats, weight: Floats, bias: Floats, out: Floats) -> None:
    total = np.float32(0)
    for i in range(x.size):
        total += x[i]
    mean = total / np.float32(x.size)
    squares = np.float32(0)
    for i in range(x.size):
        squares += (x[i] - mean) * (x[i] - mean)
    scale = np.float32(1) / np.sqrt(squares / np.float32(x.size) + EPSILON)
    for i in range(x.size):
        out[i] = (x[i] - mean) * scale * weight[i] + bias[i]


@compiled
def layer_norm(
    counts: Counters, thread: int, x: Floats, weight: Floats, bias: Floats, out: Floats
) -> None:
    """Write the layer norm of `x` [rows, D] to `out`."""
    while True:
        start, end = _take_rows(counts, thread, x)
        if start == end:
            break
        for row in range(start, end):
            layer_norm_row(x[row], weight, bias, out[row])


@compiled
def mix(
    counts: Counters, thread: int, x: Floats, previous: Floats, share: Floats, out: Floats
) -> None:
    """Write share * x + (1 - share) * previous to `out`; `share` [D], the others [rows, D]."""
    while True:
        start, end = _take_rows(counts, thread, x)
        if start == end:
            break
        for row in range(start, end):
            for i in range(x.shape[1]):
                out[row, i] = previous[row, i] + share[i] * (x[row, i] - previous[row, i])


@inner
def _sigmoid_row(x: Floats, out: Floats) -> None:
    for i in range(x.size):
        out[i] = sigmoid_of(x[i])


@compiled
def sigmoid(counts: Counters, thread: int, x: Floats, out: Floats) -> None:
    """Write the sigmoid of `x` [rows, D] to `out`."""
    while True:
        start, end = _take_rows(counts, thread, x)
        if start == end:
            break
        for row in range(start, end):
            _sigmoid_row(x[row], out[row])


@compiled
def relu_squared(counts: Counters, thread: int, x: Floats, out: Floats) -> None:
    """Write max(x, 0) squared of `x` [rows, D] to `out`."""
    while True:
        start, end = _take_rows(counts, thread, x)
        if start == end:
            break
        for row in range(start, end):
            for i in range(x.shape[1]):
                # In this order, NaN stays NaN.
                positive = np.float32(0) if x[row, i] < 0 else x[row, i]
                out[row, i] = positive * positive


@inner_sums
def wkv_row(
    k: Floats, v: Floats, decay: Floats, first: Floats,
    aa: Floats, bb: Floats, pp: Floats, means: Floats,
) -> None:  # fmt: skip
    """Compute one token of the scan for some channels [n]: write `means`, update aa, bb and pp.

    The scan's equation is in TensorOps.wkv. It has two exponentials, relative to the larger
    exponent, so one of them is always 1 and only the other is computed. LLVM vectorizes the loop
    only if each argument is an array [n] of its own.
    """
    one = np.float32(1)
    for i in range(means.size):
        lead = pp[i] - (first[i] + k[i])
        e = exp_negative(-abs(lead))
        before, now = (one, e) if lead >= 0 else (e, one)
        means[i] = (before * aa[i] + now * v[i]) / (before * bb[i] + now)
        faded = pp[i] + decay[i]
        lead = faded - k[i]
        e = exp_negative(-abs(lead))
        before, now = (one, e) if lead >= 0 else (e, one)
        aa[i] = before * aa[i] + now * v[i]
        bb[i] = before * bb[i] + now
        pp[i] = faded if lead >= 0 else k[i]


@compiled
def wkv(
    counts: Counters, thread: int,
    k: Floats, v: Floats, decay: Floats, first: Floats,
    aa: Floats, bb: Floats, pp: Floats, means: Floats,
) -> None:  # fmt: skip
    """Compute the scan over k and v [B, T, D]: write `means`, update aa, bb and pp [B, D]."""
    n_batch, n_time, n_embd = k.shape
    n_parts = (n_embd + _CHANNELS - 1) // _CHANNELS
    while True:
        part, end = take_range(counts, thread, n_batch * n_parts, 1)
        if part == end:
            break
        b, start = part // n_parts, part % n_parts * _CHANNELS
        some = slice(start, min(start + _CHANNELS, n_embd))
        vectors = decay[some], first[some], aa[b, some], bb[b, some], pp[b, some]
        for t in range(n_time):
            wkv_row(k[b, t, some], v[b, t, some], *vectors, means[b, t, some])
