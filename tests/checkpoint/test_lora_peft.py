"""Adapters as PEFT saves them: merged by their configuration, and other kinds refused by name."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_lora import ADAPTED, ALPHA, KEY, N_VOCAB, RANK, factors, merged, refusal_of

from pth_writer import write_pth
from random_model import random_weights
from rwkv_core import Lora
from rwkv_core.model_file import open_model


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return random_weights(2, 32, N_VOCAB, seed=1, dtype=np.float16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, weights) -> Path:
    """The model that the adapters were trained on."""
    folder = tmp_path_factory.mktemp("lora")
    write_pth(folder / "base.pth", weights)
    return folder


def peft_names(factors: dict[str, np.ndarray], adapter: str = "") -> dict[str, np.ndarray]:
    """Save an adapter of a transformers model like PEFT; with a name, like its state dict."""
    renamed = {}
    for name, array in factors.items():
        for ours, theirs in ((".att.", ".attention."), (".ffn.", ".feed_forward.")):
            name = name.replace(ours, theirs)
        end = (f".{adapter}" if adapter else "") + ".weight"
        renamed[f"base_model.model.rwkv.{name}{end}"] = array
    return renamed


def write_adapter(folder: Path, tensors: dict[str, np.ndarray], **config: object) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "init_lora_weights": True}
    (folder / "adapter_config.json").write_text(json.dumps(about | config))
    return folder


@pytest.mark.parametrize("adapter", ["", "default", "mine"])
@pytest.mark.parametrize("name", ["", "adapter_model.safetensors"])
def test_an_adapter_of_peft_is_merged_by_its_configuration(
    tmp_path, folder, weights, adapter, name
):
    tensors = peft_names(factors(weights), adapter)
    tensors["base_model.model.rwkv.ln_out.modules_to_save.weight"] = np.ones(32, np.float32)
    peft = write_adapter(tmp_path / "peft", tensors) / name
    expected = merged(weights, factors(weights))
    with open_model(folder / "base.pth", lora=peft) as model:
        for adapted in ADAPTED:
            np.testing.assert_array_equal(
                model.read(f"{adapted}.weight"), expected[f"{adapted}.weight"]
            )
        assert (model.read("ln_out.weight") == 1).all()
    with open_model(folder / "base.pth", lora=Lora(peft, 2 * ALPHA)) as model:
        stronger = merged(weights, factors(weights), 2 * ALPHA)
        np.testing.assert_array_equal(model.read(f"{KEY}.weight"), stronger[f"{KEY}.weight"])


def test_alpha_over_the_root_of_the_rank(tmp_path, folder, weights):
    peft = write_adapter(tmp_path / "peft", peft_names(factors(weights)), use_rslora=True)
    expected = merged(weights, factors(weights), ALPHA * RANK**0.5)
    with open_model(folder / "base.pth", lora=peft) as model:
        np.testing.assert_array_equal(model.read(f"{KEY}.weight"), expected[f"{KEY}.weight"])


def test_fan_in_fan_out_is_ignored_as_peft_ignores_it_for_linear_layers(tmp_path, folder, weights):
    peft = write_adapter(tmp_path / "peft", peft_names(factors(weights)), fan_in_fan_out=True)
    expected = merged(weights, factors(weights))
    with open_model(folder / "base.pth", lora=peft) as model:
        np.testing.assert_array_equal(model.read(f"{KEY}.weight"), expected[f"{KEY}.weight"])


def test_an_adapter_of_the_embedding_is_transposed(tmp_path, folder, weights):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-8, 9, s).astype(np.float32) / 64 for s in ((2, N_VOCAB), (32, 2)))
    prefix = "base_model.model.rwkv.embeddings.lora_embedding_"
    peft = write_adapter(tmp_path / "peft", {f"{prefix}A": a, f"{prefix}B": b})
    with open_model(folder / "base.pth", lora=peft) as model:
        found = model.read("emb.weight")
    expected = weights["emb.weight"].astype(np.float64) + (b @ a).T * (ALPHA / 2)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_whole_peft_model_that_is_not_merged(tmp_path, weights):
    whole = {f"base_model.model.{name}": array for name, array in weights.items()}
    for name in ADAPTED:
        base = whole.pop(f"base_model.model.{name}.weight")
        whole[f"base_model.model.{name}.base_layer.weight"] = base
    adapter = factors(weights)
    whole |= {f"base_model.model.{name}.default.weight": array for name, array in adapter.items()}
    write_pth(tmp_path / "m.pth", whole)
    with open_model(tmp_path / "m.pth", lora=Lora(alpha=ALPHA)) as model:
        expected = merged(weights, adapter)[f"{KEY}.weight"]
        np.testing.assert_array_equal(model.read(f"{KEY}.weight"), expected)


OTHER_ADAPTERS = {
    "DoRA": f"base_model.model.{KEY}.lora_magnitude_vector",
    "LoRA with biases": f"base_model.model.{KEY}.lora_B.bias",
    "PiSSA": f"{KEY}.init_lora_A",
    "Bone": f"{KEY}.bone",
    "IA3": f"base_model.model.{KEY}.ia3_l",
    "LoHa": f"base_model.model.{KEY}.hada_w1_a",
    "LoKr": f"base_model.model.{KEY}.lokr_w1",
    "OFT": f"base_model.model.{KEY}.oft_r",
    "VeRA": f"base_model.model.{KEY}.vera_lambda_b",
    "AdaLoRA": f"base_model.model.{KEY}.lora_E",
}


@pytest.mark.parametrize("kind", OTHER_ADAPTERS)
def test_another_kind_of_adapter_is_named_by_its_tensors(tmp_path, folder, weights, kind):
    tensors = factors(weights) | {OTHER_ADAPTERS[kind]: np.ones((4, 32), np.float32)}
    write_pth(tmp_path / "adapter.pth", tensors)
    message = refusal_of(folder, tmp_path / "adapter.pth", 1)
    assert f"the kind {kind} " in message and "merge it with" in message


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("DoRA", {"use_dora": True}),
        ("QALoRA", {"use_qalora": True}),
        ("aLoRA", {"alora_invocation_tokens": [1, 2]}),
        ("LoRA with replicated layers", {"layer_replication": [[0, 2], [1, 2]]}),
        ("LoRA with biases", {"lora_bias": True}),
        ("PiSSA", {"init_lora_weights": "pissa_niter_16"}),
        ("OLoRA", {"init_lora_weights": "olora"}),
        ("LoRA-GA", {"init_lora_weights": "lora_ga"}),
        ("BONE", {"peft_type": "BONE"}),
        ("LOHA", {"peft_type": "LOHA"}),
        ("alpha_pattern", {"alpha_pattern": {"key": 4}}),
        ("LoRA alpha: found 'much'", {"lora_alpha": "much"}),
        ("LoRA alpha: not given", {"lora_alpha": None}),
    ],
)
def test_a_configuration_that_is_no_plain_lora_s_is_refused(
    tmp_path, folder, weights, kind, config
):
    peft = write_adapter(tmp_path / "peft", peft_names(factors(weights)), **config)
    assert kind in refusal_of(folder, peft, None)


@pytest.mark.parametrize("content", ["", "{", "[1]", "[" * 100_000])
def test_a_configuration_that_is_damaged_is_one_line(tmp_path, folder, weights, content):
    peft = write_adapter(tmp_path / "peft", peft_names(factors(weights)))
    (peft / "adapter_config.json").write_text(content)
    assert "adapter_config.json: damaged: is no JSON object" in refusal_of(folder, peft, None)


@pytest.mark.parametrize("prefix", ["", "rwkv."])
def test_an_adapter_of_the_head_alone_is_merged(tmp_path, folder, weights, prefix):
    a, b = np.full((2, 32), 0.5, np.float32), np.full((N_VOCAB, 2), 0.25, np.float32)
    names = [f"base_model.model.{prefix}head.lora_{part}.weight" for part in "AB"]
    peft = write_adapter(tmp_path / "peft", dict(zip(names, (a, b), strict=True)))
    with open_model(folder / "base.pth", lora=peft) as model:
        found = model.read("head.weight")
    expected = weights["head.weight"].astype(np.float32) + (b @ a) * (ALPHA / 2)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_two_adapters_in_one_file_are_refused(tmp_path, folder, weights):
    both = peft_names(factors(weights), "one") | peft_names(factors(weights), "two")
    assert "two adapters" in refusal_of(folder, write_adapter(tmp_path / "p", both), 1)


def test_an_adapter_on_the_hub_comes_with_its_configuration(web, tmp_path, folder, weights):
    peft = write_adapter(tmp_path / "peft", peft_names(factors(weights)))
    web.repositories["o/r"] = {path.name: path.read_bytes() for path in peft.iterdir()}
    expected = merged(weights, factors(weights))[f"{KEY}.weight"]
    for address in ("hf://o/r", "hf://o/r/adapter_model.safetensors"):
        with open_model(folder / "base.pth", lora=address) as model:
            np.testing.assert_array_equal(model.read(f"{KEY}.weight"), expected)
