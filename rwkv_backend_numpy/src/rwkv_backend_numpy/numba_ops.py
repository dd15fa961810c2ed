"""RWKV-4's operations on NumPy arrays, with compiled kernels.

A token of one sequence goes through each layer in one call, as some thirty NumPy calls would take
longer than a small layer's products. Everything else takes the core's equations, over kernels that
are each as wide as the chunk.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numba import threading_layer
from numpy.typing import NDArray

from rwkv_backend_numpy import kernels, vector_kernels
from rwkv_backend_numpy.float_tile import COLUMNS, X_ROWS
from rwkv_backend_numpy.matrices import Matrix, bfloat16_matrix, float32_matrix, packed_matrix
from rwkv_backend_numpy.ops import NumpyOps
from rwkv_backend_numpy.slabs import Slabs
from rwkv_core import recurrence
from rwkv_core.errors import BackendError, OptionError
from rwkv_core.quantization import GROUP_SIZE, QuantizedMatrix, quantize
from rwkv_core.recurrence import Block
from rwkv_core.tensor_ops import WKVState

Floats = NDArray[np.float32]

# From as many rows on tiles are faster than single products; of codes, of floats.
_FEW_ROWS = (12, 4)
# Groups are a multiple of so many codes, for the kernels.
_CODES_AT_ONCE = 8
_BITS = {"int8": 8, "int4": 4}


_threads_lost = False


def _after_fork() -> None:
    global _threads_lost
    with suppress(ValueError):  # No thread has been started yet.
        # GNU's OpenMP, which would end the process. Numba's other layers start anew.
        _threads_lost = threading_layer() == "omp"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class NumbaOps(NumpyOps):
    def __init__(self, dtype: str, group_size: int | None) -> None:
        if group_size is not None and dtype not in _BITS:
            raise OptionError(
                f"option group_size: found it with dtype {dtype}, it is of dtype int8 and int4"
            )
        if group_size is not None and group_size < 1:
            raise OptionError(f"option group_size: found {group_size}, expected at least 1")
        self.dtype = self._chosen = dtype
        self._group_size = group_size
        self._blocks: Sequence[Any] = ()
        self._slabs = Slabs()

    def matrix(self, array: NDArray[Any]) -> Matrix:
        if self._chosen in _BITS:
            group_size = self._group_size or math.gcd(array.shape[1], GROUP_SIZE)
            return self.quantized_matrix(quantize(array, _BITS[self._chosen], group_size))
        make = bfloat16_matrix if self._chosen == "bfloat16" else float32_matrix
        return make(array, self._slabs)

    def quantized_matrix(self, matrix: QuantizedMatrix) -> Matrix:
        # A file keeps its bits, whatever the option says for what is quantized here.
        self.dtype = f"int{matrix.bits}"
        if matrix.group_size % _CODES_AT_ONCE:
            return float32_matrix(matrix.dequantize(), self._slabs)
        return packed_matrix(matrix, self._slabs)

    def embed(self, table: NDArray[Any], tokens: NDArray[np.int64]) -> Floats:
        if _threads_lost:
            raise BackendError(
                "numba: this process was forked from one that had computed already, whose threads "
                "it lacks; have multiprocessing start it by spawn or forkserver"
            )
        return super().embed(table, tokens)

    def matmul(self, matrix: Matrix, x: Floats) -> Floats:
        rows = _rows(x)
        n_rows, width = rows.shape
        few = n_rows < _FEW_ROWS[matrix.array.dtype.itemsize > 1] or width % COLUMNS
        padding = 0 if few else -n_rows % X_ROWS
        if padding:
            rows = np.concatenate([rows, np.zeros((padding, width), np.float32)])
        out = np.empty((len(rows), len(matrix.array)), np.float32)
        kernel = kernels.product if few else kernels.tiled_product
        kernel(matrix.array, rows, matrix.n_groups, out)
        return out[:n_rows, : matrix.n_out].reshape(*x.shape[:-1], matrix.n_out)

    def layer_norm(self, x: Floats, weight: Floats, bias: Floats) -> Floats:
        return self._by_rows(vector_kernels.layer_norm, x, weight, bias)

    def mix(self, x: Floats, previous: Floats, mix: Floats) -> Floats:
        return self._by_rows(vector_kernels.mix, x, _rows(previous), mix)

    def sigmoid(self, x: Floats) -> Floats:
        return self._by_rows(vector_kernels.sigmoid, x)

    def relu_squared(self, x: Floats) -> Floats:
        return self._by_rows(vector_kernels.relu_squared, x)

    def _by_rows(self, kernel: Callable[..., None], x: Floats, *others: Floats) -> Floats:
        out = np.empty_like(x)
        kernel(_rows(x), *others, _rows(out))
        return out

    def wkv(
        self, k: Floats, v: Floats, decay: Floats, first: Floats, state: WKVState
    ) -> tuple[Floats, WKVState]:
        means = np.empty_like(k)
        aa, bb, pp = (part.copy() for part in state)
        vector_kernels.wkv(k, v, decay, first, aa, bb, pp, means)
        return means, (aa, bb, pp)

    def layers(
        self, block: Callable[..., Any], blocks: Sequence[Block], x: Floats, state: Floats
    ) -> tuple[Floats, Floats]:
        one = block is recurrence.block and x.size == x.shape[-1]
        packed = self._packed(blocks) if one else None
        if packed is None:
            return super().layers(block, blocks, x, state)
        x, before, after = x.copy(), np.ascontiguousarray(state[0]), np.empty_like(state[0])
        for i, arrays in enumerate(packed.matrices):
            kernels.layer(i, packed.vectors, arrays, packed.n_groups, x[0, 0], before, after)
        return x, after[None]

    def _packed(self, blocks: Sequence[Block]) -> _Packed | None:
        """The blocks as `kernels.layer` takes them; None if their matrices are of several types."""
        if blocks is not self._blocks:
            self._blocks, self._packed_blocks = blocks, _pack(blocks)
        return self._packed_blocks


class _Packed(NamedTuple):
    vectors: Floats  # [L, 11, D]
    matrices: list[tuple[NDArray[Any], ...]]  # seven a layer
    n_groups: tuple[int, int]  # of a row that is D wide, and F


def _pack(blocks: Sequence[Block]) -> _Packed | None:
    vectors = [[*ln1, *time[:5], *ln2, *channel[:2]] for ln1, time, ln2, channel in blocks]
    matrices = [[*time[5:], *channel[2:]] for _, time, _, channel in blocks]
    types = {matrix.array.dtype for row in matrices for matrix in row}
    of_width = {matrix.n_groups for row in matrices for matrix in row[:-1]}
    of_ffn = {row[-1].n_groups for row in matrices}
    if not len(types) == len(of_width) == len(of_ffn) == 1:
        return None
    arrays = [tuple(matrix.array for matrix in row) for row in matrices]
    return _Packed(np.array(vectors), arrays, (of_width.pop(), of_ffn.pop()))


def _rows(x: Floats) -> Floats:
    return np.ascontiguousarray(x).reshape(-1, x.shape[-1])
