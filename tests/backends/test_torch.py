"""torch on a CPU: its products in all layouts, and its scans in blocks."""

import json
import os
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("rwkv_backend_torch.ops")

import rwkv_core  # noqa: E402
from conftest import READY  # noqa: E402
from rwkv_backend_torch.busy_cores import BusyCores  # noqa: E402
from rwkv_core import plugins  # noqa: E402
from rwkv_core.backends.tensor_ops import TensorOps  # noqa: E402

# The variants' session, which has torch too, repeats nothing.
pytestmark = pytest.mark.skipif("torch" not in READY, reason="torch is not ready here")

TOKENS = [5, 9, 100, 7, 0, 31, 77, 3]
# Largest deviation of logits from float64's, as a share of their deviation among themselves.
DEVIATIONS = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 6e-2}


def torch_ops(**options):
    return plugins.tensor_ops("torch", {"device": "cpu", **options})


# What an older processor, or a newer torch, chooses must be as right as what is chosen here.
PROGRAM = """
import json, sys
import rwkv_core
model, tokens = sys.argv[1], json.loads(sys.argv[2])
found = {}
for dtype in ("float64", "float32", "float16", "bfloat16"):
    loaded = rwkv_core.load(model, "torch", device="cpu", dtype=dtype)
    logits, state = loaded.forward(tokens)
    found[dtype] = [logits.tolist(), loaded.forward([1], state)[0].tolist()]
json.dump(found, sys.stdout)
"""


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_logits_are_right_whatever_the_processor_can(small_model, capability):
    # torch believes the variable, and instructions that are not there end the process.
    if capability == "avx512" and not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        pytest.skip("this processor has no AVX-512")
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(small_model), json.dumps(TOKENS)],
        env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
        capture_output=True,
        text=True,
        check=True,
    )
    found = {dtype: np.array(logits) for dtype, logits in json.loads(run.stdout).items()}
    expected = found["float64"]
    for dtype, most in DEVIATIONS.items():
        assert np.abs(found[dtype] - expected).max() < most * expected.std()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("n_rows", [1, 2, 3, 40])
def test_matrices_of_any_height_are_multiplied_with(dtype, n_rows):
    rng = np.random.default_rng(0)
    array = rng.normal(size=(2100, 40)).astype(np.float32)
    x = rng.normal(size=(1, n_rows, 40)).astype(np.float32)
    ops = torch_ops(dtype=dtype)
    found = ops.to_numpy(ops.matmul(ops.matrix(array), ops.vector(x)))
    expected = x.astype(np.float64) @ array.T.astype(np.float64)
    assert np.abs(found - expected).max() < 0.03 * expected.std()


@pytest.mark.parametrize("n_rows", [1, 2, 40])
def test_products_beyond_float16_are_no_infinities(n_rows):
    rng = np.random.default_rng(0)
    array = 1e4 * rng.normal(size=(64, 96)).astype(np.float32)
    x = rng.normal(size=(1, n_rows, 96)).astype(np.float32)
    ops = torch_ops(dtype="float16")
    found = ops.to_numpy(ops.matmul(ops.matrix(array), ops.vector(x)))
    expected = x.astype(np.float64) @ array.T.astype(np.float64)
    assert np.abs(expected).max() > 1e5
    assert np.abs(found - expected).max() < 0.03 * expected.std()


