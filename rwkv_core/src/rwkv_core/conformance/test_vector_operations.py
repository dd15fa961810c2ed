"""The operations between the products: each against its formula and against its default."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rwkv_core.conformance.closeness import assert_close, of_vectors
from rwkv_core.tensor_ops import TensorOps

all_shapes = pytest.mark.parametrize(
    "shape", [(1, 1, 64), (1, 17, 64), (3, 2, 64), (2, 300, 128)], ids=str
)


def float32s(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Normal deviates that every runtime type holds exactly."""
    return rng.normal(size=shape).astype(np.float32)


def check(ops: TensorOps, name: str, expected: Any, *arrays: np.ndarray) -> None:
    """Hold a method's result against `expected` and against what TensorOps' own gives."""
    vectors = [ops.vector(array) for array in arrays]
    found = ops.to_numpy(getattr(ops, name)(*vectors))
    assert found.dtype == ops.runtime_dtype
    assert_close(found, expected, of_vectors(ops), name)
    default = getattr(TensorOps, name)(ops, *vectors)
    assert_close(found, ops.to_numpy(default), of_vectors(ops), f"{name} against its default")
    for vector, array in zip(vectors, arrays, strict=True):
        assert np.array_equal(ops.to_numpy(vector), array), f"{name} changes its arguments"


@all_shapes
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_layer_norm(
    ops: TensorOps, rng: np.random.Generator, shape: tuple[int, ...], size: float
) -> None:
    x = float32s(rng, *shape) * np.float32(size)
    weight, bias = float32s(rng, shape[-1]), float32s(rng, shape[-1])
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5)
    check(ops, "layer_norm", exact * weight + bias, x, weight, bias)


def test_layer_norm_of_equal_values_is_the_bias(ops: TensorOps, rng: np.random.Generator) -> None:
    bias = float32s(rng, 64)
    x = np.full((1, 2, 64), 3.0, np.float32)
    check(ops, "layer_norm", np.broadcast_to(bias, x.shape), x, float32s(rng, 64), bias)


@all_shapes
def test_token_shift(ops: TensorOps, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    x, last = float32s(rng, *shape), float32s(rng, shape[0], shape[2])
    expected = np.concatenate([last[:, None], x[:, :-1]], axis=1)
    check(ops, "token_shift", expected, x, last)


@all_shapes
def test_mix(ops: TensorOps, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    x, previous = float32s(rng, *shape), float32s(rng, *shape)
    mix = rng.uniform(0, 1, shape[-1]).astype(np.float32)
    mix[:2] = 0, 1
    share = mix.astype(np.float64)
    check(ops, "mix", share * x + (1 - share) * previous, x, previous, mix)


@all_shapes
def test_sigmoid(ops: TensorOps, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    x = 4 * float32s(rng, *shape)
    check(ops, "sigmoid", 1 / (1 + np.exp(-x.astype(np.float64))), x)


def test_sigmoid_overflows_nowhere(ops: TensorOps) -> None:
    x = np.array([[[-1e30, -1e4, -100, 0, 100, 1e4, 1e30]]], np.float32)
    check(ops, "sigmoid", [[[0, 0, 0, 0.5, 1, 1, 1]]], x)


@all_shapes
def test_relu_squared(ops: TensorOps, rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    x = float32s(rng, *shape) * 1000
    check(ops, "relu_squared", np.maximum(x.astype(np.float64), 0) ** 2, x)


def test_chunks_add_up_to_the_prompt(ops: TensorOps) -> None:
    for n_tokens in [*range(1, 600), 1023, 1024, 4097]:
        chunks = ops.chunks(n_tokens)
        assert sum(chunks) == n_tokens
        assert min(chunks) >= 1


def test_fixed_shapes_make_few_chunk_sizes(ops: TensorOps) -> None:
    sizes = {size for n_tokens in range(1, 5000) for size in ops.chunks(n_tokens)}
    assert not ops.fixed_shapes or len(sizes) <= 8
