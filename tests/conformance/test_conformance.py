"""The conformance suite passes a correct backend, and fails each backend with one fault."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from conformance_faults.plugin import FAULTS, RIGHT
from rwkv_core.conformance.closeness import assert_close
from rwkv_core.conformance.references import blocks, rwkv5, rwkv6, rwkv7
from rwkv_core.conformance.references import rwkv4 as reference
from rwkv_core.dtypes import BYTES_PER_WEIGHT, tolerance_of
from rwkv_core.evaluation.verify import deviation

Outcome = Callable[[str], tuple[int, str]]
RunSuite = Callable[..., subprocess.CompletedProcess[str]]

# A backend of a few lines over NumPy whose device lacks float16.
REFUSES = """
from conformance_faults.planting import Ops
from conformance_faults.plugin import DTYPES, Status, Backend
import rwkv_core

@rwkv_core.hookimpl
def rwkv_backends():
    return [Backend("sample", "for this test", 2, lambda: Status(True), (DTYPES,))]

@rwkv_core.hookimpl
def rwkv_tensor_ops(backend, options):
    if options["dtype"] == "float16":
        raise rwkv_core.BackendError("this device has no float16")
    return Ops(**options)
"""


def install(folder: Path, module: str) -> dict[str, str]:
    """Install a plugin like pip. Return an environment in which only this plugin is found."""
    dist_info = folder / "sample-1.0.dist-info"
    dist_info.mkdir()
    (dist_info / "METADATA").write_text("Metadata-Version: 2.1\nName: sample\nVersion: 1.0\n")
    (dist_info / "entry_points.txt").write_text(f"[rwkv_core]\nsample = {module}\n")
    path = os.pathsep.join([str(folder), str(Path(__file__).parents[1])])
    return os.environ | {"PYTHONPATH": path, "RWKV_PLUGINS": "sample"}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """The suite's exit status for a backend of conformance_faults, and its first failure."""
    folder = tmp_path_factory.mktemp("faults")
    with subprocess.Popen(
        [sys.executable, "-m", "conformance_faults.run"],
        cwd=folder,
        env=install(folder, "conformance_faults.plugin"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        lines, answers = process.stdin, process.stdout
        assert lines is not None and answers is not None

        def ask(name: str) -> tuple[int, str]:
            print(json.dumps(name), file=lines, flush=True)
            return json.loads(answers.readline())

        try:
            yield ask
        finally:
            process.kill()


@pytest.fixture
def run_suite(tmp_path: Path) -> RunSuite:
    """Runs the suite on the backend that refuses float16."""
    (tmp_path / "sample_plugin.py").write_text(REFUSES)
    environment = install(tmp_path, "sample_plugin")
    command = [sys.executable, "-m", "pytest", "--pyargs", "rwkv_core.conformance"]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, "-q", "--tb=short", "-p", "no:cacheprovider", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )

    return run


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_backend_passes(outcome: Outcome, name: str) -> None:
    status, first_failure = outcome(name)
    assert status == pytest.ExitCode.OK, first_failure


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(outcome: Outcome, name: str) -> None:
    status, first_failure = outcome(name)
    assert status == pytest.ExitCode.TESTS_FAILED
    if name.endswith("works in place"):
        operation = name.partition(":")[0]
        assert f"{operation} works in place: it changes its argument" in first_failure


def test_a_deviation_is_printed_with_the_digits_that_tell_it_from_what_is_allowed() -> None:
    expected = np.ones((2, 3))
    found = expected.copy()
    found[1, 1] += 0.00010002
    with pytest.raises(AssertionError) as error:
        assert_close(found, expected, 1e-4, "mix of [2, 3]")
    assert str(error.value) == (
        "mix of [2, 3]: found 1.00010002, expected 1 at [1, 1]; deviates by 0.00010002, at most "
        "0.0001 is allowed. 1 of 6 values are off, from [1, 1] to [1, 1]"
    )


def test_a_type_that_is_refused_here_is_skipped_with_the_reason(run_suite: RunSuite) -> None:
    result = run_suite("--rwkv-backend=sample", "-rs", "-k", "test_states or test_arrays")
    assert result.returncode == 0, result.stdout
    assert "this device has no float16" in result.stdout


def test_a_type_that_was_asked_for_and_is_refused_is_an_error(run_suite: RunSuite) -> None:
    result = run_suite("--rwkv-backend=sample", "--rwkv-option=dtype=float16")
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
    result = run_suite(*arguments)
    output = result.stdout + result.stderr
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert message in output
    assert "Traceback" not in output
    assert len(output.splitlines()) < 8


def slips() -> dict[str, reference.Weights]:
    """The reference's weights, changed with the effect of a fault in a backend."""
    right = reference.random_weights()
    first, last = "blocks.0.", f"blocks.{reference.SMALL.n_layer - 1}."
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
    tokens = np.random.default_rng(1).integers(0, reference.SMALL.n_vocab, 40).tolist()
    right = reference.run(reference.random_weights(), tokens).logits
    wrong = reference.run(slips()[slip], tokens).logits
    loosest = max(tolerance_of(dtype).model for dtype in (*BYTES_PER_WEIGHT, "of another"))
    assert deviation(wrong, right) > 1.5 * loosest


def later_slips() -> dict[str, tuple[ModuleType, reference.Weights, reference.Weights]]:
    """A reference, its weights, and weights changed with the effect of a fault in a backend."""
    last, found = f"blocks.{blocks.MEDIUM.n_layer - 1}.att.", {}

    def slip(name: str, module: ModuleType, **changes: Callable[[np.ndarray], np.ndarray]) -> None:
        right = module.random_weights(blocks.MEDIUM)
        wrong = {last + part: change(right[last + part]) for part, change in changes.items()}
        found[name] = module, right, right | wrong

    def zero(array: np.ndarray) -> np.ndarray:
        return 0 * array

    def of_heads(array: np.ndarray) -> np.ndarray:
        return np.broadcast_to(array.mean(1, keepdims=True), array.shape)

    def order(*places: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda array: array[list(places)]

    slip("5: the bonus left out", rwkv5, time_faaaa=zero)
    slip("5: a decay for each head", rwkv5, time_decay=of_heads)
    slip("6: the bonus left out", rwkv6, time_faaaa=zero)
    slip("6: the mixes of k and v exchanged", rwkv6, time_maa_w2=order(0, 2, 1, 3, 4))
    slip("6: the mixes of w and k exchanged", rwkv6, time_maa_w2=order(1, 0, 2, 3, 4))
    slip("6: the mixes of r and g exchanged", rwkv6, time_maa_w2=order(0, 1, 2, 4, 3))
    slip("6: a decay for all tokens", rwkv6, time_decay_w2=zero)
    slip("7: the bonus left out", rwkv7, r_k=zero)
    slip("7: k_a left out", rwkv7, k_a=zero)
    slip("7: layer 0's values left out", rwkv7, v0=lambda array: array - 100)
    slip("7: a share of them for all tokens", rwkv7, v2=zero)
    slip("7: a rate for all tokens", rwkv7, a2=zero)
    slip("7: a decay for all tokens", rwkv7, w2=zero)
    return found


@pytest.mark.parametrize("slip", later_slips())
def test_tolerances_are_too_tight_for_a_slip_in_one_layer_of_a_later_version(slip: str) -> None:
    tokens = np.random.default_rng(1).integers(0, blocks.MEDIUM.n_vocab, 40).tolist()
    module, right, wrong = later_slips()[slip]
    found = deviation(module.run(wrong, tokens).logits, module.run(right, tokens).logits)
    loosest = max(tolerance_of(dtype).model for dtype in (*BYTES_PER_WEIGHT, "of another"))
    assert found > 1.5 * loosest
