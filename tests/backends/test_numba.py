"""`numba`: its types, its products, and prequantized files."""

import ml_dtypes
import numpy as np
import pytest

import rwkv_core
from model_results import divergence_of_prose
from pth_writer import write_pth
from random_model import random_weights
from rwkv_core.cli import main
from rwkv_core.plugins import tensor_ops
from rwkv_core.quantization import QuantizedMatrix, quantize

pytest.importorskip("numba")
pytest.importorskip("rwkv_backend_numpy")

DTYPES = ["float32", "bfloat16", "int8", "int4"]
all_dtypes = pytest.mark.parametrize("dtype", DTYPES)
all_bits = pytest.mark.parametrize("bits", [8, 4])
TOKENS = list(range(17))


def numba_ops(**options):
    return tensor_ops("numba", options)


def random_matrix(rng, shape):
    return (rng.normal(size=shape) / np.sqrt(shape[1])).astype(np.float32)


def deviation(found, expected):
    """Return the RMS of the difference, divided by the RMS of the expected values."""
    return np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))


def product(ops, matrix, x):
    return ops.to_numpy(ops.matmul(matrix, ops.vector(x)))


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("numba") / "model.pth"
    write_pth(path, random_weights(2, 64, 130, seed=3, dtype=np.float16))
    return path


