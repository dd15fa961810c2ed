"""The scans of RWKV-5 to 7 over the matrices of heads, compiled by Numba.

A head's matrix S has N rows, each in N of a state row's D columns. Its rows are independent of each
other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_backend_numpy.numba.compiled import compiled, inner_sums
from rwkv_backend_numpy.numba.work_sharing import Counters, take_range

Floats = NDArray[np.float32]


@inner_sums
def wkv6_row(
    before: Floats, r: Floats, w: Floats, k: Floats, value: np.float32, after: Floats
) -> Any:
    """One row of S [N] through a token, to `after`, which may be `before`; its number of y."""
    y = np.float32(0)
    for j in range(before.size):
        y += before[j] * r[j]
        after[j] = before[j] * w[j] + value * k[j]
    return y


@inner_sums
def wkv7_row(
    before: Floats, r: Floats, w: Floats, k: Floats, kk: Floats, b: Floats,
    value: np.float32, after: Floats,
) -> Any:  # fmt: skip
    """One row of S [N] through a token, to `after`, which may be `before`; its number of y."""
    removed = np.float32(0)
    for j in range(before.size):
        removed += before[j] * kk[j]
    y = np.float32(0)
    for j in range(before.size):
        one = before[j] * w[j] - removed * b[j] + value * k[j]
        after[j] = one
        y += one * r[j]
    return y


@compiled
def wkv6(
    counts: Counters, thread: int, r: Floats, w: Floats, k: Floats, v: Floats, s: Floats, y: Floats
) -> None:
    """Compute `TensorOps.wkv6` without the bonus: write y [B, T, D], update s [B, N, D]."""
    n_batch, n_time, width = k.shape
    n = s.shape[1]
    while True:
        task, end = take_range(counts, thread, n_batch * (width // n), 1)
        if task == end:
            break
        p, start = task // (width // n), task % (width // n) * n
        head = slice(start, start + n)
        for t in range(n_time):
            rt, wt, kt = r[p, t, head], w[p, t, head], k[p, t, head]
            for i in range(n):
                row = s[p, i, head]
                y[p, t, start + i] = wkv6_row(row, rt, wt, kt, v[p, t, start + i], row)


@compiled
def wkv7(
    counts: Counters, thread: int,
    r: Floats, w: Floats, k: Floats, v: Floats, kk: Floats, b: Floats, s: Floats, y: Floats,
) -> None:  # fmt: skip
    """Compute `TensorOps.wkv7`: write y [B, T, D], update s [B, N, D]."""
    n_batch, n_time, width = k.shape
    n = s.shape[1]
    while True:
        task, end = take_range(counts, thread, n_batch * (width // n), 1)
        if task == end:
            break
        p, start = task // (width // n), task % (width // n) * n
        head = slice(start, start + n)
        for t in range(n_time):
            rt, wt, kt = r[p, t, head], w[p, t, head], k[p, t, head]
            kkt, bt = kk[p, t, head], b[p, t, head]
            for i in range(n):
                row = s[p, i, head]
                y[p, t, start + i] = wkv7_row(row, rt, wt, kt, kkt, bt, v[p, t, start + i], row)
