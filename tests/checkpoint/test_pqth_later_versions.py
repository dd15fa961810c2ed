"""Prequantized RWKV-5 to 7 on all backends: matrices are quantized, low-rank ones are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import rwkv_core
from later_versions import VERSIONS, Sizes, later_weights
from pth_writer import write_pth
from rwkv_core.conformance.closeness import assert_close, of_model
from rwkv_core.conformance.references import rwkv5, rwkv6, rwkv7
from rwkv_core.errors import CheckpointError
from rwkv_core.quantization import quantize

SIZES = Sizes(2, 128, 32, 448, 90, (8, 12, 16, 20))
REFERENCES = {"5.0": rwkv5, "5.1": rwkv5, "5.2": rwkv5, "6": rwkv6, "7": rwkv7}
TOKENS = [5, 9, 80, 7, 0, 31]


def is_quantized(name: str) -> bool:
    return name == "head.weight" or name.endswith(
        tuple(f"{part}.weight" for part in ("key", "value", "receptance", "gate", "output"))
    )


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(version: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pqth")
    write_pth(folder / "model.pth", later_weights(version, SIZES, seed=1))
    return folder / "model.pth"


@pytest.mark.parametrize("bits", [8, 4])
def test_every_backend_computes_with_the_quantized_matrices(
    model: Path, version: str, tmp_path: Path, backend: str, bits: int
) -> None:
    weights = {
        name: array.astype(np.float64)
        for name, array in later_weights(version, SIZES, seed=1).items()
    }
    for name in filter(is_quantized, weights):
        weights[name] = quantize(weights[name], bits, 64).dequantize()
    expected = REFERENCES[version].run(weights, TOKENS).logits
    path = rwkv_core.prequantize(model, tmp_path / "model.pqth", bits)
    loaded = rwkv_core.load(path, backend)
    found = loaded.to_numpy(loaded.forward(TOKENS, all_logits=True)[0])
    assert_close(found, expected, of_model(loaded.ops))


@pytest.mark.needs_backend
def test_the_rest_stays_as_it_is_and_the_metadata_tell_the_sizes(
    model: Path, version: str, tmp_path: Path, backend: str
) -> None:
    path = rwkv_core.prequantize(model, tmp_path / "model.pqth")
    stored = load_file(path)
    expected = later_weights(version, SIZES, seed=1)
    for name, array in expected.items():
        if is_quantized(name):
            assert stored[f"{name}.codes"].dtype == np.uint8 and name not in stored
        elif not name.startswith("blocks.0.att.v"):
            np.testing.assert_array_equal(stored[name].reshape(array.shape), array)
    with safe_open(path, framework="numpy") as file:
        about = file.metadata()
    assert (about["n_head"], about["head_size"]) == ("4", "32")
    assert rwkv_core.load(path, backend).architecture == f"rwkv{version}"
    loaded, original = (rwkv_core.load(one, backend) for one in (path, model))
    assert loaded.fingerprint == original.fingerprint
    save_file(stored, path, about | {"n_head": "2"})
    with pytest.raises(CheckpointError, match="its metadata says n_head '2', its tensors 4"):
        rwkv_core.load(path, backend)