# Numbers of rows that do not fill a block, widths that do not fill a vector, all kinds of groups.
SHAPES = [(101, 512, 64), (101, 512, 512), (2100, 64, 32), (17, 96, 48), (64, 64, 16), (3, 40, 40)]
SHAPES += [(50, 192, 96), (2, 6, 3), (1, 2, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("n_rows", [1, 5, 16, 18])
@all_bits
def test_any_shape_and_groups_are_multiplied_with(bits, shape, n_rows):
    n_out, n_in, group_size = shape
    rng = np.random.default_rng(0)
    matrix = quantize(random_matrix(rng, (n_out, n_in)), bits, group_size)
    x = rng.normal(size=(1, n_rows, n_in)).astype(np.float32)
    ops = numba_ops()
    found = product(ops, ops.quantized_matrix(matrix), x)
    assert deviation(found, x @ matrix.dequantize().T) < 3e-4


@pytest.mark.parametrize("n_rows", [1, 5, 18])
@pytest.mark.parametrize("shape", [(101, 512), (3, 40), (1, 2), (130, 72)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_shape_of_floats_is_multiplied_with(dtype, shape, n_rows):
    rng = np.random.default_rng(0)
    # Numbers with few bits, which bfloat16 holds exactly.
    weights = rng.integers(-99, 99, shape).astype(np.float32)
    x = rng.integers(-99, 99, (1, n_rows, shape[1])).astype(np.float32)
    ops = numba_ops(dtype=dtype)
    assert deviation(product(ops, ops.matrix(weights), x), x @ weights.T) < 1e-6
    # One row of activations is never rounded; several of bfloat16 are, to the nearest.
    x += rng.normal(size=x.shape).astype(np.float32)
    expected = x @ weights.T
    rounds = dtype == "bfloat16" and n_rows > 1
    assert deviation(product(ops, ops.matrix(weights), x), expected) < (2**-9 if rounds else 1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_more_activations_than_a_cache_holds_are_multiplied_in_parts(dtype):
    rng = np.random.default_rng(0)
    weights = random_matrix(rng, (40, 4096))
    x = rng.normal(size=(1, 150, 4096)).astype(np.float32)
    ops = numba_ops(dtype=dtype)
    matrix = ops.matrix(weights)
    one_by_one = np.stack([product(ops, matrix, x[:, [i]])[0, 0] for i in range(150)])
    # With so many rows activations are rounded to bfloat16, and with tiles quantized weights too.
    assert deviation(product(ops, matrix, x)[0], one_by_one) < 2**-8


@pytest.mark.parametrize("shape", [(16, 32), (37, 70), (48, 15), (5, 200)], ids=str)
@pytest.mark.parametrize("source", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_of_any_float_type_are_rounded_to_the_nearest(dtype, source, shape):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=shape) * np.exp2(rng.integers(-20, 5, shape))
    weights = weights.astype(np.dtype(getattr(ml_dtypes, source, source)))
    ops = numba_ops(dtype=dtype)
    found = product(ops, ops.matrix(weights), np.eye(shape[1], dtype=np.float32)[None])[0].T
    rounded = weights.astype(np.float32).astype(getattr(ml_dtypes, dtype, dtype))
    assert np.array_equal(found, rounded.astype(np.float32))


@pytest.mark.parametrize("n_rows", [1, 4, 16])
@all_bits
def test_no_sum_of_integers_overflows(bits, n_rows):
    """Codes and activations at the ends of their ranges, in a group as long as a large row."""
    width = 8192
    ones = np.ones((8, 1), np.float16)
    matrix = QuantizedMatrix(bits, np.full((8, width * bits // 8), 255, np.uint8), ones, -ones)
    ops = numba_ops()
    x = np.full((1, n_rows, width), -3.0, np.float32)
    found = product(ops, ops.quantized_matrix(matrix), x)
    np.testing.assert_allclose(found, x @ matrix.dequantize().T, rtol=1e-3)


@pytest.mark.parametrize("size", [1e-12, 1e12])
@all_bits
def test_scales_that_float16_cannot_hold(bits, size):
    rng = np.random.default_rng(0)
    matrix = quantize(random_matrix(rng, (20, 64)) * np.float32(size), bits, 32)
    assert matrix.scales.dtype == np.float32
    x = rng.normal(size=(1, 1, 64)).astype(np.float32)
    ops = numba_ops()
    found = product(ops, ops.quantized_matrix(matrix), x)
    # They are rounded to float16's 11 bits, in units of the row's own.
    assert deviation(found, x @ matrix.dequantize().T) < 3e-3


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("n_rows", [2, 18])
@all_dtypes
def test_an_activation_that_is_no_number_is_not_hidden(dtype, n_rows, value):
    ops = numba_ops(dtype=dtype)
    matrix = ops.matrix(random_matrix(np.random.default_rng(0), (32, 64)))
    x = np.ones((1, n_rows, 64), np.float32)
    x[0, 0, 5] = value
    found = product(ops, matrix, x)
    assert not np.isfinite(found[0, 0]).any() and np.isfinite(found[0, 1:]).all()


@all_dtypes
def test_tokens_one_by_one_are_the_prompt_and_a_row_of_a_batch(model_file, dtype):
    """Three kinds of kernels are used: for one token, for few rows, for many rows."""
    model = rwkv_core.load(model_file, "numba", dtype=dtype)
    whole = model.to_numpy(model.forward(TOKENS, all_logits=True)[0])
    batch = model.to_numpy(model.forward([TOKENS, TOKENS[::-1]], all_logits=True)[0])
    state, singles = None, []
    for token in TOKENS:
        logits, state = model.forward([token], state)
        singles.append(model.to_numpy(logits))
    assert deviation(batch[0], whole) < 1e-3
    # A prompt's activations are rounded to bfloat16 where the processor multiplies in that.
    assert deviation(np.stack(singles), whole) < (2**-8 if dtype == "bfloat16" else 1e-3)


@all_bits
def test_a_prequantized_file_is_loaded_as_it_is(model_file, tmp_path, bits):
    path = rwkv_core.prequantize(model_file, tmp_path / "m.pqth", bits=bits)
    model, restored = rwkv_core.load(path, "numba"), rwkv_core.load(path, "numpy")
    assert model.ops.dtype == f"int{bits}"
    found, expected = (m.to_numpy(m.forward(TOKENS, all_logits=True)[0]) for m in (model, restored))
    assert deviation(found, expected) < 1e-3
    one, other = (m.to_numpy(m.forward([7])[0]) for m in (model, restored))
    assert deviation(one, other) < 1e-3


def test_the_type_of_a_file_that_is_restored_is_float32(model_file, tmp_path):
    path = rwkv_core.prequantize(model_file, tmp_path / "m.pqth", bits=8, group_size=4)
    assert rwkv_core.load(path, "numba").ops.dtype == "float32"


def test_group_sizes_are_chosen(model_file):
    by_default, of_16 = (
        rwkv_core.load(model_file, "numba", dtype="int4", **options)
        for options in ({}, {"group_size": 16})
    )
    exact = rwkv_core.load(model_file, "numba")
    expected, *found = (
        model.to_numpy(model.forward(TOKENS)[0]) for model in (exact, by_default, of_16)
    )
    assert deviation(found[1], expected) < deviation(found[0], expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("dtype=float16", "option dtype: found 'float16'"),
        ("dtype=int8 group_size=0", "option group_size: found 0, expected at least 1"),
        ("dtype=int8 group_size=48", "group size: found 48, expected a divisor"),
        ("group_size=64", "option group_size: found it with dtype float32"),
    ],
)
def test_a_bad_option_is_one_line(capsys, options, message):
    arguments = [word for option in options.split() for word in ("-o", option)]
    assert main(["generate", "a", "-m", "prose", "-b", "numba", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and len(captured.err.splitlines()) == 1 and not captured.out


@pytest.mark.parametrize(("dtype", "size"), [("bfloat16", 2), ("int8", 1.07), ("int4", 0.57)])
def test_a_matrix_takes_its_bits_and_no_more(dtype, size):
    ops = numba_ops(dtype=dtype)
    matrix = ops.matrix(random_matrix(np.random.default_rng(0), (512, 1024)))
    assert ops.matrix_bytes(matrix) <= size * 512 * 1024


@all_bits
def test_the_shipped_models_perplexity_is_kept(bits):
    divergence = divergence_of_prose(("numba", "float32"), ("numba", f"int{bits}"))
    assert 0 < divergence < {8: 0.001, 4: 0.03}[bits]


def test_small_models_do_not_wait_for_kernels_unless_an_option_asks(model_file, tmp_path):
    write_pth(tmp_path / "large.pth", random_weights(1, 320, 25_000))
    assert rwkv_core.load(model_file).backend == "numpy"
    assert rwkv_core.load(model_file, dtype="float32").backend == "numpy"
    assert rwkv_core.load(model_file, dtype="int8").backend == "numba"
    assert rwkv_core.load(model_file, dtype="int4", group_size=16).backend == "numba"
    assert rwkv_core.load(tmp_path / "large.pth").backend == "numba"


def test_without_a_name_the_best_backend_that_has_the_dtype_is_taken(model_file):
    for path in (model_file, "prose"):
        model = rwkv_core.load(path, dtype="float64")
        assert model.backend == "numpy" and model.ops.dtype == "float64"
    with pytest.raises(rwkv_core.OptionError, match=r"found 'float65', expected one of: fl"):
        rwkv_core.load(model_file, dtype="float65")
