"""Faults of matrices and of products with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from conformance_faults.planting import (
    Ops,
    TupleOps,
    fault,
    spoil,
    spoil_matrix,
)


def zeroed(*place: slice) -> Callable[[Any], Any]:
    def change(array: Any) -> Any:
        array[place] = 0
        return array

    return change


def halves_swapped(axis: int) -> Callable[[Any], Any]:
    return lambda array: np.roll(array, array.shape[axis] // 2, axis)


def turned_if_square(array: Any) -> Any:
    return array.T.copy() if array.shape[0] == array.shape[1] else array


rest, beyond_128, beyond_1024 = slice(None), slice(128, None), slice(1024, None)
spoil_matrix("matrix: rows beyond 128 lost", "real_size", zeroed(beyond_128))
spoil_matrix("matrix: columns beyond 128 lost", "real_size", zeroed(rest, beyond_128))
spoil_matrix("matrix: rows beyond 1024 lost", "real_size", zeroed(beyond_1024))
spoil_matrix("matrix: columns beyond 1024 lost", "real_size", zeroed(rest, beyond_1024))
spoil_matrix("matrix: rows beyond 4096 lost", "real_size", zeroed(slice(4096, None)))
spoil_matrix(
    "matrix: last row lost if odd",
    "real_size",
    lambda a: zeroed(slice(-(len(a) % 2) or len(a), None))(a),
)
spoil_matrix("matrix: halves of rows swapped", "holds_its_source", halves_swapped(0))
spoil_matrix("matrix: halves of columns swapped", "holds_its_source", halves_swapped(1))
spoil_matrix("matrix: transposed where square", "test_product_is_float64s", turned_if_square)
spoil_matrix("matrix: kept in float16", "holds_its_source", lambda a: a.astype("float16"))
spoil_matrix("matrix: kept in bfloat16", "holds_its_source", lambda a: a.astype("bfloat16"))
spoil_matrix(
    "matrix: truncated, not rounded",
    "holds_its_source",
    lambda a: (np.asarray(a, "float32").view("uint32") & 0xFFFFFF00).view("float32"),
)
spoil_matrix(
    "matrix: one weight of a million lost", "real_size", zeroed(slice(-1, None), slice(767, 768))
)
spoil_matrix(
    "matrix: columns beyond a multiple of 32",
    "width_that_is_no_multiple",
    lambda a: zeroed(rest, slice(a.shape[1] // 32 * 32, None))(a),
)
spoil_matrix(
    "matrix: rows beyond a multiple of 32",
    "holds_its_source",
    lambda a: zeroed(slice(len(a) // 32 * 32, None))(a),
)
spoil_matrix("matrix: large weights clipped", "real_size", lambda a: np.clip(a, -4, 4))
spoil_matrix("matrix: small weights flushed", "real_size", lambda a: np.where(abs(a) < 1e-4, 0, a))
spoil_matrix(
    "matrix: NaN hidden by other numbers off", "holds_its_source", lambda a: a * np.float32(1.0001)
)


@fault("matrix: keeps a view of its source", "later_changes_of_their_source")
class _(Ops):
    def matrix(self, array: Any) -> Any:
        return np.asarray(array, self.dtype)


@fault("matrix: takes memory for contiguous that is not", "not_contiguous")
class _(Ops):
    def matrix(self, array: Any) -> Any:
        return (
            np.frombuffer(array.tobytes("A"), array.dtype).reshape(array.shape).astype(self.dtype)
        )


@fault("quantized matrix: offsets left out", "quantized")
class _(Ops):
    def quantized_matrix(self, matrix: Any) -> Any:
        return self.matrix(matrix.unpacked() * matrix.scales.repeat(matrix.group_size, 1))


@fault("quantized matrix: 4 bits with halves of bytes swapped", "quantized")
class _(Ops):
    def quantized_matrix(self, matrix: Any) -> Any:
        array = matrix.dequantize()
        if matrix.bits == 4:
            array = array.reshape(len(array), -1, 2)[..., ::-1].reshape(array.shape)
        return self.matrix(array)


@fault("quantized matrix: wrong beyond 128 rows", "quantized")
class _(TupleOps):
    def quantized_matrix(self, matrix: Any) -> Any:
        array = matrix.dequantize()
        array[128:] = 0
        return self.matrix(array)


@fault("quantized matrix: wrong beyond 1024 columns", "quantized")
class _(TupleOps):
    def quantized_matrix(self, matrix: Any) -> Any:
        array = matrix.dequantize()
        array[:, 1024:] = 0
        return self.matrix(array)


@fault("quantized matrix: keeps a view of the file", "outlives_its_file")
class _(Ops):
    def quantized_matrix(self, matrix: Any) -> Any:
        return matrix

    def matmul(self, matrix: Any, x: Any) -> Any:
        return x @ getattr(matrix, "dequantize", lambda: matrix)().T


for wrong_bytes in (7, 0, -1, 2.5e5, 1 << 40):

    @fault(f"matrix_bytes: returns {wrong_bytes}", "knows_its_bytes")
    class _(Ops):
        wrong_bytes = wrong_bytes

        def matrix_bytes(self, matrix: Any) -> Any:
            return self.wrong_bytes


@fault("matrix_bytes: counts weights", "knows_its_bytes")
class _(Ops):
    def matrix_bytes(self, matrix: Any) -> Any:
        return matrix.size


spoil("matmul: in > 1024", "test_matmul", "matmul", lambda m, x: x.shape[-1] > 1024)
spoil("matmul: in > 2048", "test_matmul or test_arrays", "matmul", lambda m, x: x.shape[-1] > 2048)
spoil("matmul: out > 1024", "test_matmul", "matmul", lambda m, x: m.shape[0] > 1024)
spoil("matmul: out > 4096", "test_matmul or test_arrays", "matmul", lambda m, x: m.shape[0] > 4096)
spoil("matmul: T of 64", "test_matmul", "matmul", lambda m, x: x.shape[1] == 64)
spoil("matmul: T of 512", "test_matmul", "matmul", lambda m, x: x.shape[1] == 512)
spoil("matmul: T no multiple of 4", "test_matmul", "matmul", lambda m, x: x.shape[1] % 4 == 3)
spoil("matmul: B > 3", "test_matmul", "matmul", lambda m, x: len(x) > 3)
spoil("matmul: B > 32", "test_matmul", "matmul", lambda m, x: len(x) > 32)
spoil("matmul: B and T", "test_matmul", "matmul", lambda m, x: len(x) > 1 and x.shape[1] > 1)
spoil("matmul: odd rows of a matrix", "test_matmul", "matmul", lambda m, x: m.shape[0] % 2 == 1)


@fault("matmul: sums in float16", "sums_of_one_sign")
class _(Ops):
    def matmul(self, matrix: Any, x: Any) -> Any:
        total = np.zeros((*x.shape[:-1], len(matrix)), "float16")
        for start in range(0, x.shape[-1], 8):
            part = x[..., start : start + 8] @ matrix[:, start : start + 8].T
            total = (total + part).astype("float16")
        return total.astype(x.dtype)


@fault("matmul: sums in bfloat16", "sums_of_one_sign")
class _(Ops):
    def matmul(self, matrix: Any, x: Any) -> Any:
        total = np.zeros((*x.shape[:-1], len(matrix)), "bfloat16")
        for start in range(0, x.shape[-1], 8):
            part = x[..., start : start + 8] @ matrix[:, start : start + 8].T
            total = (total.astype("float32") + part).astype("bfloat16")
        return total.astype(x.dtype)


@fault("matmul: activations in bfloat16", "test_product_is_float64s")
class _(Ops):
    def matmul(self, matrix: Any, x: Any) -> Any:
        return super().matmul(matrix, x.astype("bfloat16").astype(x.dtype))


@fault("matmul: overflows as float16", "test_matmul")
class _(Ops):
    def matmul(self, matrix: Any, x: Any) -> Any:
        with np.errstate(all="ignore"):
            return super().matmul(matrix, x.astype("float16").astype(x.dtype))


@fault("matmul: scales its rows in place", "test_product_is_float64s")
class _(Ops):
    def matmul(self, matrix: Any, x: Any) -> Any:
        scale = abs(x).max(axis=-1, keepdims=True)
        np.divide(x, scale, out=x, where=scale > 0)
        return super().matmul(matrix, x) * scale


@fault("matmul: one scale for all rows in 8 bits", "neighbours")
class _(Ops):
    def matmul(self, matrix: Any, x: Any) -> Any:
        scale = abs(x).max() / 1e7 or 1
        return super().matmul(matrix, np.rint(x / scale).astype(x.dtype)) * np.float32(scale)


@fault("matmul: a row of zeros is NaN", "zeros")
class _(Ops):
    def matmul(self, matrix: Any, x: Any) -> Any:
        with np.errstate(all="ignore"):
            scale = abs(x).max(axis=-1, keepdims=True)
            return super().matmul(matrix, x / scale) * scale


@fault("matmul: result in float64", "test_product_is_float64s")
class _(Ops):
    def matmul(self, matrix: Any, x: Any) -> Any:
        return x.astype("float64") @ matrix.T


@fault("matmul: one buffer for all results", "outlive or same_call or states")
class _(Ops):
    def __init__(self, dtype: str) -> None:
        super().__init__(dtype)
        self.buffers: dict[Any, Any] = {}

    def matmul(self, matrix: Any, x: Any) -> Any:
        result = super().matmul(matrix, x)
        buffer = self.buffers.setdefault(result.shape, np.empty_like(result))
        buffer[...] = result
        return buffer