@pytest.mark.parametrize("n_time", [1, 2, 15, 16, 17, 32, 33, 47, 100])
def test_the_scan_is_the_step_by_step_one_at_any_length(n_time):
    rng = np.random.default_rng(n_time)
    ops = torch_ops(dtype="float64")
    # Decays from 0.003 to 20 a step, and keys far apart: many exponentials underflow.
    arrays = [
        rng.normal(size=(2, n_time, 30)) * 30,
        rng.normal(size=(2, n_time, 30)),
        -np.exp(np.linspace(-6, 3, 30)),
        rng.normal(size=30),
    ]
    vectors = [ops.vector(array) for array in arrays]
    state = tuple(ops.vector(rng.uniform(1, 2, (2, 30))) for _ in range(3))
    means, after = ops.wkv(*vectors, state)
    expected, expected_after = TensorOps.wkv(ops, *vectors, state)
    for one, other in zip((means, *after), (expected, *expected_after), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def scan_arguments(ops, name, n_batch, n_time, n_head, head_size):
    """Of `wkv6` with decays of 0 and 1 among others, of `wkv7` with decays from the least to 1."""
    rng = np.random.default_rng(n_time)
    tokens = (n_batch, n_time, n_head * head_size)
    r, k, v = rng.normal(size=(3, *tokens))
    s = rng.normal(size=(n_batch, head_size, tokens[2]))
    if name == "wkv6":
        w = np.exp(-np.exp(rng.uniform(-6, 4, tokens)))
        w[..., 0::5], w[..., 1::5] = 0, 1
        arrays = [r, w, k, v, rng.normal(size=tokens[2]), s]
    else:
        w = np.exp(-np.exp(-0.5) * rng.uniform(0, 1, tokens))
        w[..., 0::5] = np.exp(-np.exp(-0.5))
        kk = rng.normal(size=(n_batch, n_time, n_head, head_size))
        kk = (kk / np.linalg.norm(kk, axis=-1, keepdims=True)).reshape(tokens)
        arrays = [r, w, k, v, kk, kk * rng.uniform(0, 1, tokens), s]
    return [ops.vector(array) for array in arrays]


@pytest.mark.parametrize("name", ["wkv6", "wkv7"])
@pytest.mark.parametrize("n_time", [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100])
def test_the_scans_of_heads_are_the_step_by_step_ones_at_any_length(name, n_time):
    ops = torch_ops(dtype="float64")
    arguments = scan_arguments(ops, name, 2, n_time, 3, 20)
    found = getattr(ops, name)(*arguments)
    expected = getattr(TensorOps, name)(ops, *arguments)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["wkv6", "wkv7"])
def test_a_prompt_is_not_read_token_by_token(name):
    ops, counts = torch_ops(dtype="float32"), []
    for n_time in (256, 512):
        arguments = scan_arguments(ops, name, 1, n_time, 2, 32)
        with CountProducts() as count:
            getattr(ops, name)(*arguments)
        counts.append(count.products)
    assert counts[1] - counts[0] <= 256 // 4


class CountProducts(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the products of matrices, of which a token by itself needs one at least."""

    products = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.products += "mm" in str(function)
        return function(*arguments, **(options or {}))


def test_a_callers_changes_to_logits_and_states_are_its_own(small_model):
    model = rwkv_core.load(small_model, "torch", device="cpu")
    logits, state = model.forward(TOKENS)
    expected = model.forward([1], state)[0].clone()
    logits[:] = 0
    assert torch.equal(model.forward([1], state)[0], expected)


def test_the_environment_is_as_it_was_after_torch_is_imported():
    """The variable is set when torch's OpenMP reads it."""
    code = """
        import os, sys
        before = dict(os.environ)
        import rwkv_core
        rwkv_core.load("prose", "torch")
        print("torch" in sys.modules, dict(os.environ) == before)
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert found.stdout == "True True\n"


def test_a_device_that_is_not_there_is_told_in_torchs_first_line():
    """CUDA's errors go on, line by line, with how to debug them."""
    from rwkv_backend_torch.ops import first_sentence

    error = RuntimeError("CUDA error: invalid device ordinal\nCUDA kernel errors might be. For ")
    assert first_sentence(error) == "CUDA error: invalid device ordinal"


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_after_a_call_without_a_core_the_next_run_in_one_thread(two_threads):
    def wait(seconds):
        time.sleep(seconds)
        return torch.get_num_threads()

    run = BusyCores().watch(wait)
    assert [run(0.01), run(0.0), run(0.0)] == [2, 1, 1]
    assert torch.get_num_threads() == 2
    time.sleep(1.1)
    assert run(0.0) == 2


def test_one_thread_that_takes_longer_is_not_taken_again(two_threads):
    def wait(rows):
        n_threads = torch.get_num_threads()
        time.sleep(0.2 if n_threads == 1 else 0.02)
        return n_threads

    run = BusyCores().watch(wait)
    few, many = torch.zeros(4, 1), torch.zeros(40, 1)
    assert [run(few), run(few), run(few)] == [2, 1, 2]
    assert [run(many), run(many), run(many)] == [2, 1, 2]
