"""The torch backend's Triton kernels, in Triton's interpreter, which takes the CPU's tensors."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from random_model import random_weights

torch = pytest.importorskip("torch")
pytest.importorskip("rwkv_backend_torch.plugin")
if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

import rwkv_core  # noqa: E402
from conftest import READY  # noqa: E402

# The variants' session, which has torch too, repeats nothing.
pytestmark = pytest.mark.skipif("torch" not in READY, reason="torch is not ready here")

# Triton reads it when it is first imported, which any library may have done in this process.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
in_the_interpreter = pytest.mark.skipif(not INTERPRETED, reason="runs in a process of its own")


@pytest.mark.skipif(INTERPRETED, reason="this is the process")
def test_in_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "pytest", "-q", str(Path(__file__))]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    child = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert child.returncode == 0, child.stdout


@in_the_interpreter
@pytest.mark.parametrize(
    "shape", [(1, 2, 16), (2, 5, 20), (1, 64, 16), (1, 70, 40), (2, 130, 16)], ids=str
)
def test_the_scan_in_parallel_is_the_one_in_steps(shape):
    from rwkv_backend_torch.cuda import kernels as gpu_kernels
    from rwkv_backend_torch.wkv import wkv

    torch.manual_seed(0)
    n_batch, n_time, width = shape
    k, v, r = torch.randn(3, *shape)
    decay, first, state = -torch.rand(width), torch.randn(width), torch.randn(n_batch, 5, width)
    state[:, 3].abs_()
    after = torch.full_like(state, float("nan"))
    y = torch.full_like(k, float("nan"))
    gpu_kernels.wkv_of_many[(-(-width // 16), n_batch)](
        k, v, r, decay, first, state, after, y, n_time, width, state.stride(0), after.stride(0),
        AA=2, BB=3, PP=4, BLOCK_TIME=64, BLOCK=16,
    )  # fmt: skip
    means, rows = wkv(k, v, decay, first, tuple(state[:, 2:].unbind(1)))
    torch.testing.assert_close(y, torch.sigmoid(r) * means, atol=1e-5, rtol=1e-5)
    for found, expected in zip(after[:, 2:].unbind(1), rows, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@in_the_interpreter
@pytest.mark.parametrize(
    ("dtype", "width"), [("float32", 96), ("bfloat16", 64), ("float16", 64)], ids=str
)
def test_a_model_computes_what_float64_computes_without_kernels(dtype, width, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(random_weights(2, width, 101), path)
    reference, model = (rwkv_core.load(path, "torch", dtype=one) for one in ("float64", dtype))
    expected_state = state = None
    # Of logits of deviation 3.
    tolerance = {"float32": 1e-5, "float16": 0.03, "bfloat16": 0.25}[dtype]
    for tokens in ([5], [9, 100], [7], list(range(20))):
        expected, expected_state = reference.forward(tokens, expected_state)
        logits, state = model.forward(tokens, state)
        expected = reference.to_numpy(expected)
        np.testing.assert_allclose(model.to_numpy(logits), expected, atol=tolerance)
    batch = model.stack_states([state, model.empty_state()])
    logits, _ = model.forward([[1], [2]], batch)
    rows = reference.forward([1], expected_state)[0], reference.forward([2])[0]
    expected = np.stack(list(map(reference.to_numpy, rows)))
    np.testing.assert_allclose(model.to_numpy(logits), expected, atol=tolerance)


@in_the_interpreter
def test_nan_stays_nan():
    from rwkv_backend_torch.cuda import kernels as gpu_kernels

    x = torch.tensor([float("nan"), -1.0, 3.0])
    y = torch.empty(3)
    gpu_kernels.relu_squared[(1,)](x, y, 3, BLOCK=16)
    np.testing.assert_array_equal(y.numpy(), [np.nan, 0.0, 9.0])
