"""Arrays get onto the device and back unharmed, and share no memory with what they came from."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray

from rwkv_core.conformance.closeness import assert_close, effective, of_matmul, of_vectors
from rwkv_core.model import Model
from rwkv_core.tensor_ops import TensorOps

SOURCES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
all_sources = pytest.mark.parametrize("source", SOURCES, ids=lambda source: np.dtype(source).name)


def read_only(array: NDArray[np.float64], dtype: DTypeLike) -> NDArray[np.floating]:
    """As a checkpoint hands arrays over: of the file's type, and not to be written to."""
    array = array.astype(dtype)
    array.flags.writeable = False
    return array


@all_sources
@pytest.mark.parametrize("shape", [(64,), (3, 64), (2, 5, 64)], ids=str)
def test_a_vector_comes_back_in_the_runtime_type(
    ops: TensorOps, rng: np.random.Generator, source: DTypeLike, shape: tuple[int, ...]
) -> None:
    array = read_only(rng.normal(size=shape), source)
    found = ops.to_numpy(ops.vector(array))
    assert isinstance(found, np.ndarray)
    assert found.dtype == ops.runtime_dtype
    assert np.array_equal(found, array.astype(ops.runtime_dtype))


@all_sources
def test_a_matrix_keeps_its_numbers_within_its_types_rounding(
    ops: TensorOps, rng: np.random.Generator, source: DTypeLike
) -> None:
    array = read_only(rng.normal(size=(101, 64)), source)
    # A quantized matrix may be off by more than a product is: it is what the reference is given.
    tolerance = max(of_matmul(ops), 0.0 if ops.dtype in EXACT else 0.5)
    assert_close(effective(ops, ops.matrix(array), 64), array.astype(np.float64), tolerance)


EXACT = ("float64", "float32", "float16", "bfloat16")


def test_arrays_that_are_not_contiguous_are_taken_too(
    ops: TensorOps, rng: np.random.Generator
) -> None:
    array = rng.normal(size=(64, 128)).astype(np.float32)
    array.flags.writeable = False
    assert np.array_equal(ops.to_numpy(ops.vector(array[:, ::2])), array[:, ::2])
    straight, turned = ops.matrix(array.T.copy()), ops.matrix(array.T)
    assert np.array_equal(effective(ops, straight, 64), effective(ops, turned, 64))


def test_vectors_do_not_see_later_changes_of_their_source(ops: TensorOps) -> None:
    for source in SOURCES:
        array = np.ones(64, source)
        vector = ops.vector(array)
        array[:] = 2
        assert (ops.to_numpy(vector) == 1).all()


def test_matrices_do_not_see_later_changes_of_their_source(
    ops: TensorOps, rng: np.random.Generator
) -> None:
    for source in SOURCES:
        array = rng.normal(size=(64, 64)).astype(source)
        matrix = ops.matrix(array)
        before = effective(ops, matrix, 64)
        array[:] = 2
        assert np.array_equal(effective(ops, matrix, 64), before)


def test_embeddings_do_not_see_later_changes_of_their_source(ops: TensorOps) -> None:
    for source in SOURCES:
        array = np.ones((101, 64), source)
        table = ops.embedding(array)
        array[:] = 2
        assert (ops.to_numpy(ops.embed(table, np.zeros((1, 1), np.int64))) == 1).all()


@all_sources
def test_embed_picks_the_rows_of_the_tokens(
    ops: TensorOps, rng: np.random.Generator, source: DTypeLike
) -> None:
    array = read_only(rng.normal(size=(101, 64)), source)
    tokens = np.array([[0, 100, 7], [7, 7, 50]])
    found = ops.to_numpy(ops.embed(ops.embedding(array), tokens))
    assert found.dtype == ops.runtime_dtype
    assert_close(found, array[tokens].astype(np.float64), max(of_matmul(ops), of_vectors(ops)))


def test_logits_are_float32_and_states_of_the_runtime_type(ops: TensorOps, model: Model) -> None:
    logits, state = model.forward([1, 2, 3])
    assert model.to_numpy(logits).dtype == np.float32
    assert model.to_numpy(state).dtype == ops.runtime_dtype
    assert model.to_numpy(model.empty_state()).dtype == ops.runtime_dtype
