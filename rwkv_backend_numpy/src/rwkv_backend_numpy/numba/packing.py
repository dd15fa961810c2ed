"""Packs matrices into panels. A kernel packs floats as fast as memory is read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload
from numpy.typing import DTypeLike, NDArray

from rwkv_backend_numpy.arena import Arena
from rwkv_backend_numpy.numba.compiled import compiled
from rwkv_backend_numpy.numba.panels import DEPTH, INT4, INT8, LINE, ROWS, Kind, Matrix
from rwkv_backend_numpy.numba.short_floats import float16_to_float32, float32_to_bfloat16
from rwkv_backend_numpy.numba.transpose_kernel import put_square
from rwkv_backend_numpy.numba.work_sharing import Counters, take_range
from rwkv_core.quantization import QuantizedMatrix

# Largest number of products of codes with int16 whose sum fits into 32 bits.
_MAX_GROUP_SIZE = 256


def float_matrix(array: NDArray[Any], kind: Kind, arena: Arena) -> Matrix:
    """Pack `array` [out, in], of any float type, as float32 or bfloat16, rounded to nearest."""
    n_out, width = array.shape
    depth = -(-width // DEPTH) * DEPTH
    panels = _empty(arena, n_out, depth * ROWS * kind.itemsize)
    pack(_as_packed(array), panels.view(kind.dtype))
    return Matrix(panels, kind, n_out, depth)


def _as_packed(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array in a type for `pack`: bfloat16 as uint16, float16 as int16, or float32."""
    bits: dict[str, DTypeLike] = {"bfloat16": np.uint16, "float16": np.int16}
    if array.dtype.name in bits:
        return np.ascontiguousarray(array).view(bits[array.dtype.name])
    return np.ascontiguousarray(array, np.float32)


def code_matrix(matrix: QuantizedMatrix, arena: Arena) -> Matrix:
    """Pack a quantized matrix, with its groups or equal parts of them, of a multiple of DEPTH."""
    n_out, width = matrix.shape
    size = matrix.group_size
    if size > _MAX_GROUP_SIZE:
        size = math.gcd(size, _MAX_GROUP_SIZE)
    n_groups, n_lines = width // size, size * matrix.bits // 32
    panels = _empty(arena, n_out, LINE * (1 + n_groups * (1 + n_lines)))
    groups = panels[:, LINE:].reshape(len(panels), n_groups, 1 + n_lines, LINE)
    units, *floats = _in_float16(matrix)
    panels[:, :LINE].view(np.float32)[...] = _by_panels(units)
    for part, array in zip(
        np.split(groups[:, :, 0].view(np.float16), 2, axis=2), floats, strict=True
    ):
        part[...] = _by_panels(array.repeat(matrix.group_size // size, axis=1)).transpose(0, 2, 1)
    codes = _by_panels(np.ascontiguousarray(matrix.codes).view(np.uint32))
    codes = codes.reshape(len(panels), ROWS, n_groups, n_lines)
    groups[:, :, 1:].view(np.uint32)[...] = codes.transpose(0, 2, 3, 1)
    return Matrix(panels, INT8 if matrix.bits == 8 else INT4, n_out, width, n_groups)


def _in_float16(matrix: QuantizedMatrix) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return a unit for each row, and the scales and offsets divided by the unit.

    Units are float32 [out]; scales and offsets are float16 [out, groups]. If the matrix has float16
    scales and offsets, units are 1. If not, a unit is the power of two that brings the row's scales
    and offsets into float16's range.
    """
    scales, offsets = matrix.scales, matrix.offsets
    units = np.ones(len(scales), np.float32)
    if scales.dtype != np.float16 or offsets.dtype != np.float16:
        top = np.maximum(abs(scales), abs(offsets)).max(axis=1)
        units = np.exp2(np.frexp(top)[1] - 14, dtype=np.float32)
        scales, offsets = scales / units[:, None], offsets / units[:, None]
    return units, scales.astype(np.float16), offsets.astype(np.float16)


def _empty(arena: Arena, n_out: int, panel_bytes: int) -> NDArray[np.uint8]:
    return arena.empty((-(-n_out // ROWS), panel_bytes), np.uint8)


def _by_panels(array: NDArray[Any]) -> NDArray[Any]:
    """Return `array` [out, ...] as [panels, ROWS, ...], with zeros for missing rows."""
    lacking = -len(array) % ROWS
    if lacking:
        array = np.concatenate([array, np.zeros((lacking, *array.shape[1:]), array.dtype)])
    return array.reshape(-1, ROWS, *array.shape[1:])


def as_float32(value: Any) -> Any:
    """Return a float32, the bits of a bfloat16 in uint16, or of a float16 in int16, as float32."""
    raise NotImplementedError  # Only for compiled code.


def put(panel: NDArray[Any], column: int, row: int, value: np.float32) -> None:
    """Store a weight in a panel, converted to the panel's kind."""
    raise NotImplementedError  # Only for compiled code.


@overload(as_float32, strict=False)
def _as_float32(value: Any) -> Any:
    if value == types.float32:
        return lambda value: value
    if value == types.uint16:
        return lambda value: np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)
    return lambda value: float16_to_float32(value)


@overload(put, strict=False)
def _put(panel: Any, column: Any, row: Any, value: Any) -> Any:
    return _put_float32 if panel.dtype == types.float32 else _put_bfloat16


def _put_float32(panel: NDArray[Any], column: int, row: int, value: np.float32) -> None:
    panel[column * ROWS + row] = value


def _put_bfloat16(panel: NDArray[Any], column: int, row: int, value: np.float32) -> None:
    rounded = float32_to_bfloat16(np.float32(value).view(np.uint32))
    panel[(column // 2 * ROWS + row) * 2 + column % 2] = np.uint16(rounded)


@compiled
def pack(counts: Counters, thread: int, array: NDArray[Any], panels: NDArray[Any]) -> None:
    """Pack `array` [out, in], of a type that `as_float32` takes, into `panels` [panels, n].

    The panels are float32, or uint16 for bfloat16.
    """
    n_out, width = array.shape
    kind, source = panels[0, 0], array[0, 0]
    columns = LINE // panels.itemsize
    while True:
        p, end = take_range(counts, thread, panels.shape[0], 1)
        if p == end:
            break
        panel, first = panels[p], p * ROWS
        n_rows = min(ROWS, n_out - first)
        done = 0
        if n_rows == ROWS:
            done = width // columns * columns
            for column in range(0, done, columns):
                put_square(
                    kind, source, array[first, column:].ctypes.data, array.strides[0],
                    panel[column * ROWS :].ctypes.data, LINE,
                )  # fmt: skip
        panel[done * ROWS :] = 0
        for column in range(done, width):
            for row in range(n_rows):
                put(panel, column, row, as_float32(array[first + row, column]))
