"""The bench's bookkeeping; its figures are not for tests."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import rwkv_core
from rwkv_core import memory
from rwkv_core.bench import bench, bench_decode, parse_shape
from rwkv_core.checkpoint import Shape, diagnose, open_checkpoint
from rwkv_core.checkpoint.doctor import expected_shapes
from rwkv_core.cli import main
from rwkv_core.errors import OptionError
from rwkv_core.random_weights import random_values, write_random_model

pytestmark = pytest.mark.needs_backend

SHAPE = Shape(2, 32, 128, 150)


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


def test_a_random_models_tensors_are_as_many_as_counted():
    sizes = expected_shapes(SHAPE).values()
    assert sum(map(np.prod, sizes)) == memory.count_parameters(SHAPE).total


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
    assert parse_shape(text) == shape


@pytest.mark.parametrize("text", ["", "170M", "3x", "x40", "0x40", "-3x40", "3x40x2"])
def test_a_shape_that_is_none_is_refused(text):
    with pytest.raises(OptionError, match="shape: found"):
        parse_shape(text)


def test_a_report_counts_the_bytes_and_operations(random_file, backend):
    stages = []
    report = bench(
        str(random_file), backend, {}, lengths=[5, 9], rounds=2, on_progress=stages.append
    )
    counts = memory.count_parameters(SHAPE)
    assert (report.backend, report.parameters) == (backend, counts.total)
    size = memory.BYTES_PER_WEIGHT[report.dtype]
    decode = report.decode
    assert decode.bytes_per_token == counts.matrices * size + counts.vectors * 4
    assert decode.bytes_per_second == pytest.approx(
        decode.bytes_per_token * decode.tokens_per_second
    )
    assert decode.share == pytest.approx(decode.bytes_per_second / decode.stream_bytes_per_second)
    assert [prefill.tokens for prefill in report.prefill] == [5, 9]
    for prefill in report.prefill:
        flops = 2 * (counts.block_matrices * prefill.tokens + counts.head)
        assert prefill.flops_per_second == pytest.approx(
            flops * prefill.tokens_per_second / prefill.tokens
        )
    assert stages == ["loading", "decoding", "prompt of 5", "prompt of 9"]


def test_a_dtype_of_unknown_size_has_no_share(random_file, monkeypatch):
    monkeypatch.setattr(memory, "BYTES_PER_WEIGHT", {})
    model = rwkv_core.load(random_file)
    decode = bench_decode(model, SHAPE, rounds=1)
    assert decode.tokens_per_second > 0 and decode.share is None


@pytest.mark.parametrize("options", [{"rounds": 0}, {"lengths": [0]}])
def test_numbers_below_one_are_refused(random_file, options):
    with pytest.raises(OptionError, match="at least 1"):
        bench(str(random_file), None, {}, **options)


def test_the_command_makes_a_model_and_removes_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    arguments = ["--shape", "1x8", "--rounds", "1", "--prefill", "3"]
    assert main(["bench", *arguments]) == 0
    out = capsys.readouterr().out
    assert out.startswith("random 1x8: ") and "\nprefill 3 " in out
    assert list(tmp_path.iterdir()) == []


def test_the_command_as_json(random_file, backend, capsys):
    arguments = ["-m", str(random_file), "-b", backend, "--rounds", "1", "--prefill", "3"]
    assert main(["bench", *arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == str(random_file) and found["load_seconds"] > 0
    assert set(found["decode"]) == {
        "tokens_per_second", "bytes_per_token", "bytes_per_second", "stream_bytes_per_second",
        "share",
    }  # fmt: skip
    assert found["prefill"][0]["tokens"] == 3


def test_a_model_and_a_shape_together_are_refused(capsys):
    assert main(["bench", "-m", "prose", "--shape", "1x8"]) == 2
    assert "not allowed with argument" in capsys.readouterr().err


def test_a_shape_that_does_not_fit_on_the_disk_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    # Never is a disk to be filled for a test.
    monkeypatch.setattr("rwkv_core.random_weights.write_random_model", pytest.fail)
    assert main(["bench", "--shape", "100000x1000000"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and f"{tmp_path} has" in error and "GiB free" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGTERM to be caught")
def test_sigterm_removes_the_temporary_folder(tmp_path):
    command = [sys.executable, "-m", "rwkv_core", "bench", "--shape", "1x8", "--rounds", "1000000"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(tmp_path.glob("rwkv-core-bench-*")):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (2, 143)
    assert list(tmp_path.iterdir()) == []
