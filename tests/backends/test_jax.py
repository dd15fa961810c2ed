"""JAX: the number of compilations, the placement of arrays, and its own options."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import rwkv_core
from conftest import READY
from pth_writer import write_pth
from random_model import random_weights
from rwkv_core.architectures import rwkv4
from rwkv_core.cli import main
from serving_rounds import assert_compiling_ends

jax = pytest.importorskip("jax")

pytestmark = pytest.mark.skipif("jax" not in READY, reason="the backend jax is not ready here")


@pytest.fixture(scope="module")
def narrow_model(tmp_path_factory):
    """A model of a width that no other test has, so that nothing is compiled for it yet."""
    path = tmp_path_factory.mktemp("narrow") / "narrow.pth"
    write_pth(path, random_weights(2, 24, 50, seed=3))
    return path


@pytest.fixture
def compilations():
    """The compilations since the beginning of the test, as a list that grows."""
    found = []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.clear_event_listeners()


@pytest.fixture
def traces(monkeypatch):
    """A list with one item for each time that a block's equations are traced."""
    found = []
    original = rwkv4.time_mixing

    def counted(*arguments):
        found.append(arguments[2].shape)
        return original(*arguments)

    monkeypatch.setattr(rwkv4, "time_mixing", counted)
    return found


def test_nothing_is_compiled_after_the_first_few_shapes(
    narrow_model, tmp_path, traces, compilations
):
    model = rwkv_core.load(narrow_model, "jax")

    def use(lengths):
        for length in lengths:
            tokens = [i % 50 for i in range(length)]
            state = model.forward(tokens)[1]
            for _ in range(3):
                state = model.forward([1], state)[1]
            model.save_state(tmp_path / "s", state)
            loaded = model.load_state(tmp_path / "s")
            model.forward(tokens, loaded)
            batch = model.stack_states([loaded, state])
            batch = model.forward([tokens, tokens], batch)[1]
            model.forward([2], model.unstack_state(batch)[1])

    use([64 + 16 + 4 + 1])
    assert len(traces) == 8  # four sizes of chunks, for one sequence and for two; not two layers
    assert compilations
    compilations.clear()
    use([1, 2, 9, 31, 33, 64, 103])
    assert len(traces) == 8
    assert compilations == []
    for length in (1, 3, 8, 40):
        model.forward([1] * length, all_logits=True)
    assert len(traces) == 8


def test_serving_compiles_nothing_after_the_first_rounds(small_model, compilations):
    assert_compiling_ends(small_model, "jax", compilations)


def test_a_second_model_of_the_same_sizes_compiles_nothing(small_model, traces, compilations):
    for i in range(2):
        model = rwkv_core.load(small_model, "jax")
        model.forward([1] * 9)
        if i == 0:
            traces.clear()
            compilations.clear()
    assert traces == compilations == []


OVER_FOUR = """
import json, sys, jax
import numpy as np
import rwkv_core

found, shares, total = {}, {}, 0
tokens = list(range(1, 10))
for mesh in (None, 4):
    model = rwkv_core.load(sys.argv[1], "jax", mesh=mesh, dtype=sys.argv[2])
    if mesh:
        # Nothing has been computed on these devices: their matrices are the model's.
        matrices = [array for array in jax.live_arrays() if array.ndim == 2]
        for matrix in (m for m in matrices if len(m.sharding.device_set) == 4):
            total += matrix.nbytes
            for shard in matrix.addressable_shards:
                shares[str(shard.device)] = shares.get(str(shard.device), 0) + shard.data.nbytes
    logits, state = model.forward(tokens, all_logits=True)
    model.save_state(f"{sys.argv[1]}.state", state)
    state = model.load_state(f"{sys.argv[1]}.state")
    last, state = model.forward([7], state)
    batch = model.forward([[1], [2]], model.stack_states([state, state]))[1]
    after = model.forward([9], model.unstack_state(batch)[1])[0]
    results = [model.to_numpy(array).reshape(-1) for array in (logits, last, after)]
    found[str(mesh)] = np.concatenate(results).tolist()
found["shares"] = sorted(shares.values())
found["total"] = total
print(json.dumps(found))
"""


