"""Operations on the heads of RWKV-5 to 7, against their formulas and TensorOps' defaults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from rwkv_core.backends.tensor_ops import TensorOps
from rwkv_core.conformance.closeness import assert_close, call, of_vectors
from rwkv_core.conformance.shapes import head_shapes

EPSILON = 64e-5  # of the group norm in published models


class Operation(NamedTuple):
    """How to test a method of TensorOps.

    `formula` computes the expected result in float64 from x split into heads, [B, T, H, N]. The
    method is called with x, then `vectors` arrays [D], then the head size, then the numbers in
    `options`.
    """

    formula: Callable[..., Any]
    vectors: int = 0
    options: tuple[float, ...] = ()


def group_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, epsilon: float) -> np.ndarray:
    standard = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
    return standard * weight.reshape(x.shape[2:]) + bias.reshape(x.shape[2:])


def normalized(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


OPERATIONS = {
    "head_sums": Operation(lambda x: x.sum(-1, keepdims=True) + np.zeros_like(x)),
    "normalize_heads": Operation(normalized),
    "group_norm": Operation(group_norm, 2, (EPSILON,)),
}
every_operation = pytest.mark.parametrize("name", OPERATIONS)


def arguments_for(
    ops: TensorOps, rng: np.random.Generator, name: str, shape: tuple[int, int, int, int]
) -> tuple[list[np.ndarray], list[float]]:
    """Return arrays, the first of which is x [B, T, D], and numbers."""
    n_batch, n_time, n_head, head_size = shape
    width, operation = n_head * head_size, OPERATIONS[name]
    arrays = [rng.standard_normal((n_batch, n_time, width), np.float32)]
    arrays += [rng.standard_normal(width, np.float32) for _ in range(operation.vectors)]
    return arrays, [head_size, *operation.options]


def check(
    ops: TensorOps,
    name: str,
    arrays: list[np.ndarray],
    numbers: list[float],
    tolerance: float | None = None,
) -> np.ndarray:
    """Compare a method's result with its formula and with TensorOps' default."""
    tolerance = of_vectors(ops) if tolerance is None else tolerance
    vectors = [ops.vector(array) for array in arrays]
    found = ops.to_numpy(call(ops, name, *vectors, *numbers))
    assert found.dtype == ops.runtime_dtype
    x, *others = (array.astype(np.float64) for array in arrays)
    what = f"{name} of {list(x.shape)}, heads of {numbers[0]}"
    heads = x.reshape(*x.shape[:2], -1, int(numbers[0]))
    expected = OPERATIONS[name].formula(heads, *others, *numbers[1:]).reshape(x.shape)
    assert_close(found, expected, tolerance, f"{what} beside its formula")
    if x.size <= 1024:  # The default is the formula's equal; it may have to be compiled.
        default = ops.to_numpy(getattr(TensorOps, name)(ops, *vectors, *numbers))
        assert_close(found, default, tolerance, f"{what} beside TensorOps.{name}")
    return np.array(found)


@every_operation
def test_operation_is_its_formula_at_every_shape(
    ops: TensorOps, rng: np.random.Generator, name: str
) -> None:
    for shape in head_shapes(ops):
        check(ops, name, *arguments_for(ops, rng, name, shape))


@every_operation
def test_nan_stays_in_its_head(ops: TensorOps, rng: np.random.Generator, name: str) -> None:
    arrays, numbers = arguments_for(ops, rng, name, (1, 4, 3, 32))
    arrays[0][0, 1, 37] = np.nan
    found = ops.to_numpy(getattr(ops, name)(*map(ops.vector, arrays), *numbers))
    where = np.isnan(found[0]).reshape(4, 3, 32)
    message = f"{name}: NaN went into head 1 of token 1"
    assert where[1, 1].all(), f"{message}, {found[0, 1, 37]} came out"
    where[1, 1] = False
    assert not where.any(), f"{message}, and came out elsewhere too"


@every_operation
def test_results_outlive_the_next_call(ops: TensorOps, rng: np.random.Generator, name: str) -> None:
    def result() -> Any:
        arrays, numbers = arguments_for(ops, rng, name, (1, 4, 3, 32))
        return getattr(ops, name)(*map(ops.vector, arrays), *numbers)

    first = result()
    before = ops.to_numpy(first).copy()
    for _ in range(3):
        result()
    message = f"{name}: a result changes when {name} is called again: is memory used again?"
    assert np.array_equal(ops.to_numpy(first), before), message


def test_normalized_head_of_zeros_is_zeros(ops: TensorOps, rng: np.random.Generator) -> None:
    arrays, numbers = arguments_for(ops, rng, "normalize_heads", (1, 4, 3, 32))
    arrays[0][0, 2, 32:64] = 0
    found = check(ops, "normalize_heads", arrays, numbers)
    assert not found[0, 2, 32:64].any()


@pytest.mark.parametrize("size", [1e-16, 1e-8, 1e8])
def test_normalized_heads_of_any_size(
    ops: TensorOps, rng: np.random.Generator, size: float
) -> None:
    """A head with a norm below 1e-12 is divided by 1e-12. Heads are compared separately."""
    arrays, numbers = arguments_for(ops, rng, "normalize_heads", (1, 4, 3, 32))
    head = arrays[0][0, 2, 32:64]
    head *= np.float32(size)
    found = check(ops, "normalize_heads", arrays, numbers)[0, 2, 32:64]
    wide = head.astype(np.float64)
    expected = wide / np.maximum(np.linalg.norm(wide), 1e-12)
    assert_close(found, expected, of_vectors(ops), f"normalize_heads of numbers of about {size:g}")


@pytest.mark.parametrize("size", [0, 1e-3, 1e-2, 1e3])
def test_group_norm_of_any_size(ops: TensorOps, rng: np.random.Generator, size: float) -> None:
    """Epsilon matters if the numbers are small; without it a head of zeros gives NaN."""
    arrays, numbers = arguments_for(ops, rng, "group_norm", (1, 4, 3, 32))
    arrays[0] *= np.float32(size)
    check(ops, "group_norm", arrays, numbers)


def test_group_norm_of_another_epsilon(ops: TensorOps, rng: np.random.Generator) -> None:
    arrays, numbers = arguments_for(ops, rng, "group_norm", (1, 4, 3, 32))
    arrays[0] *= np.float32(1e-2)
    check(ops, "group_norm", arrays, [numbers[0], 1e-5])


def test_group_norm_of_one_large_head_leaves_the_others(
    ops: TensorOps, rng: np.random.Generator
) -> None:
    arrays, numbers = arguments_for(ops, rng, "group_norm", (1, 4, 3, 32))
    arrays[0][..., 32:64] *= 1000
    check(ops, "group_norm", arrays, numbers)


@pytest.mark.parametrize("offset", [1000, -1000])
def test_group_norm_of_numbers_far_from_zero(
    ops: TensorOps, rng: np.random.Generator, offset: int
) -> None:
    """E[x^2] - E[x]^2 has no digits left here: subtract the mean first."""
    arrays, numbers = arguments_for(ops, rng, "group_norm", (1, 4, 3, 32))
    arrays[0] += np.float32(offset)
    # The mean itself is rounded, in steps of this size.
    step = float(np.spacing(np.abs(arrays[0]).max().astype(ops.runtime_dtype)))
    check(ops, "group_norm", arrays, numbers, of_vectors(ops) + 8 * step)
