"""torch-quant's Triton kernel, in Triton's interpreter, where it takes tensors of the CPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rwkv_backend_cuda_variants.plugin")
torch = pytest.importorskip("torch")
if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

from rwkv_core.quantization import quantize  # noqa: E402

# Triton reads it when it is first imported, which any library may have done in this process.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
in_the_interpreter = pytest.mark.skipif(not INTERPRETED, reason="runs in a process of its own")


@pytest.mark.skipif(INTERPRETED, reason="this is the process")
def test_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "pytest", "-q", str(Path(__file__))]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    child = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert child.returncode == 0, child.stdout


def triton_matrix(quantized):
    from rwkv_backend_cuda_variants.quant.triton_kernels import TritonMatrix

    return TritonMatrix(quantized, torch.device("cpu"))


SHAPES = [
    # out, in, group size
    (64, 64, 64),
    (101, 96, 32),
    (37, 600, 50),
    (16, 1040, 1040),
    # Of an odd size, so that a byte's two codes can be of two groups.
    (17, 54, 27),
    (1, 2, 1),
]


@in_the_interpreter
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("bits", [8, 4])
def test_the_product_is_float64s(bits, dtype, shape):
    rng = np.random.default_rng(0)
    rows, width, group_size = shape
    quantized = quantize(rng.normal(size=(rows, width)).astype(np.float32), bits, group_size)
    matrix = triton_matrix(quantized)
    x = torch.from_numpy(rng.normal(size=(3, width))).to(getattr(torch, dtype))
    expected = x.double().numpy() @ quantized.dequantize().astype(np.float64).T
    for some in (x, x[:1]):
        found = matrix.product(some)
        assert found.dtype == torch.float32
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found.numpy(), expected[: len(some)], atol=1e-6 * scale)


@in_the_interpreter
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bits", [8, 4])
def test_many_rows_are_multiplied_with_the_restored_matrix(bits, shape):
    rng = np.random.default_rng(0)
    rows, width, group_size = shape
    quantized = quantize(rng.normal(size=(rows, width)).astype(np.float32), bits, group_size)
    matrix = triton_matrix(quantized)
    expected = quantized.dequantize()
    np.testing.assert_allclose(matrix.restored(torch.float32).numpy(), expected, atol=1e-6)
    x = torch.from_numpy(rng.normal(size=(40, width)).astype(np.float32))
    found = matrix.product(x).numpy()
    # In bfloat16.
    np.testing.assert_allclose(found, x.numpy() @ expected.T, atol=0.02 * np.sqrt(width) + 0.02)


@in_the_interpreter
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bits", [8, 4])
def test_put_over_its_bytes_it_is_the_same(bits, shape):
    """As when it is streamed."""
    rng = np.random.default_rng(0)
    rows, width, group_size = shape
    quantized = quantize(rng.normal(size=(rows, width)).astype(np.float32), bits, group_size)
    matrix = triton_matrix(quantized)
    data = matrix.to_bytes()
    assert len(data) == matrix.n_bytes((rows, width), bits, group_size)
    over = matrix.emptied().over(data)
    for n_rows in (1, 40):
        x = torch.from_numpy(rng.normal(size=(n_rows, width)).astype(np.float32))
        assert torch.equal(over.product(x), matrix.product(x))


@in_the_interpreter
@pytest.mark.parametrize("width", [128, 768, 96])
@pytest.mark.parametrize("bits", [8, 4])
def test_three_products_of_a_row_at_once(bits, width):
    from rwkv_backend_torch.cuda.layers import products_of_a_row

    rng = np.random.default_rng(0)
    group_size = 64 if width % 64 == 0 else 32
    arrays = [rng.normal(size=(rows, width)).astype(np.float32) for rows in (33, 64, 5)]
    quantized = [quantize(array, bits, group_size) for array in arrays]
    weights = [triton_matrix(one).weights() for one in quantized]
    # Of products beyond 88, NumPy's exp would warn of an overflow.
    x = torch.from_numpy(rng.normal(0, width**-0.5, size=(3, 1, width)).astype(np.float32))
    found = products_of_a_row(weights, x, ["", "sigmoid", "relu_squared"], None, None)
    products = [
        one.dequantize().astype(np.float64) @ row[0].double().numpy()
        for one, row in zip(quantized, x, strict=True)
    ]
    finished = [products[0], 1 / (1 + np.exp(-products[1])), np.maximum(products[2], 0) ** 2]
    for y, expected in zip(found, finished, strict=True):
        np.testing.assert_allclose(y[0].numpy(), expected, rtol=1e-4, atol=1e-4)
    base, gate = torch.ones(1, 1, 33), torch.full((1, 33), 2.0)
    (y,) = products_of_a_row(weights[:1], x[:1], ["add_gated"], base, gate)
    np.testing.assert_allclose(y[0].numpy(), 1 + 2 * products[0], rtol=1e-4, atol=1e-4)


@in_the_interpreter
def test_groups_of_odd_sizes_have_a_product_of_their_own():
    array = np.ones((4, 100), np.float32)
    assert triton_matrix(quantize(array, 8, 50)).weights() is None
    assert triton_matrix(quantize(array, 8, 4)).weights() is None
