"""The products, and one token's way through a layer, compiled by Numba.

A matrix [out, in] is one array in C order, and the type of its elements says what they are:

    float32   weights
    uint16    weights in bfloat16, the upper half of a float32
    uint8     8-bit codes: a row is `in` codes, the groups' scales and then offsets in float16, and
              the unit of both in float32
    int8      4-bit codes, two a byte; the same otherwise

Codes are multiplied with activations rounded to int16, in units of their own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange, types
from numba.extending import overload
from numpy.typing import NDArray

from rwkv_backend_numpy import float_dot, integer_dot
from rwkv_backend_numpy.compiled import REORDERED, compiled
from rwkv_backend_numpy.float_tile import MATRIX_ROWS, X_ROWS, tile
from rwkv_backend_numpy.vector_kernels import layer_norm_row, sigmoid_of, wkv_step

Floats = NDArray[np.float32]
Matrix = NDArray[Any]

# Rows of a matrix that a thread takes at once: of single products, and of tiles.
BLOCK, _TILED = 16, 4 * MATRIX_ROWS
# The rows of a layer's vectors [11, D], and its matrices.
LN1, MIX_K, MIX_V, MIX_R, DECAY, FIRST, LN2, CHANNEL_K, CHANNEL_R = 0, 2, 3, 4, 5, 6, 7, 9, 10
KEY, VALUE, RECEPTANCE, OUTPUT, CHANNEL_KEY, CHANNEL_RECEPTANCE, CHANNEL_VALUE = range(7)
# Of the state; see recurrence.
CHANNEL_X, TIME_X, AA, BB, PP = range(5)

_BITS = {types.uint8: 8, types.int8: 4}
_DOTS = {bits: [integer_dot.row_dot(bits, *kind) for kind in integer_dot.KINDS] for bits in (8, 4)}


def prepared(matrix: Matrix, x: Floats, n_groups: int) -> tuple[Any, ...]:
    """`x` [rows, in] as a product with `matrix`, of `n_groups` groups in a row, takes it.

    Gives values [rows, in], their sums over each group [rows, groups] and their units [rows].
    """
    raise NotImplementedError  # Only for compiled code.


def multiply_rows(
    matrix: Matrix, start: int, end: int, values: Any, sums: Floats, unit: Any, out: Floats
) -> None:
    """Those rows of the matrix times the vector that `prepared` made of x, to out[start:end]."""
    raise NotImplementedError  # Only for compiled code.


def float_rows(matrix: Matrix, start: int, end: int, n_groups: int, width: int) -> tuple[Any, int]:
    """An array with those rows of the matrix in float32, and where they start in it."""
    raise NotImplementedError  # Only for compiled code.


@overload(prepared, strict=False)
def _prepared(matrix: Any, x: Any, n_groups: Any) -> Any:
    if matrix.dtype not in _BITS:
        return lambda matrix, x, n_groups: (x, x, x[:, 0])
    bits = _BITS[matrix.dtype]

    def rounded(matrix: Matrix, x: Floats, n_groups: int) -> tuple[Any, ...]:
        n_rows, width = x.shape
        values = np.empty((n_rows, width), np.int16)
        sums = np.empty((n_rows, n_groups), np.float32)
        units = np.empty(n_rows, np.float32)
        for row in range(n_rows):
            units[row] = _round_row(x[row], bits, values[row], sums[row])
        return values, sums, units

    return rounded


@njit(fastmath=False)
def _largest(x: Floats) -> Any:
    """The largest magnitude in `x`, or NaN if there is one."""
    # Read as integers floats keep their order, NaN being the largest: a maximum that vectorizes.
    bits = x.view(np.int32)
    top = np.int32(0)
    for i in range(x.size):
        one = np.int32(bits[i] & np.int32(0x7FFFFFFF))
        if one > top:
            top = one
    return np.int32(top).view(np.float32)


@njit(fastmath=False)
def _round_row(x: Floats, bits: int, values: NDArray[np.int16], sums: Floats) -> Any:
    """`x` [in] in int16 as `integer_dot.row_dot` wants it, and its groups' sums; gives the unit."""
    n_groups = sums.size
    size = x.size // n_groups
    step = 64 if size % 64 == 0 else 32 if size == 32 else 8
    # The sum of a group's products in one lane has 32 bits.
    products = size * 32 // (step * bits)
    limit = np.float32(min(2**15, 2**31 // (products * (2**bits - 1))) - 1)
    largest = _largest(x)
    per_unit = limit / largest if largest > np.float32(1e-30) else np.float32(0)
    levels = np.empty(x.size, np.int32)
    for i in range(x.size):
        level = x[i] * per_unit
        levels[i] = np.int32(level + (np.float32(0.5) if level >= 0 else np.float32(-0.5)))
    for group in range(n_groups):
        total = np.int32(0)
        for i in range(group * size, (group + 1) * size):
            total = np.int32(total + levels[i])
        sums[group] = np.float32(total)
    per_word = 16 // bits
    lanes = step // per_word
    for start in range(0, x.size, step):
        for part in range(per_word):
            for lane in range(lanes):
                at = start + lane * per_word + part
                values[start + part * lanes + lane] = np.int16(levels[at])
    return largest / limit


@overload(multiply_rows, jit_options={"fastmath": REORDERED, "forceinline": True}, strict=False)
def _multiply_rows(
    matrix: Any, start: Any, end: Any, values: Any, sums: Any, unit: Any, out: Any
) -> Any:
    if matrix.dtype not in _BITS:
        return _multiply_floats
    dot64, dots64, dot32, dots8 = _DOTS[_BITS[matrix.dtype]]

    def multiply_codes(
        matrix: Matrix, start: int, end: int, values: Any, sums: Floats, unit: Any, out: Floats
    ) -> None:
        size = values.size // sums.size
        for row in range(start, end):
            if size == 64:
                out[row] = dot64(matrix, row, values, sums, unit)
            elif size == 32:
                out[row] = dot32(matrix, row, values, sums, unit)
            elif size % 64 == 0:
                out[row] = dots64(matrix, row, values, sums, unit)
            else:
                out[row] = dots8(matrix, row, values, sums, unit)

    return multiply_codes


def _multiply_floats(
    matrix: Matrix, start: int, end: int, values: Any, sums: Floats, unit: Any, out: Floats
) -> None:
    for row in range(start, end):
        out[row] = float_dot.row_dot(matrix, row, values)


@overload(float_rows, strict=False)
def _float_rows(matrix: Any, start: Any, end: Any, n_groups: Any, width: Any) -> Any:
    if matrix.dtype == types.float32:
        return lambda matrix, start, end, n_groups, width: (matrix, start)
    if matrix.dtype == types.uint16:
        return _widened_bfloat16
    bits = _BITS[matrix.dtype]
    per_byte = 8 // bits

    def widened_codes(
        matrix: Matrix, start: int, end: int, n_groups: int, width: int
    ) -> tuple[Floats, int]:
        out = np.empty((end - start, width), np.float32)
        size = width // n_groups
        codes = matrix.reshape(-1)
        floats = codes[matrix.shape[0] * width // per_byte :].view(np.uint16)
        for row in range(start, end):
            at = row * (2 * n_groups + 2)
            unit = floats[at + 2 * n_groups : at + 2 * n_groups + 2].view(np.float32)[0]
            for group in range(n_groups):
                scale = _float16(floats[at + group]) * unit
                offset = _float16(floats[at + n_groups + group]) * unit
                first = (row * width + group * size) // per_byte
                to = out[row - start, group * size : (group + 1) * size]
                _widen_codes(codes[first : first + size // per_byte], bits, scale, offset, to)
        return out, 0

    return widened_codes


@njit(fastmath=False)
def _widen_codes(
    codes: NDArray[Any], bits: int, scale: np.float32, offset: np.float32, out: Floats
) -> None:
    """A group's `codes` as the weights they stand for, to `out`."""
    if bits == 8:
        for i in range(codes.size):
            out[i] = np.float32(np.uint8(codes[i])) * scale + offset
    else:
        for i in range(codes.size):
            pair = np.uint8(codes[i])
            out[2 * i] = np.float32(np.uint8(pair & np.uint8(15))) * scale + offset
            out[2 * i + 1] = np.float32(np.uint8(pair >> np.uint8(4))) * scale + offset


@njit(fastmath=False)
def _float16(bits: np.uint16) -> Any:
    """In float32; by its bits, as not every processor converts it."""
    sign = np.uint32(np.uint32(bits & np.uint16(0x8000)) << np.uint32(16))
    rest = np.uint32(np.uint32(bits & np.uint16(0x7FFF)) << np.uint32(13))
    return np.uint32(sign | rest).view(np.float32) * np.float32(2.0**112)


def _widened_bfloat16(
    matrix: Matrix, start: int, end: int, n_groups: int, width: int
) -> tuple[Floats, int]:
    out = np.empty((end - start, width), np.float32)
    for row in range(start, end):
        for i in range(width):
            weight = np.uint32(np.uint32(matrix[row, i]) << np.uint32(16))
            out[row - start, i] = weight.view(np.float32)
    return out, 0


@compiled
def product(matrix: Matrix, x: Floats, n_groups: int, out: Floats) -> None:
    """`x` [rows, in] times `matrix` [out, in], transposed, to `out` [rows, out]."""
    n_out = matrix.shape[0]
    values, sums, units = prepared(matrix, x, n_groups)
    for block in prange((n_out + BLOCK - 1) // BLOCK):
        start, end = block * BLOCK, min((block + 1) * BLOCK, n_out)
        for j in range(x.shape[0]):
            multiply_rows(matrix, start, end, values[j], sums[j], units[j], out[j])


@compiled
def tiled_product(matrix: Matrix, x: Floats, n_groups: int, out: Floats) -> None:
    """As `product`, for many rows: weights are widened a block at a time, if they have to be.

    The matrix has at least MATRIX_ROWS rows, x a multiple of X_ROWS, `in` is one of COLUMNS.
    """
    n_out = matrix.shape[0]
    for block in prange((n_out + _TILED - 1) // _TILED):
        end = min((block + 1) * _TILED, n_out)
        start = min(block * _TILED, end - MATRIX_ROWS)
        rows, at = float_rows(matrix, start, end, n_groups, x.shape[1])
        for j in range(0, x.shape[0], X_ROWS):
            for i in range(start, end, MATRIX_ROWS):
                # The last tile of a block covers some of the one before once more.
                first = min(i, end - MATRIX_ROWS)
                tile(x, j, rows, at + first - start, out, first)


@compiled
def layer(
    index: int,
    vectors: Floats,
    matrices: tuple[Matrix, ...],
    n_groups: tuple[int, int],
    x: Floats,
    state: Floats,
    after: Floats,
) -> None:
    """One token of one sequence through a layer, as `recurrence.block` has it.

    Arguments:
        index: the layer's.
        vectors: [L, 11, D].
        matrices: the layer's seven, all of one type.
        n_groups: of a row that is D wide, and F.
        x: [D], changed in place.
        state: [L, 5, D]; after: the same, to which the layer's part is written.
    """
    v, before, after = vectors[index], state[index], after[index]
    n_embd, n_ffn = x.size, matrices[CHANNEL_KEY].shape[0]
    of_width, of_ffn = n_groups

    key, value, receptance, output = matrices[0], matrices[1], matrices[2], matrices[3]
    time_x = after[TIME_X]
    layer_norm_row(x, v[LN1], v[LN1 + 1], time_x)
    mixed = np.empty((3, n_embd), np.float32)
    for i in range(n_embd):
        step = time_x[i] - before[TIME_X, i]
        mixed[0, i] = before[TIME_X, i] + v[MIX_K, i] * step
        mixed[1, i] = before[TIME_X, i] + v[MIX_V, i] * step
        mixed[2, i] = before[TIME_X, i] + v[MIX_R, i] * step
    values, sums, units = prepared(key, mixed, of_width)
    kvr = np.empty((3, n_embd), np.float32)
    wkv = np.empty((1, n_embd), np.float32)
    for block in prange((n_embd + BLOCK - 1) // BLOCK):
        start, end = block * BLOCK, min((block + 1) * BLOCK, n_embd)
        multiply_rows(key, start, end, values[0], sums[0], units[0], kvr[0])
        multiply_rows(value, start, end, values[1], sums[1], units[1], kvr[1])
        multiply_rows(receptance, start, end, values[2], sums[2], units[2], kvr[2])
        for i in range(start, end):
            mean, after[AA, i], after[BB, i], after[PP, i] = wkv_step(
                kvr[0, i], kvr[1, i], v[DECAY, i], v[FIRST, i],
                before[AA, i], before[BB, i], before[PP, i],
            )  # fmt: skip
            wkv[0, i] = sigmoid_of(kvr[2, i]) * mean
    values, sums, units = prepared(output, wkv, of_width)
    y = np.empty(n_embd, np.float32)
    for block in prange((n_embd + BLOCK - 1) // BLOCK):
        start, end = block * BLOCK, min((block + 1) * BLOCK, n_embd)
        multiply_rows(output, start, end, values[0], sums[0], units[0], y)
    for i in range(n_embd):
        x[i] += y[i]

    key, receptance, value = matrices[4], matrices[5], matrices[6]
    channel_x = after[CHANNEL_X]
    layer_norm_row(x, v[LN2], v[LN2 + 1], channel_x)
    for i in range(n_embd):
        step = channel_x[i] - before[CHANNEL_X, i]
        mixed[0, i] = before[CHANNEL_X, i] + v[CHANNEL_K, i] * step
        mixed[1, i] = before[CHANNEL_X, i] + v[CHANNEL_R, i] * step
    values, sums, units = prepared(key, mixed, of_width)
    k = np.empty((1, n_ffn), np.float32)
    gate = np.empty(n_embd, np.float32)
    key_blocks = (n_ffn + BLOCK - 1) // BLOCK
    for block in prange(key_blocks + (n_embd + BLOCK - 1) // BLOCK):
        if block < key_blocks:
            start, end = block * BLOCK, min((block + 1) * BLOCK, n_ffn)
            multiply_rows(key, start, end, values[0], sums[0], units[0], k[0])
        else:
            start = (block - key_blocks) * BLOCK
            end = min(start + BLOCK, n_embd)
            multiply_rows(receptance, start, end, values[1], sums[1], units[1], gate)
    for i in range(n_ffn):
        k[0, i] = np.float32(0) if k[0, i] < 0 else k[0, i] * k[0, i]
    values, sums, units = prepared(value, k, of_ffn)
    for block in prange((n_embd + BLOCK - 1) // BLOCK):
        start, end = block * BLOCK, min((block + 1) * BLOCK, n_embd)
        multiply_rows(value, start, end, values[0], sums[0], units[0], y)
    for i in range(n_embd):
        x[i] += sigmoid_of(gate[i]) * y[i]
