"""RWKV's operations on NumPy arrays, with compiled kernels.

For one token of one sequence, one kernel computes the whole model, since about thirty NumPy calls
per layer would take longer than a small layer's products. Everything else uses the core's
equations, with kernels that each process a whole chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_backend_numpy.arena import Arena
from rwkv_backend_numpy.numba import head_kernels, rwkv4_packed, rwkv7_packed, vector_operations
from rwkv_backend_numpy.numba.packing import code_matrix, float_matrix
from rwkv_backend_numpy.numba.panels import BFLOAT16, DEPTH, FLOAT32, ROWS, Matrix
from rwkv_backend_numpy.numba.products import product
from rwkv_backend_numpy.numpy_ops import NumpyOps
from rwkv_core.backends.tensor_ops import WKVState
from rwkv_core.dtypes import GROUP_SIZE, QUANTIZED_BITS
from rwkv_core.errors import OptionError
from rwkv_core.quantization import QuantizedMatrix, quantize

Floats = NDArray[np.float32]

# For each architecture with a kernel for one token: the function that packs a model for it.
_ONE_TOKEN: dict[str, Callable[..., Any]] = {
    "rwkv4": rwkv4_packed.packed_model,
    "rwkv7": rwkv7_packed.packed_model,
}


class NumbaOps(NumpyOps):
    def __init__(self, dtype: str, group_size: int | None) -> None:
        if group_size is not None and dtype not in QUANTIZED_BITS:
            raise OptionError(
                f"option group_size: found it with dtype {dtype}, it is of dtype int8 and int4"
            )
        if group_size is not None and group_size < 1:
            raise OptionError(f"option group_size: found {group_size}, expected at least 1")
        self.dtype = self._chosen = dtype
        self._group_size = group_size
        self._packed_model: tuple[Any, Any] = None, None
        self._arena = Arena()

    def matrix(self, array: NDArray[Any]) -> Matrix:
        if bits := QUANTIZED_BITS.get(self._chosen):
            group_size = self._group_size or math.gcd(array.shape[1], GROUP_SIZE)
            return self.quantized_matrix(quantize(array, bits, group_size))
        kind = BFLOAT16 if self._chosen == "bfloat16" else FLOAT32
        return float_matrix(array, kind, self._arena)

    def quantized_matrix(self, matrix: QuantizedMatrix) -> Matrix:
        # A prequantized matrix keeps its dtype; the option applies to matrices quantized here.
        self.dtype = "float32" if matrix.group_size % DEPTH else matrix.dtype
        if matrix.group_size % DEPTH:
            return float_matrix(matrix.dequantize(), FLOAT32, self._arena)
        return code_matrix(matrix, self._arena)

    def low_rank_matrix(self, array: NDArray[Any]) -> Matrix:
        return float_matrix(array, FLOAT32 if self._chosen == "float32" else BFLOAT16, self._arena)

    def matrix_bytes(self, matrix: Matrix) -> int:
        # Without the rows of zeros in the last panel.
        return matrix.panels.nbytes * matrix.n_out // (ROWS * len(matrix.panels))

    def matmul(self, matrix: Matrix, x: Floats) -> Floats:
        return product(matrix, _rows(x)).reshape(*x.shape[:-1], matrix.n_out)

    def layer_norm(self, x: Floats, weight: Floats, bias: Floats) -> Floats:
        return self._by_rows(vector_operations.layer_norm, x, weight, bias)

    def mix(self, x: Floats, previous: Floats, mix: Floats) -> Floats:
        if mix.ndim > 1:
            return super().mix(x, previous, mix)
        return self._by_rows(vector_operations.mix, x, _rows(previous), mix)

    def sigmoid(self, x: Floats) -> Floats:
        return self._by_rows(vector_operations.sigmoid, x)

    def relu_squared(self, x: Floats) -> Floats:
        return self._by_rows(vector_operations.relu_squared, x)

    def _by_rows(self, kernel: Callable[..., None], x: Floats, *others: Floats) -> Floats:
        out = np.empty_like(x)
        kernel(_rows(x), *others, _rows(out))
        return out

    def wkv(
        self, k: Floats, v: Floats, decay: Floats, first: Floats, state: WKVState
    ) -> tuple[Floats, WKVState]:
        means = np.empty_like(k)
        aa, bb, pp = (part.copy() for part in state)
        vector_operations.wkv(k, v, decay, first, aa, bb, pp, means)
        return means, (aa, bb, pp)

    def wkv6(
        self, r: Floats, w: Floats, k: Floats, v: Floats, bonus: Floats, s: Floats
    ) -> tuple[Floats, Floats]:
        y, after = np.empty_like(k), s.copy()
        head_kernels.wkv6(r, np.broadcast_to(w, k.shape), k, v, after, y)
        return y + self.head_sums(r * k * bonus, s.shape[1]) * v, after

    def wkv7(
        self, r: Floats, w: Floats, k: Floats, v: Floats, kk: Floats, b: Floats, s: Floats
    ) -> tuple[Floats, Floats]:
        y, after = np.empty_like(k), s.copy()
        head_kernels.wkv7(r, w, k, v, kk, b, after, y)
        return y, after

    def compile(self, function: Callable[..., Any], kernel: str = "") -> Callable[..., Any]:
        pack = _ONE_TOKEN.get(kernel)
        if pack is None:
            return function

        def run(p: Any, x: Floats, state: Floats) -> tuple[Floats, Floats]:
            model = self._packed(pack, p, state) if x.size == x.shape[-1] else None
            return function(p, x, state) if model is None else model.run(x, state)

        return run

    def _packed(self, pack: Callable[..., Any], p: Any, state: Floats) -> Any:
        known, packed = self._packed_model
        if p is not known:
            packed = pack(p, state)
            self._packed_model = p, packed
        return packed


def _rows(x: Floats) -> Floats:
    return np.ascontiguousarray(x).reshape(-1, x.shape[-1])
