"""The conformance suite passes a backend that is right, and fails each that is wrong in one way."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rwkv_core.conformance import reference
from rwkv_core.conformance.closeness import OTHERS, TOLERANCES, deviation

RunSuite = Callable[..., subprocess.CompletedProcess[str]]

# A backend of a few lines over NumPy, whose operations are right except for what `WRONG` replaces.
PLUGIN = """
import numpy as np
import rwkv_core
from rwkv_core import Backend, Option, Status, TensorOps

DTYPES = Option("dtype", str, "float32", "", ("float32", "float16"))

class Ops(TensorOps):
    xp = np

    def __init__(self, dtype):
        self.dtype = dtype

    def vector(self, array):
        return array.astype("float32")

    def matrix(self, array):
        return array.astype(self.dtype)

    def to_numpy(self, array):
        return array

class WrongOps(Ops):
{wrong}

@rwkv_core.hookimpl
def rwkv_backends():
    return [Backend("sample", "for this test", 1, lambda: Status(True), (DTYPES,))]

@rwkv_core.hookimpl
def rwkv_tensor_ops(backend, options):
    return WrongOps(**options)
"""

RIGHT = """
    pass
"""

REFUSES = """
    def __init__(self, dtype):
        if dtype == "float16":
            raise rwkv_core.BackendError("this device has no float16")
        self.dtype = dtype
"""

WRONG = {
    "mixes the wrong way round": """
    def mix(self, x, previous, mix):
        return x + mix * (previous - x)
""",
    "forgets the bonus of the present token": """
    def wkv(self, k, v, decay, first, state):
        return super().wkv(k, v, decay, 0 * first, state)
""",
    "keeps no running maximum": """
    def wkv(self, k, v, decay, first, state):
        aa, bb, pp = state
        aa, bb, means = np.exp(pp) * aa, np.exp(pp) * bb, []
        for t in range(k.shape[1]):
            now = np.exp(first + k[:, t])
            means.append((aa + now * v[:, t]) / (bb + now))
            past = np.exp(k[:, t])
            aa, bb = np.exp(decay) * aa + past * v[:, t], np.exp(decay) * bb + past
        return np.stack(means, axis=1), (aa, bb, np.zeros_like(pp))
""",
    "writes into the state that it is given": """
    def compile(self, function):
        def run(p, x, state):
            logits, state[...] = function(p, x, state)
            return logits, state
        return run
""",
    "hands out the same buffer every time": """
    def compile(self, function):
        buffers = {}
        def run(p, x, state):
            logits, state = function(p, x, state)
            buffer = buffers.setdefault(logits.shape, np.empty_like(logits))
            buffer[...] = logits
            return buffer, state
        return run
""",
    "overflows in float16": """
    def matmul(self, matrix, x):
        with np.errstate(all="ignore"):
            return (x.astype(matrix.dtype) @ matrix.T).astype(x.dtype)
""",
    "keeps a view of the file": """
    def vector(self, array):
        return np.asarray(array, "float32")
""",
    "shifts tokens within the chunk alone": """
    def token_shift(self, x, last):
        return super().token_shift(x, 0 * last)
""",
    "takes another epsilon": """
    def layer_norm(self, x, weight, bias):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-3) * weight + bias
""",
    "mixes up the rows of a batch": """
    def embed(self, table, tokens):
        return super().embed(table, tokens)[::-1]
""",
    "loses the last tokens of a long prompt": """
    def chunks(self, n_tokens):
        return [min(n_tokens, 256)]
""",
}


@pytest.fixture
def run_suite(tmp_path: Path) -> RunSuite:
    """Runs the suite on the sample backend of the given code, as pip would have installed it."""
    dist_info = tmp_path / "sample-1.0.dist-info"
    dist_info.mkdir()
    (dist_info / "METADATA").write_text("Metadata-Version: 2.1\nName: sample\nVersion: 1.0\n")
    (dist_info / "entry_points.txt").write_text("[rwkv_core]\nsample = sample_plugin\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "RWKV_PLUGINS": "sample"}
    command = [sys.executable, "-m", "pytest", "--pyargs", "rwkv_core.conformance"]

    def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "sample_plugin.py").write_text(PLUGIN.format(wrong=code.strip("\n")))
        return subprocess.run(
            [*command, "-q", "--tb=short", "-p", "no:cacheprovider", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )

    return run


def test_a_right_backend_of_a_few_lines_passes(run_suite: RunSuite) -> None:
    result = run_suite(RIGHT, "--rwkv-backend=sample")
    assert result.returncode == 0, result.stdout
    assert re.search(r"\d{3} passed", result.stdout)


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_backend_fails(run_suite: RunSuite, wrong: str) -> None:
    result = run_suite(wrong, "--rwkv-backend=sample", "-x")
    assert result.returncode == pytest.ExitCode.TESTS_FAILED, result.stdout + result.stderr


def test_a_type_that_is_refused_here_is_skipped_with_the_reason(run_suite: RunSuite) -> None:
    result = run_suite(REFUSES, "--rwkv-backend=sample", "-rs", "-k", "test_states or test_arrays")
    assert result.returncode == 0, result.stdout
    assert "this device has no float16" in result.stdout


def test_a_type_that_was_asked_for_and_is_refused_is_an_error(run_suite: RunSuite) -> None:
    result = run_suite(REFUSES, "--rwkv-backend=sample", "--rwkv-option=dtype=float16")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "this device has no float16" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--rwkv-backend NAME"),
        (["--rwkv-backend=sampel"], "did you mean sample?"),
        (["--rwkv-backend=sample", "--rwkv-option=dtpe=float32"], "no option 'dtpe'"),
        (["--rwkv-backend=sample", "--rwkv-option=dtype=int3"], "found 'int3'"),
        (["--rwkv-backend=sample", "--rwkv-option=float16"], "expected KEY=VALUE"),
    ],
)
def test_a_wrong_command_line_is_one_clear_line(
    run_suite: RunSuite, arguments: list[str], message: str
) -> None:
    result = run_suite(RIGHT, *arguments)
    output = result.stdout + result.stderr
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert message in output
    assert "Traceback" not in output
    assert len(output.splitlines()) < 8


def slips() -> dict[str, reference.Weights]:
    """The reference's weights, changed as a slip in a backend would have the effect of."""
    right = reference.random_weights()
    first, last = "blocks.0.", f"blocks.{reference.N_LAYER - 1}."
    decay, bonus = "att.time_decay", "att.time_first"
    swapped = {f"{last}att.time_mix_{a}": right[f"{last}att.time_mix_{b}"] for a, b in ("kv", "vk")}
    return {
        "two mixes exchanged": right | swapped,
        "a mix turned round": right | {last + "ffn.time_mix_k": 1 - right[last + "ffn.time_mix_k"]},
        "the bonus left out": right | {last + bonus: 0 * right[last + bonus]},
        "a decay doubled": right | {first + decay: right[first + decay] + np.log(2)},
        "a layer norm without its bias": right | {last + "ln2.bias": 0 * right[last + "ln2.bias"]},
    }


@pytest.mark.parametrize("slip", slips())
def test_tolerances_are_too_tight_for_a_slip_in_one_layer(slip: str) -> None:
    tokens = np.random.default_rng(1).integers(0, reference.N_VOCAB, 40).tolist()
    right = reference.run(reference.random_weights(), tokens).logits
    wrong = reference.run(slips()[slip], tokens).logits
    loosest = max(OTHERS.model, *(tolerance.model for tolerance in TOLERANCES.values()))
    assert deviation(wrong, right) > 1.5 * loosest
