"""Prequantized files: loaded by every backend, refused when damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

import rwkv_core
from pth_writer import write_pth
from random_model import random_weights
from rwkv_core.checkpoint import diagnose, open_checkpoint
from rwkv_core.checkpoint.fingerprint import fingerprint_of
from rwkv_core.conformance.closeness import assert_close, of_model
from rwkv_core.conformance.references import rwkv4 as reference
from rwkv_core.errors import CheckpointError, RWKVError
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
