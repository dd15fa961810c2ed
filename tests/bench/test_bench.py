"""The bench's bookkeeping; the measured figures are not tested."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

import rwkv_core
from rwkv_core.architectures.base import Config
from rwkv_core.architectures.rwkv4 import RWKV4
from rwkv_core.bench import (
    Combination,
    bench,
    bench_alone,
    bench_decode,
    parse_shape,
)
from rwkv_core.checkpoint import diagnose, open_checkpoint
from rwkv_core.cli import main
from rwkv_core.cli.signal_cleanup import cleanup_on_signal
from rwkv_core.dtypes import BYTES_PER_WEIGHT
from rwkv_core.errors import BackendError, OptionError
from rwkv_core.evaluation.random_model import random_values, write_random_model
from rwkv_core.util.threads import available_threads
from waiting import wait_until

try:
    from rwkv_backend_numpy.numpy_ops import NumpyOps
except ImportError:
    NumpyOps = None

pytestmark = pytest.mark.needs_backend

SHAPE = Config(2, 32, 128, 150, RWKV4)


@pytest.fixture
def random_file(tmp_path):
    write_random_model(tmp_path / "random.safetensors", SHAPE)
    return tmp_path / "random.safetensors"


def test_a_random_model_file_is_a_sound_model_of_its_shape(random_file, backend):
    with open_checkpoint(random_file) as checkpoint:
        assert diagnose(checkpoint) == SHAPE
        assert {info.dtype for info in checkpoint.tensors.values()} == {np.dtype(np.float16)}
    model = rwkv_core.load(random_file, backend)
    logits = model.to_numpy(model.forward(list(range(100)))[0])
    assert np.isfinite(logits).all() and 0.1 < logits.std() < 10


def test_random_values_are_of_unit_variance_beyond_one_block():
    values = random_values(2_500_000, seed=1)
    assert values.dtype == np.float32 and len(values) == 2_500_000
    assert values.mean() == pytest.approx(0, abs=0.01) and values.std() == pytest.approx(
        1, abs=0.01
    )


@pytest.mark.parametrize(
    ("text", "shape"), [("169M", (12, 768, 3072, 50277)), ("3x40", (3, 40, 160, 50277))]
)
def test_shapes_are_named_by_size_or_by_layers_and_width(text, shape):
    assert parse_shape(text)[:4] == shape


@pytest.mark.parametrize("text", ["", "170M", "3x", "x40", "0x40", "-3x40", "3x40x2"])
def test_a_shape_that_is_none_is_refused(text):
    with pytest.raises(OptionError, match="shape: found"):
        parse_shape(text)


def test_a_report_counts_the_bytes_and_operations(random_file, backend):
    stages = []
    report = bench(str(random_file), backend, {}, lengths=[5, 9], rounds=2, on_stage=stages.append)
    counts = SHAPE.count_parameters()
    assert (report.backend, report.parameters) == (backend, counts.total)
    assert report.load_seconds > 0 and report.peak_memory > 2**20
    decode = report.decode
    assert decode.bytes_per_second == pytest.approx(
        decode.bytes_per_token * decode.tokens_per_second
    )
    assert decode.share == pytest.approx(decode.bytes_per_second / decode.stream_bytes_per_second)
    # Equal where the step alone takes less than the products one by one.
    assert decode.product_seconds > 0 and decode.overhead_seconds >= decode.sampling_seconds
    assert report.first_token.tokens == 5
    assert report.first_token.cold_seconds > 0 and report.first_token.seconds > 0
    assert [prefill.tokens for prefill in report.prefill] == [5, 9]
    for prefill in report.prefill:
        flops = 2 * (counts.block_matrices * prefill.tokens + counts.head)
        assert prefill.flops_per_second == pytest.approx(
            flops * prefill.tokens_per_second / prefill.tokens
        )
        assert prefill.share == pytest.approx(
            prefill.flops_per_second / prefill.gemm_flops_per_second
        )
    assert [batch.sequences for batch in report.batches] == [1, 4, 16]
    assert report.batches[0].ratio == 1
    for batch in report.batches:
        one = report.batches[0].tokens_per_second
        assert batch.ratio == pytest.approx(batch.tokens_per_second / one)
    assert stages == [
        "loading", "first token", "decoding", "prompt of 5", "prompt of 9", "batches"
    ]  # fmt: skip


def dtypes_of(backend):
    (row,) = (row for row in rwkv_core.list_backends() if row.name == backend)
    return next((option.choices for option in row.options if option.name == "dtype"), ())


def test_the_bytes_of_a_token_are_the_matrices_and_the_vectors(random_file, backend):
    counts = SHAPE.count_parameters()
    for dtype in ("float32", "bfloat16", "int8", "int4"):
        try:
            model = rwkv_core.load(random_file, backend, dtype=dtype)
        except OptionError:
            continue  # has no such dtype
        n_bytes = bench_decode(model, rounds=1).bytes_per_token - counts.vectors * 4
        if dtype.startswith("int"):
            codes = counts.matrices * int(dtype[3:]) / 8
            # With the scales and offsets of groups as long as these rows at most.
            assert codes + counts.matrices * 4 / 128 <= n_bytes < codes + counts.matrices
        else:
            assert n_bytes == counts.matrices * BYTES_PER_WEIGHT[dtype]


def test_the_layers_of_a_backend_are_of_the_block_that_is_given(random_file, backend):
    """The products are those of the bench's block, not of a kernel for the whole model."""
    model = rwkv_core.load(random_file, backend)
    ops, state = model.ops, model.empty_state(1).array
    x = ops.vector(np.ones((1, 1, SHAPE.n_embd)))
    y, after = ops.layers(
        lambda ops, p, x, state: (x + x, state), model.parameters.blocks, x, state
    )
    np.testing.assert_array_equal(ops.to_numpy(y), np.full((1, 1, SHAPE.n_embd), 4))
    np.testing.assert_array_equal(ops.to_numpy(after), ops.to_numpy(state))


