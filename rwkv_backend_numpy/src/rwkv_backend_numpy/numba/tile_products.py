"""The product of a matrix with many rows, by tiles, on processors that have them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

from rwkv_backend_numpy.numba.activations import convert
from rwkv_backend_numpy.numba.compiled import compiled
from rwkv_backend_numpy.numba.llvm_vectors import HAS_TILES
from rwkv_backend_numpy.numba.panels import BFLOAT16, FLOAT32, LINE, ROWS, Matrix
from rwkv_backend_numpy.numba.tile_kernels import (
    TILE,
    block_of_codes,
    four_blocks,
    one_block,
    restore,
    unpack,
)
from rwkv_backend_numpy.numba.work_sharing import Counters, inner, take
from rwkv_core.util.aligned import aligned_empty

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

# A tile costs the same for 1 row and for 16. From these numbers of rows on it was faster.
_MIN_ROWS, _MIN_ROWS_OF_CODES = 5, 9
# For so many rows, codes are restored to bfloat16: sums of groups would take most of the time.
_MIN_ROWS_RESTORED = 64
# Rows that `four_blocks` multiplies.
_FOUR_BLOCKS = 4 * ROWS
# Bytes of activations that every panel is multiplied with before the next ones; they stay in a
# core's own cache.
_CHUNK_BYTES = 2**20


def suits(matrix: Matrix, n_rows: int) -> bool:
    """Return whether tiles can multiply the matrix with so many rows, and are faster."""
    if not HAS_TILES or matrix.kind.dtype == FLOAT32.dtype:
        return False
    if matrix.kind.dtype == BFLOAT16.dtype:
        return n_rows >= _MIN_ROWS and matrix.depth % (LINE // 2) == 0
    return n_rows >= _MIN_ROWS_OF_CODES and matrix.depth // matrix.n_groups % LINE == 0


def rows_for_tiles(matrix: Matrix, n_rows: int) -> NDArray[Any]:
    """Return an array for rows of activations, in the form that is fastest for so many."""
    if matrix.kind.dtype == BFLOAT16.dtype or n_rows >= _MIN_ROWS_RESTORED:
        return aligned_empty((n_rows, matrix.depth + 32), np.uint16)
    return aligned_empty((n_rows, 2 * matrix.depth + 64), np.uint8)


@compiled
def of_rows_in_tiles(
    counts: Counters, thread: int,
    kind: Any, panels: Bytes, depth: int, n_groups: int, x: Floats,
    rows: Any, sums: Floats, units: Floats, out: Floats,
) -> None:  # fmt: skip
    """Multiply `x` [rows, in] with a matrix; write `out` [padded rows, out].

    The number of rows of `x` is padded to a multiple of 16. First, all threads convert `x` into
    `rows`, `sums` and `units` (see `activations`). Then they multiply.
    """
    convert(counts, thread, kind, x, rows, sums, units)
    n_panels = panels.shape[0]
    chunk = max(1, _CHUNK_BYTES // (rows.strides[0] * _FOUR_BLOCKS)) * _FOUR_BLOCKS
    n_chunks = (rows.shape[0] + chunk - 1) // chunk
    room = np.empty(2 * depth * ROWS + LINE, np.uint8)
    room = room[-room.ctypes.data % LINE :]
    while True:
        block = take(counts, 1, thread, n_chunks * n_panels)
        if block < 0:
            break
        panel, column = panels[block % n_panels], block % n_panels * ROWS
        weights = weights_of(kind, rows, panel, n_groups, room)
        start = block // n_panels * chunk
        end = min(start + chunk, rows.shape[0])
        while start < end:
            start += _times_block(
                kind, panel, weights, depth, n_groups, rows[start:end], sums[start:end],
                units[start:end], out[start:end, column:],
            )  # fmt: skip


@inner
def _times_block(
    kind: Any, panel: Bytes, weights: Bytes, depth: int, n_groups: int,
    rows: Any, sums: Floats, units: Floats, out: Floats,
) -> Any:  # fmt: skip
    """Multiply a panel with the first rows, and write them to `out`. Return how many."""
    if out.shape[1] >= ROWS:
        return times_first_rows(kind, panel, weights, depth, n_groups, rows, sums, units, out)
    whole = np.empty((_FOUR_BLOCKS, ROWS), np.float32)
    n_rows = times_first_rows(kind, panel, weights, depth, n_groups, rows, sums, units, whole)
    for i in range(n_rows):
        for column in range(out.shape[1]):
            out[i, column] = whole[i, column]
    return n_rows


def weights_of(kind: Any, rows: Any, panel: Bytes, n_groups: int, room: Bytes) -> Any:
    """Return a panel's weights in the form that a product with `rows` takes.

    The form is bfloat16 if `rows` is bfloat16, and one byte per code if `rows` is bytes. The result
    is a part of the panel if the panel has this form already. If not, the weights are converted
    into `room`.
    """
    raise NotImplementedError  # Only for compiled code.


def times_first_rows(
    kind: Any, panel: Bytes, weights: Bytes, depth: int, n_groups: int,
    rows: Any, sums: Floats, units: Floats, out: Floats,
) -> int:  # fmt: skip
    """Multiply a panel with the first 16 rows, or more, and write 16 columns. Return how many."""
    raise NotImplementedError  # Only for compiled code.


@overload(weights_of, strict=False)
def _weights_of(kind: Any, rows: Any, panel: Any, n_groups: Any, room: Any) -> Any:
    if kind == types.uint16:
        return lambda kind, rows, panel, n_groups, room: panel
    if rows.dtype == types.uint16:
        return _restored
    if kind == types.int8:
        return _unpacked
    return lambda kind, rows, panel, n_groups, room: panel[2 * LINE :]


def _restored(kind: Any, rows: Any, panel: Bytes, n_groups: int, room: Bytes) -> Any:
    n_lines = _group_bytes(panel, n_groups) // LINE - 1
    restore(kind, panel.ctypes.data, n_groups, n_lines, room.ctypes.data)
    return room


def _unpacked(kind: Any, rows: Any, panel: Bytes, n_groups: int, room: Bytes) -> Any:
    group_bytes = _group_bytes(panel, n_groups)
    n_lines = group_bytes // LINE - 1
    for group in range(n_groups):
        codes = panel[2 * LINE + group * group_bytes :]
        unpack(codes.ctypes.data, n_lines, room[2 * LINE * n_lines * group :].ctypes.data)
    return room


@overload(times_first_rows, strict=False)
def _times_first_rows(
    kind: Any, panel: Any, weights: Any, depth: Any, n_groups: Any,
    rows: Any, sums: Any, units: Any, out: Any,
) -> Any:  # fmt: skip
    if rows.dtype == types.uint16:
        return _floats_times_rows
    return _codes_times_rows(kind == types.int8)


def _floats_times_rows(
    kind: Any, panel: Bytes, weights: Bytes, depth: int, n_groups: int,
    rows: Any, sums: Floats, units: Floats, out: Floats,
) -> Any:  # fmt: skip
    given = (
        weights.ctypes.data, depth, rows.ctypes.data, rows.strides[0],
        out.ctypes.data, out.strides[0],
    )  # fmt: skip
    if rows.shape[0] >= _FOUR_BLOCKS:
        four_blocks(*given)
        return _FOUR_BLOCKS
    one_block(*given)
    return ROWS


def _codes_times_rows(unpacked: bool) -> Any:
    def times(
        kind: Any, panel: Bytes, weights: Bytes, depth: int, n_groups: int,
        rows: Any, sums: Floats, units: Floats, out: Floats,
    ) -> Any:  # fmt: skip
        group_bytes = _group_bytes(panel, n_groups)
        n_tiles = depth // (n_groups * LINE)
        block_of_codes(
            panel.ctypes.data, group_bytes,
            weights.ctypes.data, n_tiles * TILE if unpacked else group_bytes,
            n_tiles, n_groups, rows.ctypes.data, rows.strides[0], depth,
            sums.ctypes.data, units.ctypes.data, out.ctypes.data, out.strides[0],
        )  # fmt: skip
        return ROWS

    return times


@inner
def _group_bytes(panel: Bytes, n_groups: int) -> Any:
    """Return the bytes of a group of codes, with its line of scales and offsets."""
    return (panel.size - LINE) // n_groups
