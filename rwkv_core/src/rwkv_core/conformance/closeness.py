"""How close a backend's numbers have to be to the reference's."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rwkv_core.conformance.reference import Floats, Weights
from rwkv_core.tensor_ops import TensorOps


class Tolerance(NamedTuple):
    """Largest deviation, as a share of the expected values' root mean square."""

    operation: float
    model: float


# An operation's is some tens of the type's rounding error, a model's some hundreds; float64's ends
# at what float32 logits can hold. The reference is given the matrices as the backend rounded them
# (see `effective`), so only the rounding of activations has to fit in here, quantized or not. A
# slip in one layer, such as two mixes exchanged or the bonus left out, deviates by 0.2 and more.
TOLERANCES = {
    "float64": Tolerance(1e-12, 1e-6),
    "float32": Tolerance(1e-5, 1e-4),
    "float16": Tolerance(4e-3, 1e-2),
    "bfloat16": Tolerance(3e-2, 6e-2),
}
# Formats without an entry multiply by activations in bfloat16 or in 8 bits.
OTHERS = Tolerance(6e-2, 1.2e-1)


def of_vectors(ops: TensorOps) -> float:
    """Tolerance of an operation that no matrix takes part in."""
    return TOLERANCES[ops.runtime_dtype].operation


def of_matmul(ops: TensorOps) -> float:
    """Tolerance of a product with a matrix."""
    return max(TOLERANCES.get(ops.dtype, OTHERS).operation, of_vectors(ops))


def of_model(ops: TensorOps) -> float:
    """Tolerance of logits and states."""
    dtypes = ops.dtype, ops.runtime_dtype
    return max(TOLERANCES.get(dtype, OTHERS).model for dtype in dtypes)


def deviation(found: ArrayLike, expected: ArrayLike) -> float:
    """The largest difference, as a share of `expected`'s root mean square."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    difference = float(np.max(np.abs(found - expected)))
    scale = float(np.sqrt(np.mean(expected**2)))
    return difference / scale if scale else difference


def assert_close(found: ArrayLike, expected: ArrayLike, tolerance: float, what: str = "") -> None:
    """Fail, with the deviation and the tolerance, unless shapes agree and values nearly so."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, f"{what} shape {found.shape}, not {expected.shape}"
    assert np.isfinite(found.astype(np.float64)).all(), f"{what} NaN or infinity"
    found_deviation = deviation(found, expected)
    assert found_deviation <= tolerance, (
        f"{what} deviates by {found_deviation:.2g}, at most {tolerance:.2g} will do"
    )


def effective(ops: TensorOps, matrix: Any, n_columns: int) -> Floats:
    """The numbers [out, in] that a backend's opaque matrix stands for: its product with 1."""
    identity = ops.vector(np.eye(n_columns)[None])
    return ops.to_numpy(ops.matmul(matrix, identity))[0].T.astype(np.float64)


def as_rounded(ops: TensorOps, weights: Weights) -> Weights:
    """A model's weights with embeddings and matrices as the backend rounds them."""
    rounded = dict(weights)
    for name, array in weights.items():
        if name == "emb.weight":
            table = ops.embedding(array.astype(np.float32))
            rows = ops.to_numpy(ops.embed(table, np.arange(len(array))[None]))[0]
            rounded[name] = rows.astype(np.float64)
        elif array.ndim == 2:
            matrix = ops.matrix(array.astype(np.float32))
            rounded[name] = effective(ops, matrix, array.shape[1])
    return rounded
