"""transformers' layer_norm_epsilon changes what a model computes, on every backend."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_names import transformers_names

import rwkv_core
from hub_server import Hub
from pth_writer import write_pth
from rwkv_core.conformance.references import rwkv4 as reference
from rwkv_core.errors import CheckpointError
from rwkv_core.model_file import open_model, prequantize

TOKENS = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def weights() -> reference.Weights:
    weights = reference.random_weights()
    # Small enough for each epsilon to show.
    for name in ("emb.weight", "blocks.0.ln0.weight", "blocks.0.ln0.bias"):
        weights[name] = weights[name] * 0.01
    return weights


def save(folder: Path, weights: reference.Weights, **config: object) -> Path:
    narrow = {name: array.astype(np.float32) for name, array in weights.items()}
    save_file(transformers_names(narrow), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "rwkv"} | config))
    return folder


def expected_logits(weights: reference.Weights, epsilon: float, monkeypatch) -> np.ndarray:
    def layer_norm(weights, name, x):
        standard = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
        return standard * weights[name + ".weight"] + weights[name + ".bias"]

    monkeypatch.setattr(reference, "layer_norm", layer_norm)
    return reference.run(weights, TOKENS).logits


@pytest.mark.needs_backend
@pytest.mark.parametrize("epsilon", [1e-12, 1e-5, 1e-3])
def test_the_epsilon_is_heeded(tmp_path, weights, epsilon, backend, monkeypatch):
    model = rwkv_core.load(save(tmp_path, weights, layer_norm_epsilon=epsilon), backend)
    found = model.to_numpy(model.forward(TOKENS, all_logits=True)[0])
    expected = expected_logits(weights, epsilon, monkeypatch)
    np.testing.assert_allclose(found, expected, atol=0.5 if backend == "torch-quant" else 2e-4)


def test_a_prequantized_file_has_it_in_its_weights(tmp_path, weights):
    path = prequantize(save(tmp_path, weights, layer_norm_epsilon=1e-3))
    with open_model(tmp_path) as model, open_model(path) as quantized:
        for name in ("emb.weight", "blocks.0.ln0.bias", "blocks.1.ln1.weight"):
            np.testing.assert_array_equal(quantized.read(name), model.read(name))
        largest = np.abs(model.read("blocks.1.att.output.weight")).max()
        error = quantized.read("blocks.1.att.output.weight") - model.read(
            "blocks.1.att.output.weight"
        )
        assert np.abs(error).max() < 0.01 * largest


@pytest.mark.parametrize("value", [0, -1e-5, "1e-5", None, True, 1e300])
def test_an_epsilon_that_is_none_is_one_line(tmp_path, weights, value):
    save(tmp_path, weights, layer_norm_epsilon=value)
    with (
        pytest.raises(CheckpointError, match=r"config\.json: layer_norm_epsilon is") as error,
        open_model(tmp_path),
    ):
        pass
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe{", b"[" * 100_000, b" " * 2**20 + b"{}"]
)
def test_a_damaged_configuration_is_one_line(tmp_path, weights, content):
    save(tmp_path, weights)
    (tmp_path / "config.json").write_bytes(content)
    with (
        pytest.raises(CheckpointError, match=r"config\.json: damaged: is no JSON object") as error,
        open_model(tmp_path),
    ):
        pass
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "config", [None, {}, {"model_type": "gpt2", "layer_norm_epsilon": 1e-3}, {"model_type": "rwkv"}]
)
def test_a_configuration_that_gives_no_epsilon_of_an_rwkv_leaves_the_usual_one(
    tmp_path, weights, config
):
    save(tmp_path, weights)
    (tmp_path / "config.json").unlink()
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with open_model(tmp_path) as model:
        expected = weights["emb.weight"].astype(np.float32)
        np.testing.assert_array_equal(model.read("emb.weight"), expected)


def test_a_configuration_without_the_model_s_type_is_heeded(tmp_path, weights):
    for config in (
        {"model_type": "rwkv"},
        {"model_type": None},
        {"architectures": ["RwkvForCausalLM"]},
    ):
        save(tmp_path, weights)
        (tmp_path / "config.json").write_text(json.dumps(config | {"layer_norm_epsilon": 1e-3}))
        with open_model(tmp_path) as model:
            expected = np.float32(weights["emb.weight"]) * np.float32(0.1)
            np.testing.assert_allclose(model.read("emb.weight"), expected, rtol=1e-6)


def test_blinkdl_s_own_files_always_have_the_usual_one(tmp_path, weights):
    save(tmp_path, weights, layer_norm_epsilon=1e-3)
    write_pth(tmp_path / "m.pth", {name: a.astype(np.float32) for name, a in weights.items()})
    for config in (None, "{", '{"model_type": "llama"}'):
        if config is not None:
            (tmp_path / "config.json").write_text(config)
        with open_model(tmp_path / "m.pth") as model:
            np.testing.assert_array_equal(
                model.read("emb.weight"), weights["emb.weight"].astype(np.float32)
            )


def test_a_model_at_an_address_comes_with_its_configuration(web: Hub, tmp_path, weights):
    folder = save(tmp_path, weights, layer_norm_epsilon=1e-3)
    web.files["/m/model.safetensors"] = (folder / "model.safetensors").read_bytes()
    web.files["/m/config.json"] = b"busy"
    address = web.address.replace("127.0.0.1", "localhost") + "/m/model.safetensors"
    with pytest.raises(CheckpointError, match=r"config\.json: damaged"), open_model(address):
        pass
    # What was damaged is not kept.
    web.files["/m/config.json"] = (folder / "config.json").read_bytes()
    with open_model(address) as found, open_model(folder) as expected:
        np.testing.assert_array_equal(found.read("emb.weight"), expected.read("emb.weight"))


def test_a_model_on_the_hub_comes_with_its_configuration(web: Hub, tmp_path, weights):
    folder = save(tmp_path, weights, layer_norm_epsilon=1e-3)
    web.repositories["o/r"] = {path.name: path.read_bytes() for path in folder.glob("*.*")}
    with open_model("hf://o/r") as found, open_model(folder) as expected:
        np.testing.assert_array_equal(found.read("emb.weight"), expected.read("emb.weight"))
        assert not np.array_equal(found.read("emb.weight"), weights["emb.weight"])
