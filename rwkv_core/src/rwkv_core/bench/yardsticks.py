"""Yardsticks for a model's time: its bare products, and reading large matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkv_core.architectures.base import D, leaves
from rwkv_core.backends.tensor_ops import Array, Matrix, TensorOps
from rwkv_core.dtypes import BYTES_PER_WEIGHT
from rwkv_core.evaluation.random_model import random_values
from rwkv_core.model import Model

_WIDTH = 2048
# Size of NumPy's matrices together: several times the cache of a large server's core.
_STREAM_BYTES = 2**28


class Stream(NamedTuple):
    """One pass over large matrices: its name, the bytes it reads, and the function that runs it."""

    name: str
    n_bytes: float
    run: Callable[[], object]


def stream_for(model: Model, n_weights: int) -> Stream:
    """Return a pass over large matrices, with whose rate the rate of decoding is compared.

    `n_weights` is the number of weights in the model's matrices. On a CPU the pass is the same for
    all backends and dtypes, so that their shares of its rate can be compared.
    """
    return _numpy_stream() if model.device.startswith("cpu") else _own_stream(model, n_weights)


def _numpy_stream() -> Stream:
    # Not zeros: the system does not read pages that were never written.
    matrices = np.full((_STREAM_BYTES // (4 * _WIDTH**2), _WIDTH, _WIDTH), 1e-3, np.float32)
    x = np.ones(_WIDTH, np.float32)

    def run() -> NDArray[np.float32]:
        y = x
        for matrix in matrices:
            y = matrix @ x
        return y

    return Stream("NumPy float32", matrices.nbytes, run)


def _own_stream(model: Model, n_weights: int) -> Stream:
    ops = model.ops
    # A multiple of 64, as a backend may quantize in groups of 64.
    width = min(_WIDTH, max(64, int(n_weights**0.5) // 64 * 64))
    # Variance 1 / in keeps the values of a long chain of products in range.
    values = random_values(width**2, seed=1).reshape(width, width) * np.float32(width**-0.5)
    matrices = tuple(ops.matrix(values) for _ in range(max(1, n_weights // width**2)))
    n_bytes = _stored_bytes(ops, matrices, width**2 * len(matrices)) or 0.0
    run = ops.compile(partial(_chain, ops))
    x = ops.vector(random_values(width, seed=0).reshape(1, 1, width))
    return Stream("own", n_bytes, lambda: ops.to_numpy(run(matrices, x)))


def _chain(ops: TensorOps, matrices: tuple[Matrix, ...], x: Array) -> Array:
    """Multiply `x` [1, 1, in] with all `matrices` in turn, so that no library can skip one."""
    for matrix in matrices:
        x = ops.matmul(matrix, x)
    return x


def bare_products(model: Model, n_tokens: int) -> Callable[[], object]:
    """Return a function that runs only the matrix products of a prompt of `n_tokens` tokens.

    It multiplies with the model's own matrices, and the backend's `layers` and `compile` run it, as
    they run the model.
    """
    ops = model.ops
    run = ops.compile(partial(_products, ops))
    x = ops.vector(random_values(n_tokens * model.n_embd, seed=0).reshape(1, n_tokens, -1))
    state = model.empty_state(1).array
    return lambda: ops.to_numpy(run(model.parameters, x, state))


def _products(ops: TensorOps, p: Any, x: Array, state: Array) -> Array:
    x, _ = ops.layers(_block_products, p.blocks, x, state)
    return ops.matmul(p.head, ops.layer_norm(x[:, -1:, :], *p.ln_out))


def _block_products(ops: TensorOps, p: Any, x: Array, state: Array) -> tuple[Array, Array]:
    """Multiply each matrix with the last product of fitting width; add products of width D to x."""
    # The norm keeps the numbers in range: infinities and denormal numbers are slower.
    latest = {D: ops.layer_norm(x, *p.ln1)}
    total = x
    for weight, matrix in leaves(p):
        if weight.role == "matrix":
            n_out, n_in = weight.shape
            latest[n_out] = ops.matmul(matrix, latest[n_in])
            total = total + latest[n_out] if n_out == D else total
    return total, state


def matrix_bytes(model: Model, n_weights: int) -> float | None:
    """Return the bytes of the model's stored matrices, which hold `n_weights` weights.

    If the backend does not tell the bytes, they are estimated from the dtype. None if the dtype is
    unknown too.
    """
    return _stored_bytes(model.ops, list(model.matrices().values()), n_weights)


def _stored_bytes(ops: TensorOps, matrices: Sequence[Matrix], n_weights: int) -> float | None:
    told = [ops.matrix_bytes(matrix) for matrix in matrices]
    if None not in told:
        return sum(filter(None, told))
    size = BYTES_PER_WEIGHT.get(ops.dtype)
    return None if size is None else n_weights * size