@pytest.fixture
def four_devices():
    flags = "--xla_force_host_platform_device_count=4"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_four_devices_give_what_one_gives_and_hold_a_quarter_each(tmp_path, four_devices, dtype):
    # A vocabulary that four does not divide.
    write_pth(tmp_path / "m.pth", random_weights(2, 64, 101, seed=1))
    arguments = [sys.executable, "-c", OVER_FOUR, str(tmp_path / "m.pth"), dtype]
    done = subprocess.run(arguments, env=four_devices, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads(done.stdout)
    np.testing.assert_allclose(found["4"], found["None"], rtol=1e-4, atol=1e-4)
    # All 13 D x D of the two blocks, the embedding and the head.
    weights = 2 * 13 * 64 * 64 + 101 * 64
    size = {"float32": 4, "bfloat16": 2}[dtype]
    assert found["total"] == size * weights + 4 * 101 * 64
    assert len(found["shares"]) == 4
    assert max(found["shares"]) == found["total"] / 4


def test_a_mesh_that_no_size_of_the_model_fits_is_one_line(small_model, four_devices):
    command = [sys.executable, "-m", "rwkv_core", "generate", "a", "-n", "1"]
    command += ["-m", str(small_model), "-b", "jax", "-o", "mesh=3"]
    done = subprocess.run(command, env=four_devices, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "option mesh: found 3, expected a divisor" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("mesh=99", "option mesh: found 99, expected at most"),
        ("mesh=0", "option mesh: found 0, expected at least 1"),
        ("device=cpu:99", "option device: 'cpu:99' is not available here"),
        ("device=gpu:x", "option device: found 'gpu:x', expected"),
        ("device=nonsense", "option device: 'nonsense' is not available here"),
    ],
)
def test_devices_that_are_not_there_are_one_line(capsys, option, message):
    assert main(["generate", "a", "-n", "1", "-m", "prose", "-b", "jax", "-o", option]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_device_and_a_mesh_exclude_each_other(small_model):
    with pytest.raises(rwkv_core.OptionError, match="drop either"):
        rwkv_core.load(small_model, "jax", device="cpu:0", mesh=1)


def test_a_device_by_name(small_model):
    assert rwkv_core.load(small_model, "jax", device="cpu").device.startswith("cpu")


def test_float64_is_off_until_it_is_asked_for(small_model):
    code = (
        "import sys, jax, rwkv_core\n"
        "rwkv_core.load(sys.argv[1], 'jax', dtype='bfloat16').forward([1])\n"
        "print(jax.config.jax_enable_x64)\n"
        "model = rwkv_core.load(sys.argv[1], 'jax', runtime_dtype='float64')\n"
        "print((model.forward([1])[1].array + 1).dtype, jax.config.jax_enable_x64)\n"
    )
    arguments = [sys.executable, "-c", code, str(small_model)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["False", "float64", "True"], done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("n_rows", [1, 2, 7, 8, 40])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_sixteen_bits_are_widened_exactly(dtype, n_rows):
    """Activations are rounded to bfloat16 only if there are several rows."""
    ops = rwkv_core.plugins.tensor_ops("jax", {"dtype": dtype, "device": "cpu"})
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(24, 40)).astype(jax.numpy.dtype(dtype))
    x = rng.normal(size=(1, n_rows, 40)).astype(np.float32)
    found = ops.to_numpy(ops.matmul(ops.matrix(matrix), ops.vector(x)))
    if dtype == "bfloat16" and n_rows > 1:
        x = x.astype(matrix.dtype).astype(np.float32)
    np.testing.assert_allclose(found, x @ matrix.astype(np.float32).T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("platforms", "message"),
    [
        ("cuda", "JAX_PLATFORMS is 'cuda', which JAX does not have here"),
        ("tpu", "JAX_PLATFORMS is 'tpu', which JAX does not have here"),
        ("toaster", "JAX_PLATFORMS is 'toaster': unset it"),
    ],
)
def test_platforms_that_are_not_there_are_one_line(platforms, message):
    if rwkv_core.load("prose", "jax").device != "cpu":
        pytest.skip("has an accelerator")
    command = [sys.executable, "-m", "rwkv_core", "generate", "a", "-m", "prose", "-b", "jax"]
    environment = os.environ | {"JAX_PLATFORMS": platforms}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert message in done.stderr and len(done.stderr.splitlines()) == 1


def test_platforms_that_a_program_has_chosen_are_one_line():
    code = (
        "import jax, rwkv_core\n"
        "jax.config.update('jax_platforms', 'cuda')\n"
        "try: rwkv_core.load('prose', 'jax')\n"
        "except rwkv_core.RWKVError as error: print(error)\n"
    )
    arguments = [sys.executable, "-c", code]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    if done.returncode == 0 and not done.stdout:
        pytest.skip("has CUDA")
    assert "JAX finds no device: " in done.stdout and len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_promotions_that_a_program_forbids_are_the_programs_alone(small_model, dtype):
    import jax

    model = rwkv_core.load(small_model, "jax", dtype=dtype)
    expected = model.to_numpy(model.forward([1, 2, 3, 4, 5])[0])
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        model = rwkv_core.load(small_model, "jax", dtype=dtype)
        for _ in range(2):
            logits, state = model.forward([1, 2, 3, 4, 5])
            model.forward([[6], [7]], model.stack_states([state, state]))
    np.testing.assert_array_equal(model.to_numpy(logits), expected)