class NoSize(NumpyOps if NumpyOps is not None else object):
    """A backend whose matrices do not tell their size, in a type nobody knows."""

    def matrix(self, array):
        return {"rows": array.astype(np.float32)}

    def matmul(self, matrix, x):
        return super().matmul(matrix["rows"], x)


@pytest.mark.skipif(NumpyOps is None, reason="stands on the NumPy backend")
def test_a_dtype_of_unknown_size_has_no_share(random_file, monkeypatch):
    ops = NoSize("float32")
    monkeypatch.setattr("rwkv_core.plugins.selection.tensor_ops", lambda name, options: ops)
    assert bench(str(random_file), "numpy", {}, [1], 1).decode.share > 0  # told by the dtype
    ops.dtype = "float24"
    decode = bench(str(random_file), "numpy", {}, [1], 1).decode
    assert decode.tokens_per_second > 0 and decode.bytes_per_token is None is decode.share


@pytest.mark.parametrize(
    "options", [{"rounds": 0}, {"lengths": [0]}, {"lengths": []}, {"lengths": [10**30]}]
)
def test_numbers_out_of_range_are_refused(random_file, options):
    with pytest.raises(OptionError, match="expected"):
        bench(str(random_file), None, {}, **options)


def test_the_command_makes_a_model_and_removes_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    arguments = ["--shape", "1x8", "--rounds", "1", "--prefill", "3"]
    assert main(["bench", *arguments]) == 0
    out = capsys.readouterr().out
    assert out.startswith("random 1x8: ") and "\nprefill 3, tokens/s " in out
    assert list(tmp_path.iterdir()) == []


