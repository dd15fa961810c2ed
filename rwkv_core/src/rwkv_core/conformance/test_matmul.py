"""The product with an opaque matrix, against the float64 product with its source weights."""

from __future__ import annotations

import numpy as np
import pytest

from rwkv_core.backends.tensor_ops import Matrix, TensorOps
from rwkv_core.conformance.closeness import REAL_SIZES, assert_close, call, held, of_matmul
from rwkv_core.conformance.references.rwkv4 import Floats
from rwkv_core.conformance.shapes import row_shapes
from rwkv_core.quantization import QuantizedMatrix, quantize

SHAPES = [(64, 64), (256, 64), (64, 256), (101, 64), (192, 160), (1088, 96), (96, 1088)]


def random_matrix(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return (rng.normal(size=shape) / np.sqrt(shape[1])).astype(np.float32)


def check_product(
    ops: TensorOps, matrix: Matrix, weights: Floats, x: np.ndarray, tolerance: float
) -> None:
    """Compare `x` times `matrix` with the float64 product with `weights`."""
    found = ops.to_numpy(call(ops, "matmul", matrix, ops.vector(x)))
    assert found.dtype == ops.runtime_dtype
    what = f"matmul of a matrix {list(weights.shape)} and rows {list(x.shape)}"
    assert_close(found, x.astype(np.float64) @ weights.T, tolerance, what)


@pytest.mark.parametrize("shape", SHAPES, ids="{0[0]}x{0[1]}".format)
def test_product_is_float64s(
    ops: TensorOps, rng: np.random.Generator, shape: tuple[int, int]
) -> None:
    array = random_matrix(rng, shape)
    matrix = ops.matrix(array)
    weights = held(ops, matrix, array)
    # Every number of rows with one matrix, and a few with the others.
    for rows in row_shapes(ops) if shape == (101, 64) else [(1, 1), (1, 16), (5, 1), (3, 4)]:
        x = rng.standard_normal((*rows, shape[1]), np.float32)
        check_product(ops, matrix, weights, x, of_matmul(ops))


# Narrow on one side, with widths that are no round numbers.
@pytest.mark.parametrize(
    "shape",
    [(8, 96), (96, 8), (20, 192), (192, 20), (100, 64), (64, 100), (128, 96), (96, 128)],
    ids="{0[0]}x{0[1]}".format,
)
def test_low_rank_product_is_float64s(
    ops: TensorOps, rng: np.random.Generator, shape: tuple[int, int]
) -> None:
    array = rng.uniform(-1, 1, shape).astype(np.float32)
    given = array.copy()
    matrix = ops.low_rank_matrix(given)
    given[:] = 0  # as if the file that it is a view of were closed
    weights = held(ops, matrix, array)
    # bfloat16 rounds these values by at most 0.0034 of their RMS; 8 bits would by 0.0068.
    what = "low_rank_matrix: its weights, which need 16 bits at least"
    assert_close(weights, array, 0.005, what)
    for rows in ((1, 1), (1, 16), (5, 1), (3, 4)):
        x = rng.standard_normal((*rows, shape[1]), np.float32)
        check_product(ops, matrix, weights, x, of_matmul(ops))


def test_product_is_the_defaults(ops: TensorOps, rng: np.random.Generator) -> None:
    for shape in ((101, 64), (96, 1088)):
        matrix = ops.matrix(random_matrix(rng, shape))
        x = ops.vector(rng.normal(size=(2, 16, shape[1])))
        if type(matrix) is not type(x):
            pytest.skip("the matrices are not arrays, so the default product does not know them")
        default = ops.to_numpy(TensorOps.matmul(ops, matrix, x))
        found = ops.to_numpy(ops.matmul(matrix, x))
        assert_close(found, default, of_matmul(ops), f"matmul of {list(shape)} beside the default")


@pytest.mark.parametrize("shape", REAL_SIZES, ids="{0[0]}x{0[1]}".format)
def test_sums_of_one_sign_keep_their_digits(
    ops: TensorOps, rng: np.random.Generator, shape: tuple[int, int]
) -> None:
    """Squared ReLUs have one sign: a sum in 16 bits stops growing long before it is complete."""
    array = rng.uniform(0, 1, shape).astype(np.float32)
    matrix = ops.matrix(array)
    x = rng.uniform(0, 1, (1, 4, shape[1])).astype(np.float32)
    check_product(ops, matrix, held(ops, matrix, array), x, of_matmul(ops))


def test_a_width_that_is_no_multiple_of_anything(
    fresh_ops: TensorOps, rng: np.random.Generator
) -> None:
    array, dtype = random_matrix(rng, (36, 100)), fresh_ops.dtype
    tolerance = of_matmul(fresh_ops)
    matrix = fresh_ops.matrix(array)
    weights = held(fresh_ops, matrix, array, dtype)
    for n_time in (1, 16):
        x = rng.standard_normal((1, n_time, 100), np.float32)
        check_product(fresh_ops, matrix, weights, x, tolerance)


@pytest.mark.parametrize("size", [1e-2, 1e3, 1e6, 1e9])
def test_each_row_is_right_whatever_the_size_of_its_neighbours(
    ops: TensorOps, rng: np.random.Generator, size: float
) -> None:
    array = random_matrix(rng, (64, 256))
    matrix = ops.matrix(array)
    x = rng.normal(size=(1, 4, 256)).astype(np.float32)
    x[:, 1] *= np.float32(size)
    found = ops.to_numpy(ops.matmul(matrix, ops.vector(x)))
    expected = x @ held(ops, matrix, array).T
    for t in range(4):
        assert_close(found[:, t], expected[:, t], of_matmul(ops), f"matmul, row {t}")


def test_one_large_activation_overflows_nothing(ops: TensorOps, rng: np.random.Generator) -> None:
    array = random_matrix(rng, (64, 256))
    matrix = ops.matrix(array)
    x = rng.normal(size=(1, 1, 256)).astype(np.float32)
    x[0, 0, 17] = 3e5
    check_product(ops, matrix, held(ops, matrix, array), x, of_matmul(ops))


def test_a_row_of_zeros_gives_zeros(ops: TensorOps, rng: np.random.Generator) -> None:
    matrix = ops.matrix(random_matrix(rng, (64, 64)))
    found = ops.to_numpy(ops.matmul(matrix, ops.vector(np.zeros((2, 3, 64)))))
    assert np.array_equal(found, np.zeros((2, 3, 64)))


@pytest.mark.parametrize("group_size", [64, 32])
@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_product_is_that_of_the_restored_matrix(
    fresh_ops: TensorOps, rng: np.random.Generator, bits: int, group_size: int
) -> None:
    for shape in SHAPES:
        group = group_size if shape[1] % group_size == 0 else 32
        quantized = quantize(random_matrix(rng, shape), bits, group)
        matrix = fresh_ops.quantized_matrix(quantized)
        restored = held(fresh_ops, matrix, quantized.dequantize(), _restored_in(fresh_ops))
        for rows in ((1, 1), (1, 16), (5, 1)):
            x = rng.standard_normal((*rows, shape[1]), np.float32)
            check_product(fresh_ops, matrix, restored, x, of_matmul(fresh_ops))


def _restored_in(ops: TensorOps) -> str:
    """Return the dtype of dequantized matrices; float64 if a kernel multiplies with codes."""
    return ops.dtype if ops.dtype in ("float16", "bfloat16") else "float64"


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_matrix_with_float32_scales(
    fresh_ops: TensorOps, rng: np.random.Generator, bits: int
) -> None:
    narrow = quantize(random_matrix(rng, (64, 64)), bits, 32)
    scales, offsets = (part.astype(np.float32) * 1.01 for part in (narrow.scales, narrow.offsets))
    quantized = QuantizedMatrix(bits, narrow.codes, scales, offsets)
    matrix = fresh_ops.quantized_matrix(quantized)
    x = rng.normal(size=(1, 2, 64)).astype(np.float32)
    weights = quantized.dequantize().astype(np.float64)
    check_product(fresh_ops, matrix, weights, x, of_matmul(fresh_ops))


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_matrix_outlives_its_file(
    fresh_ops: TensorOps, rng: np.random.Generator, bits: int
) -> None:
    ops, given = fresh_ops, quantize(random_matrix(rng, (64, 64)), bits, 32)
    x = ops.vector(rng.normal(size=(1, 2, 64)))
    matrix = ops.quantized_matrix(given)
    expected = ops.to_numpy(ops.matmul(matrix, x)).copy()
    for part in (given.codes, given.scales, given.offsets):
        part[:] = 0
    assert np.array_equal(ops.to_numpy(ops.matmul(matrix, x)), expected), (
        "`quantized_matrix` keeps a view of the file: copy it"
    )
