"""The product of a matrix with any number of rows, compiled by Numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from rwkv_backend_numpy.activations import fill, row_for, rows_for
from rwkv_backend_numpy.compiled import compiled, inner
from rwkv_backend_numpy.llvm_vectors import HAS_WIDE_VECTORS
from rwkv_backend_numpy.panel_product import eight_rows, four_rows, one_row, sixteen_rows
from rwkv_backend_numpy.panels import ROWS

Floats = NDArray[np.float32]

# Rows of activations come in multiples of so many, if there is more than one.
FEW = 4
# Where there are 16 registers, not 32, they hold no more sums than four rows have. With 32 a batch
# of 16 is multiplied with while its weights come from memory, not after that.
_WIDE = HAS_WIDE_VECTORS


@compiled
def product(
    kind: Any, panels: NDArray[np.uint8], depth: int, n_groups: int, x: Floats, out: Floats
) -> None:
    """`x` [rows, in] times a matrix [out, in], transposed, to `out`; see `panels.Matrix`.

    `out` is [rows, out], with rows up to a multiple of FEW if there is more than one.
    """
    n_rows, n_out = x.shape[0], out.shape[1]
    if n_rows == 1:
        row = row_for(kind, depth)
        sums, units = np.empty((1, n_groups), np.float32), np.empty(1, np.float32)
        units[0] = fill(kind, x[0], row, sums[0])
        for p in prange(panels.shape[0]):
            to = np.empty(ROWS, np.float32)
            one_row(
                kind, panels[p].ctypes.data, depth, n_groups, row.ctypes.data, 0,
                sums.ctypes.data, units.ctypes.data, to.ctypes.data, 0,
            )  # fmt: skip
            for i in range(min(ROWS, n_out - p * ROWS)):
                out[0, p * ROWS + i] = to[i]
    else:
        rows = rows_for(kind, out.shape[0], depth)
        sums = np.zeros((out.shape[0], n_groups), np.float32)
        units = np.zeros(out.shape[0], np.float32)
        for j in prange(n_rows):
            units[j] = fill(kind, x[j], rows[j], sums[j])
        for p in prange(panels.shape[0]):
            _times_rows(kind, panels[p], p * ROWS, depth, n_groups, rows, sums, units, out)


@inner
def _times_rows(
    kind: Any, panel: NDArray[np.uint8], first: int, depth: int, n_groups: int,
    rows: Any, sums: Floats, units: Floats, out: Floats,
) -> None:  # fmt: skip
    """One panel with all rows of activations, to columns of `out` from `first` on."""
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
            count = FEW
            four_rows(*given)
        if not whole:
            for i in range(count):
                for column in range(first, out.shape[1]):
                    out[j + i, column] = beside[i, column - first]
        j += count
