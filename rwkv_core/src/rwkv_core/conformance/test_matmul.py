"""The product with an opaque matrix, against float64's with the numbers that the matrix holds."""

from __future__ import annotations

import numpy as np
import pytest

from rwkv_core.conformance.closeness import assert_close, effective, of_matmul
from rwkv_core.quantization import QuantizedMatrix, quantize
from rwkv_core.tensor_ops import TensorOps

all_shapes = pytest.mark.parametrize(
    "shape", [(64, 64), (256, 64), (64, 256), (101, 64)], ids="{0[0]}x{0[1]}".format
)


def random_matrix(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return (rng.normal(size=shape) / np.sqrt(shape[1])).astype(np.float32)


@all_shapes
@pytest.mark.parametrize("n_time", [1, 2, 17, 300])
@pytest.mark.parametrize("n_batch", [1, 3])
def test_product_is_float64s(
    ops: TensorOps, rng: np.random.Generator, shape: tuple[int, int], n_batch: int, n_time: int
) -> None:
    matrix = ops.matrix(random_matrix(rng, shape))
    x = rng.normal(size=(n_batch, n_time, shape[1])).astype(np.float32)
    found = ops.to_numpy(ops.matmul(matrix, ops.vector(x)))
    assert found.dtype == ops.runtime_dtype
    assert_close(found, x @ effective(ops, matrix, shape[1]).T, of_matmul(ops))


@all_shapes
def test_product_is_the_defaults(
    ops: TensorOps, rng: np.random.Generator, shape: tuple[int, int]
) -> None:
    matrix = ops.matrix(random_matrix(rng, shape))
    x = ops.vector(rng.normal(size=(2, 17, shape[1])))
    if type(matrix) is not type(x):
        pytest.skip("the matrices are not arrays, so the default product does not know them")
    default = ops.to_numpy(TensorOps.matmul(ops, matrix, x))
    assert_close(ops.to_numpy(ops.matmul(matrix, x)), default, of_matmul(ops))


@pytest.mark.parametrize("size", [1e-2, 1.0, 1e3, 1e6, 1e9])
def test_each_row_is_right_whatever_the_size_of_its_neighbours(
    ops: TensorOps, rng: np.random.Generator, size: float
) -> None:
    matrix = ops.matrix(random_matrix(rng, (64, 256)))
    x = rng.normal(size=(1, 4, 256)).astype(np.float32)
    x[:, 1] *= np.float32(size)
    found = ops.to_numpy(ops.matmul(matrix, ops.vector(x)))
    expected = x @ effective(ops, matrix, 256).T
    for t in range(4):
        assert_close(found[:, t], expected[:, t], of_matmul(ops), f"row {t}")


def test_one_large_activation_overflows_nothing(ops: TensorOps, rng: np.random.Generator) -> None:
    matrix = ops.matrix(random_matrix(rng, (64, 256)))
    x = rng.normal(size=(1, 1, 256)).astype(np.float32)
    x[0, 0, 17] = 3e5
    found = ops.to_numpy(ops.matmul(matrix, ops.vector(x)))
    assert_close(found, x @ effective(ops, matrix, 256).T, of_matmul(ops))


def test_a_row_of_zeros_gives_zeros(ops: TensorOps, rng: np.random.Generator) -> None:
    matrix = ops.matrix(random_matrix(rng, (64, 64)))
    found = ops.to_numpy(ops.matmul(matrix, ops.vector(np.zeros((2, 3, 64)))))
    assert np.array_equal(found, np.zeros((2, 3, 64)))


@all_shapes
@pytest.mark.parametrize("group_size", [64, 32])
@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_product_is_that_of_the_restored_matrix(
    ops: TensorOps, rng: np.random.Generator, shape: tuple[int, int], bits: int, group_size: int
) -> None:
    quantized = quantize(random_matrix(rng, shape), bits, group_size)
    matrix = ops.quantized_matrix(quantized)
    restored = quantized.dequantize().astype(np.float64)
    for n_batch, n_time in ((1, 1), (1, 17), (3, 2)):
        x = rng.normal(size=(n_batch, n_time, shape[1])).astype(np.float32)
        found = ops.to_numpy(ops.matmul(matrix, ops.vector(x)))
        assert found.dtype == ops.runtime_dtype
        assert_close(found, x @ restored.T, of_matmul(ops), f"[{n_batch}, {n_time}]")


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_matrix_with_float32_scales(
    ops: TensorOps, rng: np.random.Generator, bits: int
) -> None:
    narrow = quantize(random_matrix(rng, (64, 64)), bits, 32)
    scales, offsets = (part.astype(np.float32) * 1.01 for part in (narrow.scales, narrow.offsets))
    quantized = QuantizedMatrix(bits, narrow.codes, scales, offsets)
    x = rng.normal(size=(1, 2, 64)).astype(np.float32)
    found = ops.to_numpy(ops.matmul(ops.quantized_matrix(quantized), ops.vector(x)))
    assert_close(found, x @ quantized.dequantize().astype(np.float64).T, of_matmul(ops))


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_matrix_outlives_its_file(
    ops: TensorOps, rng: np.random.Generator, bits: int
) -> None:
    given = quantize(random_matrix(rng, (64, 64)), bits, 32)
    x = ops.vector(rng.normal(size=(1, 2, 64)))
    matrix = ops.quantized_matrix(given)
    expected = ops.to_numpy(ops.matmul(matrix, x)).copy()
    for part in (given.codes, given.scales, given.offsets):
        part[:] = 0
    assert np.array_equal(ops.to_numpy(ops.matmul(matrix, x)), expected)
