"""The TensorFlow backend: its compilations, its memory, its hidden log, its option."""

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rwkv_backend_tf")
pytest.importorskip("tensorflow")

import rwkv_core
from rwkv_core import BackendError, OptionError
from rwkv_core.plugins import tensor_ops
from serving_rounds import assert_compiling_ends

if "tf" not in {row.name for row in rwkv_core.list_backends() if row.status == "ready"}:
    pytest.skip("RWKV_PLUGINS rules the backend out", allow_module_level=True)


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each pass of Python through a block: with each trace."""
    from rwkv_core.architectures import rwkv4

    counted: list[int] = []
    original = rwkv4.block

    def count(*arguments):
        counted.append(1)
        return original(*arguments)

    monkeypatch.setattr(rwkv4, "block", count)
    return counted


def test_nothing_is_traced_after_the_first_few_shapes(
    small_model: Path, tmp_path: Path, traces: list[int]
) -> None:
    model = rwkv_core.load(small_model, backend="tf")
    model.forward(range(64 + 16 + 4 + 1))
    _, batch = model.forward([[1], [2]])
    # One for each shape, whatever the number of layers.
    assert len(traces) == 5
    _, state = model.forward(range(3))
    for token in range(30):
        _, state = model.forward([token], state)
    for length in range(1, 72, 3):
        model.forward(range(length), state, all_logits=length % 2 == 0)
    model.save_state(tmp_path / "a.state", state)
    model.forward([4], model.load_state(tmp_path / "a.state"))
    model.forward([[1], [2]], batch)
    model.forward([[1], [2]], model.stack_states([state, state]))
    model.forward([3], model.unstack_state(batch)[1])
    assert len(traces) == 5


def test_serving_traces_nothing_after_the_first_rounds(
    small_model: Path, traces: list[int]
) -> None:
    assert_compiling_ends(small_model, "tf", traces)


def test_models_of_one_shape_share_what_is_compiled_and_nothing_else(
    small_model: Path, traces: list[int]
) -> None:
    one = rwkv_core.load(small_model, backend="tf")
    expected = one.to_numpy(one.forward([5, 6])[0])
    assert len(traces) == 1
    other = rwkv_core.load(small_model, backend="tf")
    assert np.array_equal(other.to_numpy(other.forward([5, 6])[0]), expected)
    assert len(traces) == 1
    matrices = [one.parameters.head.rows, one.parameters.blocks[0].time.key.rows]
    kept = [weakref.ref(matrix) for matrix in matrices]
    del one, matrices
    gc.collect()
    assert [matrix() for matrix in kept] == [None, None]


def test_matrices_of_any_type_share_what_is_done_to_vectors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rwkv_backend_tf import ops as module

    compiled: list[tuple[object, ...]] = []

    class Counted(module.Compiled):
        def __init__(self, *arguments: object) -> None:
            compiled.append(arguments)
            super().__init__(*arguments)

    every = [tensor_ops("tf", {"dtype": dtype}) for dtype in ("float32", "bfloat16", "float16")]
    monkeypatch.setattr(module, "Compiled", Counted)
    for ops in every:
        # Of a width that no other test has.
        x, weight = ops.vector(np.ones((1, 1, 23))), ops.vector(np.ones(23))
        ops.layer_norm(x, weight, weight)
    assert len(compiled) == 1


def test_what_is_compiled_is_compiled_by_xla() -> None:
    """The quick call drops a function's own wish to be compiled: see `Compiled`."""
    import tensorflow as tf

    from rwkv_backend_tf.ops import Compiled

    numbers = (tf.constant([1.0, 2.0]),)
    # Text is what TensorFlow knows, and XLA does not.
    with pytest.raises(tf.errors.InvalidArgumentError, match="unsupported operations"):
        Compiled(tf.strings.as_string, numbers, "/CPU:0")(*numbers)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_matrix_is_in_memory_once(dtype: str) -> None:
    """Many matrices of 8 MiB need no memory besides their own, in a new process."""
    code = f"""
import numpy as np
from rwkv_core.plugins import tensor_ops
ops = tensor_ops("tf", {{"dtype": {dtype!r}}})
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
array = np.ones((1024, 2048), np.float32)
kept = [ops.matrix(array) for _ in range(2)]
before = resident()
kept += [ops.matrix(array) for _ in range(30)]
size = 30 * array.size * np.dtype("float32" if ops.dtype == "float32" else "float16").itemsize
assert resident() - before < 1.15 * size, (resident() - before, size)
"""
    result = run(sys.executable, "-c", code)
    assert result.returncode == 0, result.stderr


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"} | variables
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_its_log_does_not_reach_the_user(small_model: Path, dtype: str) -> None:
    command = (sys.executable, "-m", "rwkv_core", "generate", "It", "-m", str(small_model))
    result = run(*command, "-b", "tf", "-o", f"dtype={dtype}", "-n", "3")
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1 and "tf on cpu" in lines[0], lines


START = """
import os, sys
import numpy as np
from rwkv_backend_tf.quiet import hidden_log
with hidden_log():
    os.write(2, b"I0000 00:00:1795461327.611718    6449 a.cc:31] chatter\\n")
    os.write(2, b"2026-01-01 10:00:00.123456: E external/a.cc:9] chatter\\n")
    os.write(2, b"F0000 00:00:1795461327.611718    6449 a.cc:31] a fatal error\\n")
    print("a warning of somebody else's", file=sys.stderr)
print("afterwards", file=sys.stderr)
"""


# JAX, imported before, sets the level to 1.
@pytest.mark.parametrize("variables", [{}, {"TF_CPP_MIN_LOG_LEVEL": "1"}], ids=str)
def test_what_is_no_log_is_shown_all_the_same(variables: dict[str, str]) -> None:
    lines = run(sys.executable, "-c", START, **variables).stderr.splitlines()
    assert [line.rpartition("] ")[2] for line in lines] == [
        "a fatal error",
        "a warning of somebody else's",
        "afterwards",
    ]


def test_who_asks_for_the_log_sees_it() -> None:
    assert "chatter" in run(sys.executable, "-c", START, TF_CPP_MIN_LOG_LEVEL="0").stderr


def test_use_gpu_without_one_is_one_line() -> None:
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        pytest.skip("there is a GPU")
    with pytest.raises(BackendError, match="option use_gpu: TensorFlow sees no GPU") as error:
        tensor_ops("tf", {"use_gpu": True})
    assert "\n" not in str(error.value)
    assert tensor_ops("tf", {"use_gpu": "false"}).device == "cpu"


@pytest.mark.parametrize("options", [{"dtype": "int3"}, {"use_gpu": "perhaps"}, {"gpu": True}])
def test_an_option_that_will_not_do_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(OptionError) as error:
        tensor_ops("tf", options)
    assert "\n" not in str(error.value)
