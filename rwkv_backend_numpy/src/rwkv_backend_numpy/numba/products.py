"""The product of a matrix with any number of rows, compiled by Numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_backend_numpy.numba.activations import convert, prepared, rows_for
from rwkv_backend_numpy.numba.compiled import compiled
from rwkv_backend_numpy.numba.llvm_vectors import HAS_WIDE_VECTORS
from rwkv_backend_numpy.numba.panel_kernels import eight_rows, four_rows, one_row, sixteen_rows
from rwkv_backend_numpy.numba.panels import ROWS, Matrix
from rwkv_backend_numpy.numba.tile_products import of_rows_in_tiles, rows_for_tiles, suits
from rwkv_backend_numpy.numba.work_sharing import Counters, inner, take, take_range

Floats = NDArray[np.float32]

# Several rows of activations are padded to a multiple of this.
ROW_MULTIPLE = 4
# For a single row, bytes of weights in a thread's block.
_BLOCK = 2**16
# 16 registers hold the sums of only four rows. With 32, a batch of 16 rows is multiplied while its
# weights arrive from memory, not afterwards.
_WIDE = HAS_WIDE_VECTORS


def product(matrix: Matrix, x: Floats) -> Floats:
    """Return `x`, float32 [rows, in], times the transpose of the matrix: float32 [rows, out]."""
    n_rows = len(x)
    if n_rows == 1:
        out = np.empty((1, matrix.n_out), np.float32)
        _of_one_row(matrix.kind, matrix.panels, matrix.depth, matrix.n_groups, x[0], out[0])
        return out
    in_tiles = suits(matrix, n_rows)
    multiple = ROWS if in_tiles else ROW_MULTIPLE
    padded = -(-n_rows // multiple) * multiple
    if in_tiles:
        kernel, rows = of_rows_in_tiles, rows_for_tiles(matrix, padded)
    else:
        kernel, rows = _of_rows, rows_for(matrix.kind, padded, matrix.depth)
    out = np.empty((padded, matrix.n_out), np.float32)
    # The kernel does not fill padding columns and padding rows.
    rows[:, x.shape[1] : matrix.depth] = 0
    rows[n_rows:] = 0
    sums = np.zeros((padded, matrix.n_groups), np.float32)
    units = np.zeros(padded, np.float32)
    kernel(
        matrix.kind, matrix.panels, matrix.depth, matrix.n_groups, x, rows, sums, units, out,
        n_phases=2,
    )  # fmt: skip
    return out[:n_rows]


@compiled
def _of_one_row(
    counts: Counters, thread: int,
    kind: Any, panels: NDArray[np.uint8], depth: int, n_groups: int, x: Floats, out: Floats,
) -> None:  # fmt: skip
    """Multiply `x` [in] with a matrix; write `out` [out]."""
    row, sums, unit = prepared(kind, depth, n_groups, x)
    to = np.empty(ROWS, np.float32)
    while True:
        first, end = take_range(counts, thread, panels.shape[0], _panels_in_block(panels))
        if first == end:
            break
        for p in range(first, end):
            one_row(
                kind, panels[p].ctypes.data, depth, n_groups, row.ctypes.data, 0,
                sums.ctypes.data, unit.ctypes.data, to.ctypes.data, 0,
            )  # fmt: skip
            for i in range(min(ROWS, out.size - p * ROWS)):
                out[p * ROWS + i] = to[i]


@compiled
def _of_rows(
    counts: Counters, thread: int,
    kind: Any, panels: NDArray[np.uint8], depth: int, n_groups: int, x: Floats,
    rows: Any, sums: Floats, units: Floats, out: Floats,
) -> None:  # fmt: skip
    """Multiply `x` [rows, in] with a matrix; write `out` [padded rows, out].

    The number of rows of `x` is padded to a multiple of ROW_MULTIPLE. First, all threads convert
    `x` into `rows`, `sums` and `units` (see `activations`). Then they multiply.
    """
    convert(counts, thread, kind, x, rows, sums, units)
    while True:
        p = take(counts, 1, thread, panels.shape[0])
        if p < 0:
            break
        _times_rows(kind, panels[p], p * ROWS, depth, n_groups, rows, sums, units, out)


@inner
def _panels_in_block(panels: NDArray[np.uint8]) -> Any:
    return max(1, _BLOCK // panels.shape[1])


@inner
def _times_rows(
    kind: Any, panel: NDArray[np.uint8], first: int, depth: int, n_groups: int,
    rows: Any, sums: Floats, units: Floats, out: Floats,
) -> None:  # fmt: skip
    """Multiply one panel with all rows of activations; write columns of `out` from `first` on."""
    whole = first + ROWS <= out.shape[1]
    beside = np.empty((16, ROWS), np.float32)
    j = 0
    while j < rows.shape[0]:
        left = rows.shape[0] - j
        to = out[j:, first:] if whole else beside
        x, x_sums, x_units = rows[j].ctypes.data, sums[j].ctypes.data, units[j:].ctypes.data
        given = (
            kind, panel.ctypes.data, depth, n_groups, x, rows.strides[0],
            x_sums, x_units, to.ctypes.data, to.strides[0],
        )  # fmt: skip
        if _WIDE and left >= 16:
            count = 16
            sixteen_rows(*given)
        elif _WIDE and left >= 8:
            count = 8
            eight_rows(*given)
        else:
            count = ROW_MULTIPLE
            four_rows(*given)
        if not whole:
            for i in range(count):
                for column in range(first, out.shape[1]):
                    out[j + i, column] = beside[i, column - first]
        j += count
