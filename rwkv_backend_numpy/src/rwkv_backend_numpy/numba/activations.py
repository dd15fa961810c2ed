"""Converts activations to the form that products need for each kind of matrix.

A kind is the type in which a matrix is stored: float32, bfloat16, int8 or int4. `panel_kernels` and
`tile_kernels` describe the forms.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

from rwkv_backend_numpy.numba.llvm_vectors import HAS_BFLOAT16_PRODUCTS
from rwkv_backend_numpy.numba.panels import BFLOAT16, INT4, INT8, Kind
from rwkv_backend_numpy.numba.short_floats import float32_to_bfloat16
from rwkv_backend_numpy.numba.work_sharing import Counters, done, inner, take, wait

Floats = NDArray[np.float32]

_BITS = {types.uint8: 8, types.int8: 4}
_LEVELS = np.float32(32767)
_ROWS_IN_BLOCK = 16


def row_for(kind: Any, depth: int) -> Any:
    """Return an array for one row of activations."""
    raise NotImplementedError  # Only for compiled code.


def rows_for(kind: Kind, n_rows: int, depth: int) -> NDArray[Any]:
    """Return an array for `n_rows` rows of `depth` activations, in the form for `kind`.

    Each row is followed by an unused cache line. Without this line, rows could lie a multiple of 4
    kB apart, and so share the same few sets of a cache.
    """
    if kind.dtype in (INT8.dtype, INT4.dtype):
        return np.empty((n_rows, depth + 32), np.int16)
    if kind.dtype == BFLOAT16.dtype and HAS_BFLOAT16_PRODUCTS:
        return np.empty((n_rows, depth + 32), np.uint16)
    return np.empty((n_rows, depth + 16), np.float32)


@inner
def convert(
    counts: Counters, thread: int, kind: Any, x: Floats, rows: Any, sums: Floats, units: Floats
) -> None:
    """Fill all rows with those of `x`, in the first phase of a kernel; wait until all are done."""
    n_blocks = (x.shape[0] + _ROWS_IN_BLOCK - 1) // _ROWS_IN_BLOCK
    while True:
        block = take(counts, 0, thread, n_blocks)
        if block < 0:
            break
        for j in range(block * _ROWS_IN_BLOCK, min((block + 1) * _ROWS_IN_BLOCK, x.shape[0])):
            units[j] = fill(kind, x[j], rows[j], sums[j])
        done(counts, 0)
    wait(counts, 0, n_blocks)


@inner
def prepared(kind: Any, depth: int, n_groups: int, x: Floats) -> Any:
    """Return `x` [in] in the form for a product of one row: row, sums of its groups, unit [1]."""
    row, sums, unit = row_for(kind, depth), np.empty(n_groups, np.float32), np.empty(1, np.float32)
    unit[0] = fill(kind, x, row, sums)
    return row, sums, unit


def fill(kind: Any, x: Floats, row: Any, sums: Floats) -> np.float32:
    """Store `x` [in] to a row, and, for codes, the sum of each group. Return the unit of both."""
    raise NotImplementedError  # Only for compiled code.


@overload(row_for, strict=False)
def _row_for(kind: Any, depth: Any) -> Any:
    if kind in _BITS:
        return lambda kind, depth: np.zeros(depth, np.int16)
    return lambda kind, depth: np.zeros(depth, np.float32)


@overload(fill, strict=False)
def _fill(kind: Any, x: Any, row: Any, sums: Any) -> Any:
    if kind in _BITS and row.dtype == types.uint8:
        return lambda kind, x, row, sums: _to_bytes(x, row, sums)
    if kind in _BITS and row.dtype == types.int16:
        half = 16 // _BITS[kind]
        return lambda kind, x, row, sums: _to_int16(x, row, sums, half)
    if row.dtype == types.uint16:
        return _to_bfloat16
    return _copied


def _copied(kind: Any, x: Floats, row: Any, sums: Floats) -> Any:
    for i in range(x.size):
        row[i] = x[i]
    return np.float32(1)


def _to_bfloat16(kind: Any, x: Floats, row: Any, sums: Floats) -> Any:
    bits = x.view(np.uint32)
    for i in range(x.size):
        one = bits[i]
        # NaN stays NaN.
        quiet = np.uint32(np.uint32(one | np.uint32(1 << 22)) >> np.uint32(16))
        number = np.uint32(one & np.uint32(0x7FFFFFFF)) <= np.uint32(0x7F800000)
        row[i] = np.uint16(float32_to_bfloat16(one) if number else quiet)
    return np.float32(1)


@inner
def _to_int16(x: Floats, row: NDArray[np.int16], sums: Floats, half: int) -> Any:
    """Store `x` as int16, in pairs that are `half` a step apart, and the sums. Return the unit."""
    levels, unit = _levels(x, sums)
    for start in range(0, x.size, 2 * half):
        for i in range(half):
            row[start + 2 * i] = np.int16(levels[start + i])
            row[start + 2 * i + 1] = np.int16(levels[start + half + i])
    return unit


@inner
def _to_bytes(x: Floats, row: NDArray[np.uint8], sums: Floats) -> Any:
    """Store the high bytes of `x` as int16, the low ones, and the sums. Return the unit."""
    levels, unit = _levels(x, sums)
    for i in range(x.size):
        row[i] = np.uint8(levels[i] >> 8)
    for i in range(x.size):
        row[x.size + i] = np.uint8(levels[i])
    return unit


@inner
def _levels(x: Floats, sums: Floats) -> Any:
    """Return `x` in its unit, rounded to int16 but in int32, and the unit; store groups' sums."""
    largest = _largest(x)
    per_unit = _LEVELS / largest if largest > np.float32(1e-30) else np.float32(0)
    size = x.size // sums.size
    levels = np.empty(x.size, np.int32)
    for i in range(x.size):
        level = x[i] * per_unit
        levels[i] = np.int32(level + (np.float32(0.5) if level >= 0 else np.float32(-0.5)))
    for group in range(sums.size):
        total = np.int32(0)
        for i in range(group * size, (group + 1) * size):
            total = np.int32(total + levels[i])
        sums[group] = np.float32(total)
    return levels, largest / _LEVELS


@inner
def _largest(x: Floats) -> Any:
    """Return the largest magnitude in `x`; NaN if there is a NaN."""
    # Read as integers, magnitudes keep their order and NaN is the largest; this maximum vectorizes.
    bits = x.view(np.int32)
    top = np.int32(0)
    for i in range(x.size):
        one = np.int32(bits[i] & np.int32(0x7FFFFFFF))
        if one > top:
            top = one
    return np.int32(top).view(np.float32)
