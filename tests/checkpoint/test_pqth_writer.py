"""Prequantized files are written tensor by tensor; a failure leaves no file, or the old one."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import rwkv_core
from pth_writer import write_pth
from random_model import random_weights
from rwkv_core import Lora
from rwkv_core.architectures.base import Config
from rwkv_core.architectures.rwkv4 import RWKV4
from rwkv_core.checkpoint import diagnose, open_checkpoint
from rwkv_core.cli import main
from rwkv_core.errors import CheckpointError, OptionError
from rwkv_core.evaluation.random_model import write_random_model
from waiting import wait_until

MATRIX = "blocks.1.ffn.value.weight"


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return random_weights(2, 64, 300, seed=3, dtype=np.float16)


@pytest.fixture
def model(tmp_path: Path, weights: dict[str, np.ndarray]) -> Path:
    write_pth(tmp_path / "model.pth", weights)
    return tmp_path / "model.pth"


def test_bfloat16_stays_what_it_is(tmp_path: Path) -> None:
    weights = random_weights(1, 64, 50, dtype=ml_dtypes.bfloat16)
    write_pth(tmp_path / "model.pth", weights)
    with open_checkpoint(rwkv_core.prequantize(tmp_path / "model.pth")) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("emb.weight"), weights["emb.weight"])
        assert checkpoint.read("ln_out.weight").dtype == ml_dtypes.bfloat16


def test_memory_stays_at_a_few_matrices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwkv_core.quantization.available_threads", lambda: 2)
    write_pth(tmp_path / "m.pth", random_weights(6, 512, 8192, dtype=np.float16))
    tracemalloc.start()
    try:
        path = rwkv_core.prequantize(tmp_path / "m.pth")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The largest matrix is 4 MiB of codes, and the rows at work are a few arrays of 1 MiB a thread.
    assert peak < 16 * 2**20 < 30 * 2**20 < path.stat().st_size


def test_progress_reaches_the_whole(model: Path) -> None:
    seen: list[tuple[int, int]] = []
    rwkv_core.prequantize(model, on_progress=lambda *row: seen.append(row))
    done = [row[0] for row in seen]
    assert done == sorted(done) and seen[-1][0] == seen[-1][1]


def test_where_it_goes(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert rwkv_core.prequantize(str(model)) == tmp_path / "model.pqth"
    assert rwkv_core.prequantize(model, tmp_path / "other") == tmp_path / "other"
    monkeypatch.chdir(tmp_path)
    assert rwkv_core.prequantize("./model.pth") == Path("model.pqth")
    assert rwkv_core.prequantize("prose") == Path("rwkv-4-prose-7m.pqth")
    (tmp_path / "link").symlink_to("other")
    rwkv_core.prequantize(model, "link", bits=4)
    assert (tmp_path / "link").is_symlink()
    with open_checkpoint(tmp_path / "other") as checkpoint:
        assert checkpoint.metadata["bits"] == "4"


def test_the_input_is_never_overwritten(model: Path, tmp_path: Path) -> None:
    before = model.read_bytes()
    (tmp_path / "link").symlink_to(model)
    os.link(model, tmp_path / "hard")
    for output in (model, tmp_path / "link", tmp_path / "hard"):
        with pytest.raises(OptionError, match="is a file that is read; name another"):
            rwkv_core.prequantize(model, output)
    assert model.read_bytes() == before


def test_a_quantized_model_is_refused(model: Path, tmp_path: Path) -> None:
    path = rwkv_core.prequantize(model)
    with pytest.raises(CheckpointError, match="is quantized already"):
        rwkv_core.prequantize(path)
    assert sorted(tmp_path.iterdir()) == [path, model]


def interrupt(done: int, total: int) -> None:
    if done > total / 2:
        raise KeyboardInterrupt


def test_a_failure_leaves_what_was_there(
    model: Path, tmp_path: Path, weights: dict[str, np.ndarray]
) -> None:
    damaged = {name: array.copy() for name, array in weights.items()}
    damaged[MATRIX][3, 4] = np.nan
    write_pth(tmp_path / "nan.pth", damaged)
    write_pth(tmp_path / "inf.pth", weights | {"emb.weight": weights["emb.weight"] * np.inf})
    target = tmp_path / "model.pqth"
    kept = rwkv_core.prequantize(model, target).read_bytes()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=f"nan.pth: {MATRIX} holds 1 NaN"):
        rwkv_core.prequantize(tmp_path / "nan.pth", target)
    with pytest.raises(CheckpointError, match="holds 19200 NaN or infinite"):
        rwkv_core.prequantize(tmp_path / "inf.pth", target)
    with pytest.raises(KeyboardInterrupt):
        rwkv_core.prequantize(model, on_progress=interrupt)
    with pytest.raises(CheckpointError, match="cannot be written: not a regular"):
        rwkv_core.prequantize(model, tmp_path)
    with pytest.raises(CheckpointError, match="cannot be written: No such file"):
        rwkv_core.prequantize(model, tmp_path / "absent" / "m")
    assert sorted(tmp_path.iterdir()) == before and target.read_bytes() == kept


def test_a_file_of_another_kind_is_not_overwritten(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("kept")
    for kind in ("pth", "safetensors"):
        shutil.copy(model, tmp_path / f"other.{kind}")
    for target in ("text", "other.pth", "other.safetensors"):
        with pytest.raises(OptionError, match="a file of another kind"):
            rwkv_core.prequantize(model, tmp_path / target)
    assert (tmp_path / "text").read_text() == "kept"
    (tmp_path / "empty").touch()
    for bits in (8, 4):
        rwkv_core.prequantize(model, tmp_path / "empty", bits)


def test_an_interrupt_just_after_the_file_is_in_place_is_what_is_raised(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def interrupted(*paths: str) -> None:
        replace(*paths)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rwkv_core.prequantize(model)
    with open_checkpoint(model.with_suffix(".pqth")) as checkpoint:
        assert diagnose(checkpoint)


def test_a_disk_that_fills_up_is_one_line(model: Path, tmp_path: Path) -> None:
    # A limit on the size of files fails a write midway, as a full disk does.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="cannot be written: File too large"):
            rwkv_core.prequantize(model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == [model]


def test_groups_that_do_not_fit_are_refused_before_anything_is_written(
    model: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=r"group size: found 128, .*width 64"):
        rwkv_core.prequantize(model, group_size=128)
    assert list(tmp_path.iterdir()) == [model]


def test_a_folder_is_no_model() -> None:
    for folder in (".", "/"):
        with pytest.raises(CheckpointError, match="a folder"):
            rwkv_core.prequantize(folder)


def test_the_command(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = model.with_name("small.pqth")
    arguments = ["--bits", "4", "--group-size", "32", "--output", str(output)]
    assert main(["prequantize", str(model), *arguments]) == 0
    assert capsys.readouterr().out.startswith(f"{output}: 4 bits, ")
    with open_checkpoint(output) as checkpoint:
        assert checkpoint.read_quantized(MATRIX).group_size == 32
    assert main(["prequantize", str(model), "--bits", "5"]) == 2
    assert "bits: found 5, expected 8 or 4" in capsys.readouterr().err


@pytest.mark.needs_backend
def test_a_lora_is_merged_before(model: Path, tmp_path: Path) -> None:
    lora = {
        "blocks.0.att.key.lora_A": np.full((2, 64), 0.5, np.float32),
        "blocks.0.att.key.lora_B": np.full((64, 2), 0.5, np.float32),
    }
    write_pth(tmp_path / "lora.pth", lora)
    path = rwkv_core.prequantize(model, lora=Lora(tmp_path / "lora.pth", 4))
    merged = rwkv_core.load(model, lora=Lora(tmp_path / "lora.pth", 4))
    assert rwkv_core.load(path).fingerprint == merged.fingerprint
    with pytest.raises(OptionError, match="is a file that is read"):
        rwkv_core.prequantize(model, tmp_path / "lora.pth", lora=Lora(tmp_path / "lora.pth", 4))


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_what_is_half_written_goes_with_sigterm(tmp_path: Path) -> None:
    write_random_model(tmp_path / "model.safetensors", Config(6, 768, 3072, 8192, RWKV4))
    command = [sys.executable, "-m", "rwkv_core", "prequantize", "model.safetensors", "--bits=4"]
    with subprocess.Popen(command, cwd=tmp_path) as process:
        try:
            wait_until(lambda: process.poll() is not None or len(list(tmp_path.iterdir())) > 1)
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        finally:
            process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.needs_backend
def test_the_shipped_model_quantized_needs_no_tokenizer_named(tmp_path: Path) -> None:
    path = rwkv_core.prequantize("prose", tmp_path / "prose.pqth", bits=4)
    rwkv = rwkv_core.RWKV(path)
    rwkv.load_context("It was a")
    assert rwkv.generate(3, seed=1).text
