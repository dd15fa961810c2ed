"""Prequantized files: written tensor by tensor, loaded by every backend, refused when damaged."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

import rwkv_core
from pth_writer import write_pth
from random_model import random_weights
from rwkv_core import Lora
from rwkv_core.architectures.base import Config
from rwkv_core.architectures.rwkv4 import RWKV4
from rwkv_core.checkpoint import diagnose, open_checkpoint
from rwkv_core.checkpoint.fingerprint import fingerprint_of
from rwkv_core.cli import main
from rwkv_core.conformance import reference
from rwkv_core.conformance.closeness import assert_close, of_model
from rwkv_core.errors import CheckpointError, OptionError, RWKVError
from rwkv_core.evaluation.random_model import write_random_model
from rwkv_core.quantization import quantize

MATRIX = "blocks.1.ffn.value.weight"
all_bits = pytest.mark.parametrize("bits", [8, 4])


def is_matrix(name: str, array: np.ndarray) -> bool:
    return array.ndim == 2 and name != "emb.weight"


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return random_weights(2, 64, 300, seed=3, dtype=np.float16)


@pytest.fixture
def model(tmp_path: Path, weights: dict[str, np.ndarray]) -> Path:
    write_pth(tmp_path / "model.pth", weights)
    return tmp_path / "model.pth"


@all_bits
def test_every_backend_computes_with_the_quantized_matrices(
    model: Path, weights: dict[str, np.ndarray], backend: str, bits: int
) -> None:
    restored = {
        name: quantize(array, bits, 32).dequantize() if is_matrix(name, array) else array
        for name, array in weights.items()
    }
    tokens = [5, 9, 200, 7, 0, 31]
    in_float64 = {name: array.astype(np.float64) for name, array in restored.items()}
    expected = reference.run(in_float64, tokens).logits
    loaded = rwkv_core.load(rwkv_core.prequantize(model, bits=bits, group_size=32), backend)
    found = loaded.to_numpy(loaded.forward(tokens, all_logits=True)[0])
    assert_close(found, expected, of_model(loaded.ops))


@all_bits
def test_the_safetensors_library_reads_it(
    model: Path, weights: dict[str, np.ndarray], bits: int
) -> None:
    path = rwkv_core.prequantize(model, bits=bits)
    with open_checkpoint(model) as checkpoint:
        fingerprint = fingerprint_of(checkpoint, diagnose(checkpoint))
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == {
            "format": "rwkv-core prequantized 1", "bits": str(bits), "group_size": "64",
            "fingerprint": fingerprint,
            "n_layer": "2", "n_embd": "64", "n_ffn": "256", "n_vocab": "300",
        }  # fmt: skip
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, array in weights.items():
        if is_matrix(name, array):
            expected = quantize(array, bits)
            for part in ("codes", "scales", "offsets"):
                part_found = found.pop(f"{name}.{part}")
                assert part_found.dtype == getattr(expected, part).dtype
                np.testing.assert_array_equal(part_found, getattr(expected, part))
        else:
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found.pop(name), array)
    assert not found


def test_it_reads_as_a_model_of_float32(model: Path, weights: dict[str, np.ndarray]) -> None:
    with open_checkpoint(rwkv_core.prequantize(model)) as checkpoint:
        assert checkpoint.format == "prequantized"
        assert {name: info.shape for name, info in checkpoint.tensors.items()} == {
            name: array.shape for name, array in weights.items()
        }
        found = checkpoint.read(MATRIX)
        assert found.dtype == checkpoint.tensors[MATRIX].dtype == np.float32
        assert not found.flags.writeable
        np.testing.assert_array_equal(found, quantize(weights[MATRIX], 8).dequantize())
        assert checkpoint.read_quantized("emb.weight") is None
        with pytest.raises(CheckpointError, match="no tensor named absent"):
            checkpoint.read("absent")


@pytest.mark.needs_backend
def test_states_of_the_model_and_of_its_quantized_file_continue_one_another(
    model: Path, tmp_path: Path
) -> None:
    first, second = rwkv_core.load(model), rwkv_core.load(rwkv_core.prequantize(model))
    _, state = first.forward([1, 2, 3])
    first.save_state(tmp_path / "state", state)
    second.forward([4], second.load_state(tmp_path / "state"))
    second.check_state(state)


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
    with pytest.raises(CheckpointError, match="cannot be written: what is there is no regular"):
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


def without(*names: str):
    return lambda tensors, metadata: [tensors.pop(name) for name in names]


def replaced(name: str, change):
    return lambda tensors, metadata: tensors.update({name: change(tensors[name])})


def told(**values: str):
    return lambda tensors, metadata: metadata.update(values)


DAMAGE = {
    "no scales": (without(f"{MATRIX}.scales"), f"{MATRIX} has no scales"),
    "no codes": (without(f"{MATRIX}.codes"), f"{MATRIX} has no codes"),
    "no matrix": (
        without(*(f"{MATRIX}.{part}" for part in ("codes", "scales", "offsets"))),
        "1 of the 42 tensors",
    ),
    "signed codes": (
        replaced(f"{MATRIX}.codes", lambda a: a.view(np.int8)),
        "codes is int8 .64, 256., expected a matrix of uint8",
    ),
    "codes in a row": (replaced(f"{MATRIX}.codes", np.ravel), "codes is uint8 .16384."),
    "too few rows of scales": (
        replaced(f"{MATRIX}.scales", lambda a: a[:-1]),
        "scales is float16 .63, 4., expected float16 or float32 .64, groups.",
    ),
    "no groups": (replaced(f"{MATRIX}.offsets", lambda a: a[:, :0]), "offsets is float16 .64, 0."),
    "scales of float64": (
        replaced(f"{MATRIX}.scales", lambda a: a.astype(np.float64)),
        "scales is float64",
    ),
    "offsets of another type": (
        replaced(f"{MATRIX}.offsets", lambda a: a.astype(np.float32)),
        "differ in type or shape",
    ),
    "groups that do not divide": (
        lambda tensors, metadata: tensors.update(
            {f"{MATRIX}.{part}": np.ones((64, 3), np.float16) for part in ("scales", "offsets")}
        ),
        "has 3 groups in rows of 256 weights",
    ),
    "other bits than the codes have": (told(bits="4"), "has shape .64, 128."),
    "bits that there are not": (told(bits="5"), "found '5' bits, expected 8 or 4"),
    "a later version": (
        told(format="rwkv-core prequantized 2"),
        "'rwkv-core prequantized 2', expected 'rwkv-core prequantized 1': upgrade",
    ),
    "no fingerprint": (told(fingerprint="../../etc"), "no fingerprint of 16 hex digits"),
    "other groups than it says": (told(group_size="32"), "says group_size '32', its tensors 64"),
    "other layers than it says": (told(n_layer="3"), "says n_layer '3', its tensors 2"),
    "another width than it says": (told(n_embd="x"), "says n_embd 'x', its tensors 64"),
    "scales of NaN": (
        replaced(f"{MATRIX}.scales", lambda a: a * np.float16(np.nan)),
        f"{MATRIX} holds 256 NaN",
    ),
    "a matrix twice": (
        lambda tensors, metadata: tensors.update({MATRIX: np.ones((64, 256), np.float16)}),
        f"holds {MATRIX} both quantized and not",
    ),
}


@pytest.mark.needs_backend
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_is_one_line(model: Path, kind: str) -> None:
    damage, message = DAMAGE[kind]
    path = rwkv_core.prequantize(model)
    with safe_open(path, framework="numpy") as file:
        tensors, metadata = {n: file.get_tensor(n) for n in file.keys()}, file.metadata()  # noqa: SIM118
    damage(tensors, metadata)
    save_file({n: np.ascontiguousarray(a) for n, a in tensors.items()}, path, metadata)
    with pytest.raises(CheckpointError, match=message) as caught:
        rwkv_core.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_bytes_that_are_wrong_raise_nothing_else(model: Path, data: st.DataObject) -> None:
    path = model.with_suffix(".pqth")
    if not path.exists():
        rwkv_core.prequantize(model)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, 9000))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    broken = path.with_name("broken")
    broken.write_bytes(content[:cut] if data.draw(st.booleans()) else content)
    try:
        with open_checkpoint(broken) as checkpoint:
            for name in checkpoint.tensors:
                checkpoint.read(name)
    except RWKVError as error:
        assert str(broken) in str(error)


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
        while process.poll() is None and len(list(tmp_path.iterdir())) == 1:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.needs_backend
def test_the_shipped_model_quantized_needs_no_tokenizer_named(tmp_path: Path) -> None:
    path = rwkv_core.prequantize("prose", tmp_path / "prose.pqth", bits=4)
    rwkv = rwkv_core.RWKV(path)
    rwkv.load_context("It was a")
    assert rwkv.generate(3, seed=1).text
