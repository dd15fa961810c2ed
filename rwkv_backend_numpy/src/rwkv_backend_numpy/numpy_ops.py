"""RWKV's operations on NumPy arrays.

A method overrides rwkv-core's default only if the default is measurably slow. Defaults are slow for
three reasons: products that do not use BLAS's matrix-vector routine, functions that NumPy
implements in Python (mean, clip), and temporary arrays in the scan's loop.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_backend_numpy.arena import Arena
from rwkv_core.backends.tensor_ops import Matrix, TensorOps, WKVState
from rwkv_core.util.float16 import assign

Floats = NDArray[np.floating[Any]]


class NumpyOps(TensorOps):
    xp = np
    ragged = True

    def __init__(self, dtype: str) -> None:
        self.dtype = self.runtime_dtype = dtype
        self._arena = Arena()

    def vector(self, array: NDArray[Any]) -> Floats:
        return array.astype(self.runtime_dtype)

    def matrix(self, array: NDArray[Any]) -> Matrix:
        rows = self._arena.empty(array.shape, self.dtype)
        assign(rows, array)
        return rows

    def to_numpy(self, array: Floats) -> Floats:
        return array

    def matmul(self, matrix: Matrix, x: Floats) -> Floats:
        # One product for all B * T rows; for a single row NumPy calls BLAS's matrix-vector routine.
        rows = x.reshape(-1, x.shape[-1])
        return np.matmul(rows, matrix.T).reshape(*x.shape[:-1], matrix.shape[0])

    def layer_norm(self, x: Floats, weight: Floats, bias: Floats) -> Floats:
        n = x.shape[-1]
        x = x - np.add.reduce(x, axis=-1, keepdims=True) / n
        variance = np.einsum("...i,...i->...", x, x)[..., None] / n
        return x / np.sqrt(variance + 1e-5) * weight + bias

    def token_shift(self, x: Floats, last: Floats) -> Floats:
        previous = np.empty_like(x)
        previous[:, 0] = last
        previous[:, 1:] = x[:, :-1]
        return previous

    def relu_squared(self, x: Floats) -> Floats:
        x = np.maximum(x, 0)
        return x * x

    def wkv(
        self, k: Floats, v: Floats, decay: Floats, first: Floats, state: WKVState
    ) -> tuple[Floats, WKVState]:
        # Only pp, aa and bb depend on the step before. The loop computes these, in place; the
        # exponentials and quotients are computed for all steps at once.
        n_batch, n_time, n_embd = k.shape
        aa, bb, pp = (np.empty((n_batch, n_time + 1, n_embd), k.dtype) for _ in range(3))
        aa[:, 0], bb[:, 0], pp[:, 0] = state
        for t in range(n_time):
            np.add(pp[:, t], decay, out=pp[:, t + 1])
            np.maximum(pp[:, t + 1], k[:, t], out=pp[:, t + 1])
        kept = np.exp(pp[:, :-1] + decay - pp[:, 1:])
        added = np.exp(k - pp[:, 1:])
        np.multiply(added, v, out=aa[:, 1:])
        bb[:, 1:] = added
        step = np.empty_like(aa[:, 0])
        for t in range(n_time):
            for total in (aa, bb):
                np.multiply(total[:, t], kept[:, t], out=step)
                total[:, t + 1] += step
        bonus = first + k
        top = np.maximum(pp[:, :-1], bonus)
        before, now = np.exp(pp[:, :-1] - top), np.exp(bonus - top)
        means = (before * aa[:, :-1] + now * v) / (before * bb[:, :-1] + now)
        return means, (aa[:, -1], bb[:, -1], pp[:, -1])
