"""The scans of RWKV-5 to 7 over the matrices of heads, compiled by Numba.

A head's matrix S has N rows and N columns. The state holds the matrices of all heads side by side,
as N rows of D columns. No row of S depends on another row. During a scan, S is transposed, with 16
of its rows side by side; see `head_steps`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_backend_numpy.numba.compiled import compiled, inner_sums
from rwkv_backend_numpy.numba.head_steps import wkv6_step, wkv7_step
from rwkv_backend_numpy.numba.panels import LINE, ROWS
from rwkv_backend_numpy.numba.transpose_kernel import put_square
from rwkv_backend_numpy.numba.work_sharing import Counters, inner, take_range

Floats = NDArray[np.float32]

# Of the type of S, for `put_square`.
_ZERO = np.float32(0)


@inner_sums
def wkv7_row(
    row: Floats, r: Floats, w: Floats, k: Floats, kk: Floats, b: Floats, value: np.float32
) -> Any:
    """One row of S [N] through a token, in place. Return its number of y."""
    removed = np.float32(0)
    for j in range(row.size):
        removed += row[j] * kk[j]
    y = np.float32(0)
    for j in range(row.size):
        one = row[j] * w[j] - removed * b[j] + value * k[j]
        row[j] = one
        y += one * r[j]
    return y


@compiled
def wkv6(
    counts: Counters, thread: int, r: Floats, w: Floats, k: Floats, v: Floats, s: Floats, y: Floats
) -> None:
    """Compute `TensorOps.wkv6` without the bonus: write y [B, T, D], update s [B, N, D]."""
    n_time, n = k.shape[1], s.shape[1]
    rows, values, sums = _room(n_time, n)
    rows_at, values_at, sums_at = rows.ctypes.data, values.ctypes.data, sums.ctypes.data
    while True:
        p, start = _begin(counts, thread, s, v, rows, values)
        if p < 0:
            break
        r_at, w_at, k_at = _address(r, p, start), _address(w, p, start), _address(k, p, start)
        for t in range(n_time):
            for part in range(rows.shape[0]):
                at = (t * rows.shape[0] + part) * LINE
                wkv6_step(
                    n, rows_at + part * n * LINE, r_at + t * r.strides[1], w_at + t * w.strides[1],
                    k_at + t * k.strides[1], values_at + at, sums_at + at,
                )  # fmt: skip
        _end(p, start, rows, sums, s, y)


@compiled
def wkv7(
    counts: Counters, thread: int,
    r: Floats, w: Floats, k: Floats, v: Floats, kk: Floats, b: Floats, s: Floats, y: Floats,
) -> None:  # fmt: skip
    """Compute `TensorOps.wkv7`: write y [B, T, D], update s [B, N, D]."""
    n_time, n = k.shape[1], s.shape[1]
    rows, values, sums = _room(n_time, n)
    rows_at, values_at, sums_at = rows.ctypes.data, values.ctypes.data, sums.ctypes.data
    while True:
        p, start = _begin(counts, thread, s, v, rows, values)
        if p < 0:
            break
        r_at, w_at, k_at = _address(r, p, start), _address(w, p, start), _address(k, p, start)
        kk_at, b_at = _address(kk, p, start), _address(b, p, start)
        for t in range(n_time):
            for part in range(rows.shape[0]):
                at = (t * rows.shape[0] + part) * LINE
                wkv7_step(
                    n, rows_at + part * n * LINE, r_at + t * r.strides[1], w_at + t * w.strides[1],
                    k_at + t * k.strides[1], values_at + at,
                    kk_at + t * kk.strides[1], b_at + t * b.strides[1], sums_at + at,
                )  # fmt: skip
        _end(p, start, rows, sums, s, y)


@inner
def _room(n_time: int, n: int) -> Any:
    """Return arrays for a head's S [parts, N, 16], and for its v and y [T, padded N]."""
    n_parts = (n + ROWS - 1) // ROWS
    values = np.zeros((n_time, n_parts * ROWS), np.float32)
    return np.zeros((n_parts, n, ROWS), np.float32), values, np.empty_like(values)


@inner
def _begin(
    counts: Counters, thread: int, s: Floats, v: Floats, rows: Floats, values: Floats
) -> Any:
    """Take the next head that no thread has taken, and copy its S and v to `rows` and `values`.

    Returns the number of the head's sequence in the batch, and the head's first column. If no head
    is left, the number is -1.
    """
    n_batch, n, width = s.shape
    task, end = take_range(counts, thread, n_batch * (width // n), 1)
    if task == end:
        return -1, 0
    p, start = task // (width // n), task % (width // n) * n
    _transpose(s[p, :, start : start + n], rows)
    _copy(v[p, :, start : start + n], values)
    return p, start


@inner
def _end(p: int, start: int, rows: Floats, sums: Floats, s: Floats, y: Floats) -> None:
    """Copy a head's S and y back."""
    n = s.shape[1]
    _copy(sums, y[p, :, start : start + n])
    _transpose_back(rows, s[p, :, start : start + n])


@inner
def _address(x: Floats, p: int, column: int) -> Any:
    return x[p, 0, column:].ctypes.data


@inner
def _copy(x: Floats, to: Floats) -> None:
    """Copy the columns that both `x` and `to` [T, n] have."""
    n = min(x.shape[1], to.shape[1])
    for t in range(x.shape[0]):
        for i in range(n):
            to[t, i] = x[t, i]


@inner
def _transpose(s: Floats, rows: Floats) -> None:
    """Copy a head's matrix [N, N] to [parts, N, 16]."""
    n = s.shape[0]
    if n % ROWS == 0:
        for i in range(0, n, ROWS):
            for j in range(0, n, ROWS):
                square, lines = s[i, j:].ctypes.data, rows[i // ROWS, j].ctypes.data
                put_square(_ZERO, _ZERO, square, s.strides[0], lines, LINE)
        return
    for i in range(n):
        for j in range(n):
            rows[i // ROWS, j, i % ROWS] = s[i, j]


@inner
def _transpose_back(rows: Floats, s: Floats) -> None:
    n = s.shape[0]
    if n % ROWS == 0:
        for i in range(0, n, ROWS):
            for j in range(0, n, ROWS):
                square, lines = s[i, j:].ctypes.data, rows[i // ROWS, j].ctypes.data
                put_square(_ZERO, _ZERO, lines, LINE, square, s.strides[0])
        return
    for i in range(n):
        for j in range(n):
            s[i, j] = rows[i // ROWS, j, i % ROWS]
