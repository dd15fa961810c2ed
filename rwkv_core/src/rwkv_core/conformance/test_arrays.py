"""Arrays come back from the device unchanged, and share no memory with their source."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray

from rwkv_core.backends.tensor_ops import TensorOps
from rwkv_core.conformance.closeness import (
    REAL_SIZES,
    assert_close,
    assert_equal,
    effective,
    held,
    is_exact,
    of_matmul,
    rounded,
)
from rwkv_core.model import Model

SOURCES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
all_sources = pytest.mark.parametrize("source", SOURCES, ids=lambda source: np.dtype(source).name)


def read_only(array: NDArray[np.float64], dtype: DTypeLike) -> NDArray[np.floating]:
    """Return an array like a checkpoint's: of the file's type, and read-only."""
    array = array.astype(dtype)
    array.flags.writeable = False
    return array


def check_matrix(ops: TensorOps, array: NDArray[Any]) -> None:
    """Compare `ops.matrix(array)` with `array`, exactly if the dtype is exact.

    64 columns, including the columns next to a power of two, are compared number by number. A
    product compares all columns: it shows a missing or misplaced column.
    """
    matrix, dtype, width = ops.matrix(array), ops.dtype, array.shape[1]
    tolerance = of_matmul(ops)
    expected = held(ops, matrix, array)
    what = f"`matrix` of {array.dtype} {list(array.shape)}, rounded to {dtype}"
    if is_exact(dtype):
        edges = [n for power in (32, 128, 512, 1024, 2048) for n in (power - 1, power)]
        columns = np.unique([*edges, *np.linspace(0, width - 1, 64 - len(edges), dtype=int)])
        columns = columns[columns < width]
        found = effective(ops, matrix, width, columns)
        by_one = f"{what}: column {columns.tolist()}, times 1 by `matmul`"
        assert_equal(found, expected[:, columns].astype(ops.runtime_dtype), by_one)
    x = np.random.default_rng(2).standard_normal((1, 4, width), np.float32)
    found = ops.to_numpy(ops.matmul(matrix, ops.vector(x)))
    assert_close(found, x.astype(np.float64) @ expected.T, tolerance, f"{what}: times 4 rows")


def test_types_are_those_that_were_asked_for(ops: TensorOps, options: dict[str, Any]) -> None:
    for name in ("dtype", "runtime_dtype"):
        asked = options.get(name)
        found = getattr(ops, name)
        assert asked in (None, found), f"ops.{name}: found {found!r}, the option says {asked!r}"
    assert ops.runtime_dtype in ("float32", "float64")
    assert isinstance(ops.device, str)
    assert isinstance(ops.fixed_shapes, bool)


@all_sources
@pytest.mark.parametrize("shape", [(64,), (1088,), (3, 64), (5, 7, 5, 64)], ids=str)
def test_a_vector_comes_back_in_the_runtime_type(
    ops: TensorOps, rng: np.random.Generator, source: DTypeLike, shape: tuple[int, ...]
) -> None:
    array = read_only(rng.normal(size=shape), source)
    found = ops.to_numpy(ops.vector(array))
    assert isinstance(found, np.ndarray)
    assert found.dtype == ops.runtime_dtype
    assert_equal(found, array.astype(ops.runtime_dtype), "`vector` and `to_numpy`")


@all_sources
def test_a_matrix_holds_its_source_as_numpy_rounds_it(
    ops: TensorOps, rng: np.random.Generator, source: DTypeLike
) -> None:
    check_matrix(ops, read_only(rng.normal(size=(101, 64)), source))


@pytest.mark.parametrize("shape", REAL_SIZES, ids="{0[0]}x{0[1]}".format)
def test_a_matrix_of_a_real_size_holds_its_source(
    ops: TensorOps, rng: np.random.Generator, shape: tuple[int, int]
) -> None:
    check_matrix(ops, rng.standard_normal(shape, np.float32))


def test_a_matrix_knows_its_bytes(ops: TensorOps, rng: np.random.Generator) -> None:
    """`matrix_bytes`, which a bench uses, may differ by half from the size for the dtype."""
    array = rng.standard_normal((192, 320), np.float32)
    matrix, dtype = ops.matrix(array), ops.dtype
    found = ops.matrix_bytes(matrix)
    if found is None:
        return
    bits = int("".join(filter(str.isdigit, dtype)) or 32)
    least, most = array.size * bits / 8, 1.5 * array.size * bits / 8
    assert isinstance(found, int | np.integer), f"matrix_bytes: found {found!r}, expected an int"
    assert least <= found <= most, (
        f"matrix_bytes: found {found} for a {dtype} matrix of {list(array.shape)}, expected "
        f"{least:.0f} to {most:.0f}, or None where it is not known"
    )


def test_arrays_that_are_not_contiguous_are_taken_too(
    ops: TensorOps, rng: np.random.Generator
) -> None:
    array = rng.normal(size=(64, 128)).astype(np.float32)
    array.flags.writeable = False
    assert_equal(ops.to_numpy(ops.vector(array[:, ::2])), array[:, ::2], "`vector` of every other")
    straight, turned = ops.matrix(array.T.copy()), ops.matrix(array.T)
    assert_equal(
        effective(ops, turned, 64), effective(ops, straight, 64), "`matrix` of a transposed array"
    )


def test_vectors_do_not_see_later_changes_of_their_source(ops: TensorOps) -> None:
    for source in SOURCES:
        array = np.ones(64, source)
        vector = ops.vector(array)
        array[:] = 2
        assert (ops.to_numpy(vector) == 1).all(), "`vector` keeps a view of its source: copy it"


def test_matrices_do_not_see_later_changes_of_their_source(
    ops: TensorOps, rng: np.random.Generator
) -> None:
    for source in SOURCES:
        array = rng.normal(size=(64, 64)).astype(source)
        matrix = ops.matrix(array)
        before = effective(ops, matrix, 64)
        array[:] = 2
        assert_equal(effective(ops, matrix, 64), before, "`matrix` keeps a view of its source")


def test_embeddings_do_not_see_later_changes_of_their_source(ops: TensorOps) -> None:
    for source in SOURCES:
        array = np.ones((101, 64), source)
        table = ops.embedding(array)
        array[:] = 2
        rows = ops.to_numpy(ops.embed(table, np.zeros((1, 1), np.int64)))
        assert (rows == 1).all(), "`embedding` keeps a view of its source: copy it"


def check_embedding(ops: TensorOps, array: NDArray[Any], tokens: NDArray[np.int64]) -> None:
    table, before = ops.embedding(array), tokens.copy()
    found = ops.to_numpy(ops.embed(table, tokens))
    assert found.dtype == ops.runtime_dtype
    assert np.array_equal(tokens, before), "`embed` works in place: it changes the tokens"
    # In the file's type, or in that of the matrices.
    expected = array[tokens].astype(ops.runtime_dtype)
    if is_exact(ops.dtype) and not np.array_equal(found, expected):
        expected = rounded(array[tokens], ops.dtype).astype(ops.runtime_dtype)
    assert_equal(found, expected, f"`embed` of {array.dtype} {list(array.shape)}: the tokens' rows")


@all_sources
def test_embed_picks_the_rows_of_the_tokens(
    ops: TensorOps, rng: np.random.Generator, source: DTypeLike
) -> None:
    array = read_only(rng.normal(size=(101, 64)), source)
    check_embedding(ops, array, np.array([[0, 100, 7], [7, 7, 50]]))


def test_embed_picks_from_a_large_vocabulary(ops: TensorOps, rng: np.random.Generator) -> None:
    """Token numbers exceed 16 bits, and rows are as wide as a model's."""
    check_embedding(
        ops,
        rng.standard_normal((70_001, 64), np.float32),
        np.array([[0, 127, 128, 255, 256], [32_767, 32_768, 65_535, 65_536, 70_000]]),
    )
    tokens = rng.integers(0, 1283, (5, 512))
    check_embedding(ops, rng.standard_normal((1283, 1088), np.float32), tokens)


def test_logits_are_float32_and_states_of_the_runtime_type(ops: TensorOps, model: Model) -> None:
    logits, state = model.forward([1, 2, 3])
    assert model.to_numpy(logits).dtype == np.float32
    assert model.to_numpy(state).dtype == ops.runtime_dtype
    assert model.to_numpy(model.empty_state()).dtype == ops.runtime_dtype


@pytest.mark.parametrize("number", [0, 7, 2**63, 2**128 - 1])
def test_one_process_agrees_with_itself(ops: TensorOps, number: int) -> None:
    """Seeds have up to 128 bits."""
    assert ops.broadcast(number) == number, "`broadcast` gives back the first process's number"
