"""Matrices as the compiled kernels read them; `kernels` says what the types of elements mean."""

from __future__ import annotations

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from rwkv_backend_numpy.float_tile import MATRIX_ROWS
from rwkv_backend_numpy.slabs import Slabs
from rwkv_core.quantization import QuantizedMatrix

# Of a matrix, converted at a time, so that they stay in a cache.
_WEIGHTS_AT_ONCE = 2**16


class Matrix(NamedTuple):
    """A matrix [out, in]: its rows, of which there may be some more than `out`, to fill a tile."""

    array: NDArray[Any]
    n_out: int
    n_groups: int = 1


def float32_matrix(array: NDArray[Any], slabs: Slabs) -> Matrix:
    n_out, width = array.shape
    rows = slabs.empty((max(n_out, MATRIX_ROWS), width), np.float32)
    rows[:n_out], rows[n_out:] = array, 0
    return Matrix(rows, n_out)


def bfloat16_matrix(array: NDArray[Any], slabs: Slabs) -> Matrix:
    n_out, width = array.shape
    rows = slabs.empty((max(n_out, MATRIX_ROWS), width), np.uint16)
    rows[n_out:] = 0
    if array.dtype == ml_dtypes.bfloat16:
        rows[:n_out] = np.ascontiguousarray(array).view(np.uint16)
        return Matrix(rows, n_out)
    step = max(1, _WEIGHTS_AT_ONCE // width)
    for start in range(0, n_out, step):
        bits = array[start : start + step].astype(np.float32, order="C").view(np.uint32)
        # To the nearest, and halfway to the even one.
        bits += ((bits >> 16) & 1) + 0x7FFF
        rows[start : start + len(bits)] = bits >> 16
    return Matrix(rows, n_out)


def packed_matrix(matrix: QuantizedMatrix, slabs: Slabs) -> Matrix:
    """The codes of all rows, then each row's scales, offsets and their unit; see `integer_dot`.

    The unit is 1 if they are float16, and otherwise a power of two that makes them such.
    """
    n_out, n_groups = matrix.scales.shape
    unit = np.ones((n_out, 1), np.float32)
    scales, offsets = matrix.scales, matrix.offsets
    if scales.dtype != np.float16 or offsets.dtype != np.float16:
        top = np.maximum(abs(scales), abs(offsets)).max(axis=1, keepdims=True)
        unit = np.exp2(np.frexp(top)[1] - 14, dtype=np.float32)
        scales, offsets = scales / unit, offsets / unit
    code_bytes, float_bytes = matrix.codes.shape[1], 4 * n_groups + 4
    n_rows = max(n_out, MATRIX_ROWS)
    rows = slabs.empty((n_rows, code_bytes + float_bytes), np.uint8)
    codes, floats = np.split(rows.reshape(-1), [n_rows * code_bytes])
    codes, floats = codes.reshape(n_rows, -1), floats.reshape(n_rows, -1)
    codes[:n_out], codes[n_out:], floats[n_out:] = matrix.codes, 0, 0
    halves = floats[:n_out, : 4 * n_groups].view(np.float16)
    halves[:, :n_groups], halves[:, n_groups:] = scales, offsets
    floats[:n_out, 4 * n_groups :].view(np.float32)[:] = unit
    return Matrix(rows.view(np.uint8 if matrix.bits == 8 else np.int8), n_out, n_groups)
