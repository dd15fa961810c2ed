"""torch-quant: correct with 8 and 4 bits and all groups; memory during loading."""

import gc
import json
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rwkv_backend_cuda_variants.quant.ops")
torch = pytest.importorskip("torch")

import rwkv_core  # noqa: E402
from model_results import divergence_of_prose  # noqa: E402
from pth_writer import write_pth  # noqa: E402
from random_model import random_weights  # noqa: E402
from rwkv_core import plugins  # noqa: E402
from rwkv_core.cli import main  # noqa: E402
from rwkv_core.quantization import QuantizedMatrix, quantize  # noqa: E402

TOKENS = [5, 9, 100, 7, 0, 31, 77, 3]
all_bits = pytest.mark.parametrize("bits", [8, 4])


def quant_ops(**options):
    return plugins.tensor_ops("torch-quant", {"device": "cpu", **options})


def random_matrix(rng, shape):
    return (rng.normal(size=shape) / np.sqrt(shape[1])).astype(np.float32)


def deviation(found, expected):
    """Return the RMS of the difference, divided by the RMS of the expected values."""
    return np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))


def product(ops, matrix, x):
    return ops.to_numpy(ops.matmul(matrix, ops.vector(x)))


SHAPES = [
    # out, in, group size: those of the 4-bit kernel, cut down to them, and too small for it
    (101, 512, 64),
    (101, 512, 512),
    (2100, 64, 32),
    (17, 96, 96),
    (17, 96, 48),
    (64, 64, 16),
    (3, 40, 40),
    (1, 2, 1),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("n_rows", [1, 5])
@all_bits
def test_any_shape_and_groups_are_multiplied_with(bits, shape, n_rows):
    n_out, n_in, group_size = shape
    rng = np.random.default_rng(0)
    matrix = quantize(random_matrix(rng, (n_out, n_in)), bits, group_size)
    x = rng.normal(size=(1, n_rows, n_in)).astype(np.float32)
    ops = quant_ops(dtype=f"int{bits}")
    found = product(ops, ops.quantized_matrix(matrix), x)
    # bfloat16 rounds by 0.3% in all, one more rounding to 8 bits by 0.7%.
    assert deviation(found, x @ matrix.dequantize().T) < 0.015


def test_8_bits_with_a_group_to_a_row_are_exact():
    rng = np.random.default_rng(0)
    # Far from zero: an offset that was only roughly taken in would show.
    matrix = quantize(random_matrix(rng, (101, 512)) + 3, 8, 512)
    x = rng.normal(size=(1, 3, 512)).astype(np.float32)
    ops = quant_ops()
    found = product(ops, ops.quantized_matrix(matrix), x)
    assert deviation(found, x @ matrix.dequantize().T) < 3e-4


def test_nothing_saturates():
    """Codes and activations at the ends of their ranges, where sums of pairs exceed int16."""
    for code in (0, 255):
        codes = np.full((16, 256), code, np.uint8)
        matrix = QuantizedMatrix(8, codes, np.ones((16, 1), "f"), np.full((16, 1), -128, "f"))
        ops = quant_ops()
        for value in (1.0, -1.0, 63.5 / 63):
            x = np.full((1, 1, 256), value, np.float32)
            found = product(ops, ops.quantized_matrix(matrix), x)
            np.testing.assert_allclose(found, x @ matrix.dequantize().T, rtol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@all_bits
def test_an_activation_that_is_no_number_is_not_hidden(bits, value):
    ops = quant_ops(dtype=f"int{bits}")
    matrix = ops.matrix(random_matrix(np.random.default_rng(0), (32, 64)))
    x = np.ones((1, 2, 64), np.float32)
    x[0, 0, 5] = value
    found = product(ops, matrix, x)
    assert not np.isfinite(found[0, 0]).any() and np.isfinite(found[0, 1]).all()


# Widths that AVX-512 takes no whole steps of were wrong by a third.
@pytest.mark.parametrize("width", [512, 24, 72])
def test_the_kernel_where_torch_has_no_fbgemm(width):
    from rwkv_backend_cuda_variants.quant.cpu_kernels import Int8RowsInBfloat16

    rng = np.random.default_rng(0)
    matrix = quantize(random_matrix(rng, (101, width)), 8, width)
    x = torch.from_numpy(rng.normal(size=(3, width)).astype(np.float32))
    found = Int8RowsInBfloat16(matrix).product(x).numpy()
    assert deviation(found, x.numpy() @ matrix.dequantize().T) < 0.01


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("quant") / "model.pth"
    write_pth(path, random_weights(2, 64, 130, seed=3, dtype=np.float16))
    return path


@pytest.mark.parametrize("group_size", [16, 32, 64])
@all_bits
def test_a_prequantized_file_gives_the_logits_of_its_restored_matrices(
    model_file, tmp_path, bits, group_size
):
    path = rwkv_core.prequantize(model_file, tmp_path / "m.pqth", bits=bits, group_size=group_size)
    model = rwkv_core.load(path, "torch-quant")
    restored = rwkv_core.load(path, "torch")
    found, expected = (m.to_numpy(m.forward(TOKENS, all_logits=True)[0]) for m in (model, restored))
    assert deviation(found, expected) < 0.02


def test_a_file_keeps_its_bits(model_file, tmp_path):
    """The option does not apply to prequantized matrices: int4 in the file stays int4."""
    path = rwkv_core.prequantize(model_file, tmp_path / "m.pqth", bits=4)
    models = [rwkv_core.load(path, "torch-quant", dtype=dtype) for dtype in ("int8", "int4")]
    assert [model.ops.dtype for model in models] == ["int4", "int4"]
    assert np.array_equal(*(model.to_numpy(model.forward(TOKENS)[0]) for model in models))


@all_bits
def test_bench_counts_the_bits(capsys, bits):
    arguments = ["--shape", "1x256", "--rounds", "1", "--prefill", "3", "-o", f"dtype=int{bits}"]
    assert main(["bench", "-b", "torch-quant", *arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["dtype"] == f"int{bits}"
    matrices = 13 * 256 * 256 + 50277 * 256
    bytes_per_weight = report["decode"]["bytes_per_token"] / matrices
    assert bits / 8 < bytes_per_weight < bits / 8 + 0.08


@all_bits
def test_a_row_of_a_batch_and_a_prompt_token_by_token_are_the_same(model_file, bits):
    model = rwkv_core.load(model_file, "torch-quant", dtype=f"int{bits}")
    whole = model.to_numpy(model.forward(TOKENS, all_logits=True)[0])
    batch = model.to_numpy(model.forward([TOKENS, TOKENS[::-1]], all_logits=True)[0])
    state, singles = None, []
    for token in TOKENS:
        logits, state = model.forward([token], state)
        singles.append(model.to_numpy(logits))
    assert deviation(batch[0], whole) < 0.02
    assert deviation(np.stack(singles), whole) < 0.02


def test_chunksize_is_the_number_of_groups_in_a_row(model_file):
    by_chunks = rwkv_core.load(model_file, "torch-quant", dtype="int4", chunksize=4)
    # 64 wide; the matrix of 256 columns then has groups of 64, so the two are not all alike.
    matrix = random_matrix(np.random.default_rng(0), (32, 64))
    x = np.random.default_rng(1).normal(size=(1, 1, 64))
    of_16 = quant_ops(dtype="int4", group_size=16)
    assert np.array_equal(
        product(by_chunks.ops, by_chunks.ops.matrix(matrix), x),
        product(of_16, of_16.matrix(matrix), x),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("dtype=int5", "option dtype: found 'int5', expected one of: int8, int4"),
        ("bits=4", "has no option 'bits'"),
        ("group_size=48", "group_size: found 48, expected a divisor"),
        ("group_size=0", "group_size: found 0, expected at least 1"),
        ("chunksize=-1", "chunksize: found -1, expected at least 1"),
        ("chunksize=7", "chunksize: found 7, expected a divisor"),
        ("group_size=64 chunksize=4", "group_size and chunksize: found both"),
        ("device=meta", "option device: "),
        ("dtype=float16", "option dtype: found 'float16', expected one of: int8, int4"),
    ],
)
def test_a_bad_option_is_one_line(model_file, capsys, options, message):
    arguments = [word for option in options.split() for word in ("-o", option)]
    assert main(["generate", "a", "-m", "prose", "-b", "torch-quant", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and len(captured.err.splitlines()) == 1 and not captured.out


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory where Linux does")
@pytest.mark.parametrize(("bits", "bytes_per_weight"), [(8, 1.0), (4, 0.6)])
def test_a_matrix_takes_its_bits_and_no_more(bits, bytes_per_weight):
    def resident():
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    rng = np.random.default_rng(0)
    array = rng.integers(-99, 99, (4096, 4096), np.int8).astype(np.float16)
    ops = quant_ops(dtype=f"int{bits}")
    ops.matrix(array[:64])
    before = resident()
    matrices = [ops.matrix(array) for _ in range(6)]
    # And what the allocator keeps; below float16's 2 bytes a weight all the same.
    limit = 1.1 * bytes_per_weight * array.size * len(matrices) + 72 * 2**20
    assert resident() - before < limit < 2 * array.size * len(matrices)


@all_bits
def test_the_shipped_models_perplexity_is_kept(bits):
    divergence = divergence_of_prose(("torch", "float32"), ("torch-quant", f"int{bits}"))
    assert 0 < divergence < {8: 0.001, 4: 0.03}[bits]


@all_bits
def test_a_text_is_generated_from_the_command_line(capsys, bits):
    arguments = ["-n", "20", "--temperature", "0", "-o", f"dtype=int{bits}"]
    assert main(["generate", "The sea was", "-m", "prose", "-b", "torch-quant", *arguments]) == 0
    assert len(capsys.readouterr().out) > 30


@all_bits
def test_verify_checks_a_dtype(capsys, bits):
    assert main(["verify", "-b", "torch-quant", "-o", f"dtype=int{bits}"]) == 0
    (row,) = capsys.readouterr().out.splitlines()[1:]
    assert row.split()[:4] == ["torch-quant", f"int{bits}", "cpu", "pass"]


@pytest.mark.parametrize("options", [{}, {"dtype": "int4"}, {"target": 1}])
def test_a_default_device_of_the_caller_s_is_the_caller_s_alone(small_model, options):
    expected = rwkv_core.load(small_model, "torch-quant", **options)
    with torch.device("meta"):
        found = rwkv_core.load(small_model, "torch-quant", **options)
        logits = found.forward([1, 2, 3])[0]
    np.testing.assert_array_equal(
        found.to_numpy(logits), expected.to_numpy(expected.forward([1, 2, 3])[0])
    )
