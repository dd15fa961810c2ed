"""Compares a backend's numbers with the reference's, within tolerances."""

from __future__ import annotations

import re
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, NDArray

from rwkv_core.backends.tensor_ops import Matrix, TensorOps
from rwkv_core.conformance.references.rwkv4 import Floats, Weights
from rwkv_core.dtypes import tolerance_of
from rwkv_core.evaluation.verify import deviation, root_mean_square

# Matrices of models of 169M parameters, and one whose rows are no multiple of anything.
REAL_SIZES = [(3072, 768), (768, 3072), (5027, 64)]
_ROWS_PER_PRODUCT = 64
# RWKV-6's and RWKV-7's, by the ends of their names.
_LOW_RANK = re.compile(r"\.(time_(maa|decay)_w[12]|[wavg][12])$")


def of_vectors(ops: TensorOps) -> float:
    """Return the tolerance of an operation without a matrix."""
    return tolerance_of(ops.runtime_dtype).operation


def of_matmul(ops: TensorOps) -> float:
    """Return the tolerance of a product with a matrix."""
    return max(tolerance_of(ops.dtype).operation, of_vectors(ops))


def of_model(ops: TensorOps) -> float:
    """Return the tolerance of logits and states."""
    dtypes = ops.dtype, ops.runtime_dtype
    return max(tolerance_of(dtype).model for dtype in dtypes)


def assert_close(found: ArrayLike, expected: ArrayLike, tolerance: float, what: str = "") -> None:
    """Fail, with the place and the difference, unless shapes are equal and values close."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, (
        f"{what}: found the shape {list(found.shape)}, expected {list(expected.shape)}"
    )
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    off = ~(np.abs(found - expected) <= tolerance * root_mean_square(expected))
    if off.any():
        raise AssertionError(_difference(found, expected, off, tolerance, what))


def assert_equal(found: NDArray[Any], expected: NDArray[Any], what: str) -> None:
    """Fail, with the place, unless all values are equal; NaN equals NaN."""
    assert found.shape == expected.shape, (
        f"{what}: found the shape {list(found.shape)}, expected {list(expected.shape)}"
    )
    off = (found != expected) & ~(np.isnan(found) & np.isnan(expected))
    if off.any():
        raise AssertionError(_difference(found, expected, off, 0.0, what))


def _difference(
    found: NDArray[Any], expected: NDArray[Any], off: NDArray[np.bool_], tolerance: float, what: str
) -> str:
    places = np.argwhere(off)
    first, last = places[0].tolist(), places[-1].tolist()
    values = f"{found[off][0]:.9g}, expected {expected[off][0]:.9g}"
    if not np.isfinite(found).all():
        by = "NaN or infinity among the values"
    elif tolerance:
        by = f"deviates by {deviation(found, expected):.6g}, at most {tolerance:.6g} is allowed"
    else:
        by = "these have to be equal"
    return (
        f"{what}: found {values} at {first}; {by}. "
        f"{len(places)} of {off.size} values are off, from {first} to {last}"
    )


def call(ops: TensorOps, name: str, *arguments: Any) -> Any:
    """Return `ops.name(*arguments)`. Fails if the operation changes an argument."""
    watched = [
        (f"argument {number}", array)
        for number, argument in enumerate(arguments, 1)
        if not (name == "matmul" and number == 1) and not isinstance(argument, int | float)
        for array in (argument if isinstance(argument, tuple) else (argument,))
    ]
    before = [ops.to_numpy(array).copy() for _, array in watched]
    result = getattr(ops, name)(*arguments)
    for (which, array), kept in zip(watched, before, strict=True):
        assert np.array_equal(ops.to_numpy(array), kept, equal_nan=True), (
            f"{name} works in place: it changes its {which}. What an operation is given belongs "
            "to the caller, who uses it again: put the result into new memory"
        )
    return result


def is_exact(dtype: str) -> bool:
    """Return whether matrices of this type hold exactly the values that NumPy rounds to."""
    return tolerance_of(dtype).weights == 0


def rounded(array: NDArray[Any], dtype: str) -> Floats:
    """Return `array` rounded to `dtype`, one of the exact types."""
    numpy_type = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    return array.astype(numpy_type).astype(np.float64)


def effective(
    ops: TensorOps, matrix: Matrix, n_columns: int, columns: NDArray[np.int64] | None = None
) -> NDArray[Any]:
    """Return the values of a backend's opaque matrix [out, in], from products with unit vectors.

    `n_columns` is the number of the matrix's columns. If `columns` are given, only these columns
    are returned.
    """
    wanted = np.arange(n_columns) if columns is None else columns
    found = []
    for start in range(0, len(wanted), _ROWS_PER_PRODUCT):
        part = wanted[start : start + _ROWS_PER_PRODUCT]
        # Always the same number of rows, as a new shape may cost a compilation.
        rows = np.zeros((1, _ROWS_PER_PRODUCT, n_columns), np.float32)
        rows[0, np.arange(len(part)), part] = 1
        found.append(np.array(ops.to_numpy(ops.matmul(matrix, ops.vector(rows)))[0, : len(part)]))
    return np.concatenate(found).T


def held(ops: TensorOps, matrix: Matrix, array: NDArray[Any], dtype: str | None = None) -> Floats:
    """Return the values [out, in] that `matrix`, made from `array`, must multiply with.

    The values are `array` as NumPy rounds it. If the backend quantizes, they are the matrix's own
    values instead, after a check that these values are close to `array`.
    """
    dtype = ops.dtype if dtype is None else dtype
    if is_exact(dtype):
        return rounded(array, dtype)
    found = effective(ops, matrix, array.shape[1]).astype(np.float64)
    tolerance = tolerance_of(dtype).weights
    what = f"the product of 1 with a {dtype} matrix {list(array.shape)} (see `matrix`, `matmul`)"
    assert_close(found, array.astype(np.float64), tolerance, what)
    return found


def as_rounded(ops: TensorOps, weights: Weights) -> Weights:
    """Return a model's weights, with the matrices rounded as the backend must round them."""
    return {name: _as_rounded(ops, name, array) for name, array in weights.items()}


def _as_rounded(ops: TensorOps, name: str, array: Floats) -> Floats:
    narrow = array.astype(np.float32)
    if _LOW_RANK.search(name):
        if array.ndim == 3:
            return np.stack([_as_rounded(ops, name, one) for one in array])
        # Files have these as [in, out].
        matrix = None if is_exact(ops.dtype) else ops.low_rank_matrix(narrow.T)
        return held(ops, matrix, narrow.T).T
    if array.ndim != 2 or not name.endswith(".weight") or name == "emb.weight":
        return array
    return held(ops, None if is_exact(ops.dtype) else ops.matrix(narrow), narrow)
