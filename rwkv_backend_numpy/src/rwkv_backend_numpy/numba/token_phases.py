"""What the kernels of one token have in common, compiled by Numba: products in phases.

A phase (see `work_sharing`) is the products that can be computed at the same time, and what follows
from a row of them alone. What needs a whole vector before that, norms and token shifts, each thread
computes for itself. What a phase gives is written to a place that nothing else is written to while
the token lasts, so a thread that has been held up finds it as it was.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_backend_numpy.numba.activations import prepared
from rwkv_backend_numpy.numba.compiled import inner_sums
from rwkv_backend_numpy.numba.panel_kernels import one_row
from rwkv_backend_numpy.numba.panels import ROWS
from rwkv_backend_numpy.numba.work_sharing import Counters, done, inner, is_over, take, wait

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

# Bytes of weights that a thread takes at a time, about: with fewer the beginnings show, of blocks
# and of the processor's reading ahead; with more the wait for the last block of a phase.
_BLOCK = 2**16


@inner
def n_blocks(counts: Counters, n_out: int, n_bytes: int) -> Any:
    """In how many blocks so many rows are taken: as many for each thread. A panel is `n_bytes`."""
    n_panels, n_threads = (n_out + ROWS - 1) // ROWS, counts.shape[1] - 1
    of_each = (n_panels * n_bytes + _BLOCK * n_threads - 1) // (_BLOCK * n_threads)
    return min(n_panels, of_each * n_threads)


@inner
def block_range(block: int, count: int, n_out: int) -> Any:
    """The rows of a block."""
    n_panels = (n_out + ROWS - 1) // ROWS
    start, end = block * n_panels // count, (block + 1) * n_panels // count
    return start * ROWS, min(end * ROWS, n_out)


@inner
def multiply(
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
def shifted(x: Floats, last: Floats, share: Floats) -> Any:
    mixed = np.empty(x.size, np.float32)
    for i in range(x.size):
        mixed[i] = last[i] + share[i] * (x[i] - last[i])
    return mixed


@inner
def product(
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
    count = n_blocks(counts, out.size, form[2])
    if is_over(counts, phase, count):
        return
    activations = prepared(kind, form[0], form[1], x)
    while True:
        block = take(counts, phase, thread, count)
        if block < 0:
            break
        start, end = block_range(block, count, out.size)
        multiply(kind, form, matrix, start, end, activations, out)
        done(counts, phase)
    wait(counts, phase, count)


@inner
def copy(x: Floats, to: Floats) -> None:
    # To assign a slice would compile for a second what makes the message of its errors.
    for i in range(x.size):
        to[i] = x[i]


@inner
def square_positive(x: Floats) -> None:
    for i in range(x.size):
        x[i] = np.float32(0) if x[i] < 0 else x[i] * x[i]
