"""The operations between the products. Each is compared with its formula and its default."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

from rwkv_core.backends.tensor_ops import TensorOps
from rwkv_core.conformance.closeness import assert_close, call, of_vectors
from rwkv_core.conformance.shapes import vector_shapes


class Operation(NamedTuple):
    """A method of TensorOps: its formula in float64, and its arguments for a shape [B, T, D]."""

    formula: Callable[..., Any]
    arguments: Callable[[np.random.Generator, tuple[int, int, int]], list[np.ndarray]]


def float32s(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Return normally distributed numbers that every runtime type holds exactly."""
    return rng.standard_normal(shape, np.float32)


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight + bias


def shares(rng: np.random.Generator, width: int) -> np.ndarray:
    mix = rng.uniform(0, 1, width).astype(np.float32)
    mix[:2] = 0, 1
    return mix


OPERATIONS = {
    "layer_norm": Operation(
        layer_norm,
        lambda rng, shape: [float32s(rng, *size) for size in (shape, shape[-1:], shape[-1:])],
    ),
    "token_shift": Operation(
        lambda x, last: np.concatenate([last[:, None], x[:, :-1]], axis=1),
        lambda rng, shape: [float32s(rng, *shape), float32s(rng, shape[0], shape[2])],
    ),
    "mix": Operation(
        lambda x, previous, mix: mix * x + (1 - mix) * previous,
        lambda rng, shape: [float32s(rng, *shape), float32s(rng, *shape), shares(rng, shape[-1])],
    ),
    "sigmoid": Operation(
        lambda x: 1 / (1 + np.exp(-x)), lambda rng, shape: [4 * float32s(rng, *shape)]
    ),
    "relu_squared": Operation(
        lambda x: np.maximum(x, 0) ** 2, lambda rng, shape: [1000 * float32s(rng, *shape)]
    ),
}
every_operation = pytest.mark.parametrize("name", OPERATIONS)


def check(
    ops: TensorOps, name: str, arrays: list[np.ndarray], tolerance: float | None = None
) -> None:
    """Compare a method's result with its formula and with TensorOps' default."""
    tolerance = of_vectors(ops) if tolerance is None else tolerance
    vectors = [ops.vector(array) for array in arrays]
    found = ops.to_numpy(call(ops, name, *vectors))
    assert found.dtype == ops.runtime_dtype
    what = f"{name} of {list(arrays[0].shape)}"
    expected = OPERATIONS[name].formula(*(array.astype(np.float64) for array in arrays))
    assert_close(found, expected, tolerance, f"{what} beside its formula")
    if arrays[0].size > 1024:  # The default is the formula's equal; it may have to be compiled.
        return
    default = getattr(TensorOps, name)(ops, *vectors)
    assert_close(found, ops.to_numpy(default), tolerance, f"{what} beside TensorOps.{name}")


@every_operation
def test_operation_is_its_formula_at_every_shape(
    ops: TensorOps, rng: np.random.Generator, name: str
) -> None:
    for shape in vector_shapes(ops):
        check(ops, name, OPERATIONS[name].arguments(rng, shape))


@every_operation
def test_results_of_an_operation_outlive_the_next_call(
    ops: TensorOps, rng: np.random.Generator, name: str
) -> None:
    one, other = (
        [ops.vector(array) for array in OPERATIONS[name].arguments(rng, (1, 4, 64))]
        for _ in range(2)
    )
    first = getattr(ops, name)(*one)
    before = ops.to_numpy(first).copy()
    for _ in range(3):
        getattr(ops, name)(*other)
    message = f"{name}: a result changes when {name} is called again: is memory used again?"
    assert np.array_equal(ops.to_numpy(first), before), message
    message = f"{name}: the same arguments give another result later"
    assert np.array_equal(ops.to_numpy(getattr(ops, name)(*one)), before), message


@every_operation
def test_nan_stays_nan(ops: TensorOps, rng: np.random.Generator, name: str) -> None:
    """If NaN were hidden, a damaged model would generate nonsense without an error."""
    arrays = OPERATIONS[name].arguments(rng, (1, 4, 64))
    arrays[0][0, 1, 5] = np.nan
    found = ops.to_numpy(getattr(ops, name)(*map(ops.vector, arrays)))
    place = (0, 2, 5) if name == "token_shift" else (0, 1, 5)
    assert np.isnan(found[place]), f"{name}: NaN went in, {found[place]} came out"


# Epsilon matters if the numbers are small; without it a row of zeros gives NaN.
@pytest.mark.parametrize("size", [0, 1e-3, 1e3])
def test_layer_norm_of_any_size(ops: TensorOps, rng: np.random.Generator, size: float) -> None:
    arrays = OPERATIONS["layer_norm"].arguments(rng, (1, 16, 64))
    arrays[0] *= np.float32(size)
    check(ops, "layer_norm", arrays)


@pytest.mark.parametrize("offset", [1000, -1000])
def test_layer_norm_of_numbers_far_from_zero(
    ops: TensorOps, rng: np.random.Generator, offset: int
) -> None:
    """E[x^2] - E[x]^2 has no digits left here: subtract the mean first."""
    arrays = OPERATIONS["layer_norm"].arguments(rng, (1, 16, 64))
    arrays[0] += np.float32(offset)
    # The mean itself is rounded, in steps of this size.
    step = float(np.spacing(np.abs(arrays[0]).max().astype(ops.runtime_dtype)))
    check(ops, "layer_norm", arrays, of_vectors(ops) + 8 * step)


def test_layer_norm_of_equal_values_is_the_bias(ops: TensorOps, rng: np.random.Generator) -> None:
    x = np.full((1, 2, 64), 3.0, np.float32)
    check(ops, "layer_norm", [x, float32s(rng, 64), float32s(rng, 64)])


def test_sigmoid_overflows_nowhere(ops: TensorOps) -> None:
    x = np.array([[[-1e30, -1e4, -100, 0, 100, 1e4, 1e30]]], np.float32)
    found = ops.to_numpy(ops.sigmoid(ops.vector(x)))
    assert_close(found, [[[0, 0, 0, 0.5, 1, 1, 1]]], of_vectors(ops), "sigmoid of huge numbers")


def test_relu_squared_of_large_numbers(ops: TensorOps) -> None:
    x = np.array([[[-1e15, -300.0, 300.0, 1e5, 1e15]]], np.float32)
    for i in range(5):
        check(ops, "relu_squared", [x[:, :, i : i + 1]])


def test_chunks_add_up_to_the_prompt(ops: TensorOps) -> None:
    for n_tokens in [*range(1, 600), 1023, 1024, 1025, 4097, 10_007]:
        chunks = ops.chunks(n_tokens)
        message = f"chunks({n_tokens}): found {chunks}"
        assert sum(chunks) == n_tokens, f"{message}, which is {sum(chunks)} tokens"
        assert min(chunks) >= 1, f"{message}, expected lengths of 1 and more"


def test_fixed_shapes_make_few_chunk_sizes(ops: TensorOps) -> None:
    sizes = {size for n_tokens in range(1, 5000) for size in ops.chunks(n_tokens)}
    assert not ops.fixed_shapes or len(sizes) <= 8, (
        f"chunks: {len(sizes)} lengths, each of which costs a compilation; expected at most 8"
    )