def test_the_command_as_json(random_file, backend, capsys):
    arguments = ["-m", str(random_file), "-b", backend, "--rounds", "1", "--prefill", "3"]
    assert main(["bench", *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == str(random_file) and found["load_seconds"] > 0
    assert found["backend"] == backend and found["threads"] is None
    assert set(found["decode"]) == {
        "tokens_per_second", "bytes_per_token", "bytes_per_second", "stream_bytes_per_second",
        "share", "yardstick", "product_seconds", "overhead_seconds", "sampling_seconds",
    }  # fmt: skip
    assert found["prefill"][0]["tokens"] == 3
    assert [batch["sequences"] for batch in found["batches"]] == [1, 4, 16]


@pytest.fixture
def some_backend():
    """Return a backend with float32; no backend has float24."""
    names = [row.name for row in rwkv_core.list_backends() if row.status == "ready"]
    able = [name for name in names if "float32" in dtypes_of(name)]
    return "numpy" if "numpy" in able else able[0]


def test_busy_processes_run_beside_a_second_measurement(random_file, some_backend, capsys):
    arguments = ["--prefill", "4", "--rounds", "1", "--busy", "2", "--json"]
    assert main(["bench", "-m", str(random_file), "-b", some_backend, *arguments]) == 0
    idle, busy = json.loads(capsys.readouterr().out)
    assert (idle["busy"], busy["busy"]) == (0, 2)
    assert busy["decode"]["tokens_per_second"] > 0
    assert main(["bench", "-m", str(random_file), "--busy", "0"]) == 2
    assert "--busy: found 0, expected 1 to 64" in capsys.readouterr().err


def test_a_combination_that_fails_is_a_line_and_not_the_end(random_file, some_backend, capsys):
    arguments = ["-m", str(random_file), "--rounds", "1", "--prefill", "3", "-b", some_backend]
    arguments += ["--dtype", "float24", "--dtype", "float32"]
    assert main(["bench", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["backend", some_backend]
    assert lines[3].split() == ["dtype", "float32"]
    assert lines[-1].startswith(f"{some_backend}, float24: ") and "'float24', expected" in lines[-1]
    assert main(["bench", *arguments, "--json"]) == 0
    failed, found = json.loads(capsys.readouterr().out)
    assert set(failed) == {"backend", "dtype", "threads", "busy", "error"}
    assert (failed["dtype"], found["dtype"]) == ("float24", "float32")


def test_ctrl_c_keeps_what_has_been_measured(random_file, some_backend, monkeypatch, capsys):
    def interrupted_at_the_second(combination, *arguments, **options):
        if combination.threads == 2:
            raise KeyboardInterrupt
        return bench_alone(combination, *arguments, **options)

    monkeypatch.setattr(rwkv_core.bench, "bench_alone", interrupted_at_the_second)
    monkeypatch.setattr(rwkv_core.util.threads, "available_threads", lambda: 2)
    arguments = ["bench", "-m", str(random_file), "-b", some_backend, "--prefill", "8"]
    arguments += ["--rounds", "1", "--threads", "1", "--threads", "2"]
    assert main(arguments) == 130
    table = capsys.readouterr().out
    assert table.splitlines()[2].split() == ["backend", some_backend]
    assert main([*arguments, "--json"]) == 130
    (report,) = json.loads(capsys.readouterr().out)
    assert report["threads"] == 1


def test_where_all_combinations_fail_so_does_the_command(random_file, capsys):
    arguments = ["-m", str(random_file), "-b", "numpi", "--dtype", "float24"]
    assert main(["bench", *arguments]) == 2
    out, error = capsys.readouterr()
    assert out == "" and len(error.splitlines()) == 1 and "numpi" in error
    assert main(["bench", *arguments, "--dtype", "int3"]) == 2
    out, error = capsys.readouterr()
    assert len(out.splitlines()) == 2 and "none of the 2" in error


def test_each_combination_has_a_process_and_threads_of_its_own(random_file, some_backend):
    before = dict(os.environ)
    report = bench_alone(
        Combination(some_backend, "float32", 1), str(random_file), {}, lengths=[2], rounds=1
    )
    assert (report.backend, report.dtype) == (some_backend, "float32")
    assert dict(os.environ) == before and available_threads() >= 1


def threads_of_a_bench(stage):
    if stage == "loading":
        raise OptionError(f"{os.environ['OMP_NUM_THREADS']} of {available_threads()}")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no cores can be given here")
def test_threads_are_the_librarys_variables_and_the_cores(random_file):
    with pytest.raises(BackendError, match=r"^1 of 1(\n|$)"):
        bench_alone(Combination(threads=1), str(random_file), {}, on_stage=threads_of_a_bench)


def end(stage):
    os._exit(3)


def test_a_process_that_ends_is_an_error(random_file):
    with pytest.raises(BackendError, match="ended with status 3"):
        bench_alone(Combination(), str(random_file), {}, on_stage=end)


@pytest.mark.parametrize("threads", ["0", "100000"])
def test_threads_beyond_the_cores_are_refused(threads, capsys):
    assert main(["bench", "--shape", "1x8", "--threads", threads]) == 2
    assert f"--threads: found {threads}, expected 1 to" in capsys.readouterr().err


def test_a_dtype_given_twice_over_is_refused(random_file, some_backend, capsys):
    arguments = ["-m", str(random_file), "-b", some_backend, "--dtype", "float32"]
    assert main(["bench", *arguments, "-o", "dtype=float32"]) == 2
    assert "-o dtype: given beside" in capsys.readouterr().err


def test_a_model_and_a_shape_together_are_refused(capsys):
    assert main(["bench", "-m", "prose", "--shape", "1x8"]) == 2
    assert "not allowed with argument" in capsys.readouterr().err


def test_a_shape_that_does_not_fit_on_the_disk_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    # Never is a disk to be filled for a test.
    monkeypatch.setattr("rwkv_core.evaluation.random_model.write_random_model", pytest.fail)
    assert main(["bench", "--shape", "1000x1000000"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and f"{tmp_path} has" in error and "GiB free" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGTERM to be caught")
def test_sigterm_removes_the_temporary_folder(tmp_path):
    command = [sys.executable, "-m", "rwkv_core", "bench", "--shape", "1x8", "--rounds", "1000000"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(
                lambda: process.poll() is not None or list(tmp_path.glob(".rwkv-core-*/random*"))
            )
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) in (2, 143)
        finally:
            process.kill()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("first", "raised"), [("SIGTERM", SystemExit), ("SIGINT", KeyboardInterrupt)]
)
@pytest.mark.parametrize("second", ["SIGTERM", "SIGINT"])
def test_a_second_signal_does_not_break_into_the_clearing_up(first, raised, second):
    """`timeout` for one sends two: to the program, and to its group."""
    cleared = False
    with pytest.raises(raised), cleanup_on_signal():
        try:
            signal.raise_signal(getattr(signal, first))
        finally:
            signal.raise_signal(getattr(signal, second))
            cleared = True
    assert cleared
