"""Products in phases, compiled by Numba: the common part of the kernels for one token.

A phase is a part of a kernel that begins when the phase before it is complete (see `work_sharing`).
The threads share its products, which do not depend on each other, and the operations on single rows
of these products. Norms and token shifts need a whole vector, so every thread computes them for
itself. Each phase writes its results to memory of its own. Nothing overwrites them before the token
is complete, so a delayed thread still finds them.
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

# Approximate bytes of weights in a block. Smaller blocks lose time at their start, where the
# processor does not prefetch yet; larger ones make threads wait for the last block of a phase.
_BLOCK = 2**16


@inner
def n_blocks(counts: Counters, n_out: int, n_bytes: int) -> Any:
    """Return the number of blocks that `n_out` rows are divided into; threads take block by block.

    `n_bytes` is the size of a panel, which is 16 rows.
    """
    n_panels, n_threads = (n_out + ROWS - 1) // ROWS, counts.shape[1] - 1
    of_each = (n_panels * n_bytes + _BLOCK * n_threads - 1) // (_BLOCK * n_threads)
    return min(n_panels, of_each * n_threads)


@inner
def block_range(block: int, count: int, n_out: int) -> Any:
    """Return the first row of a block, and the row after its last."""
    n_panels = (n_out + ROWS - 1) // ROWS
    start, end = block * n_panels // count, (block + 1) * n_panels // count
    return start * ROWS, min(end * ROWS, n_out)


@inner
def multiply(
    kind: Any, form: Integers, matrix: int, start: int, end: int, activations: Any, out: Floats
) -> None:
    """Multiply rows `start` to `end` of the matrix with the activations; write `out`.

    `start` is the first row of a panel.
    """
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
    """Run a phase that is only a product: multiply `x` with the matrix; write `out`."""
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
    # A loop, since assigning a slice takes a second longer to compile, for its error message.
    for i in range(x.size):
        to[i] = x[i]


@inner
def square_positive(x: Floats) -> None:
    for i in range(x.size):
        x[i] = np.float32(0) if x[i] < 0 else x[i] * x[i]
