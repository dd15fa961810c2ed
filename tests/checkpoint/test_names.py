"""Files in transformers' names, and with training frameworks' prefixes, are the same model."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pth_writer import write_pth
from random_model import random_weights
from rwkv_core.checkpoint import diagnose, open_checkpoint
from rwkv_core.errors import CheckpointError

TO_TRANSFORMERS = (
    (r"^emb\.", "embeddings."),
    (r"\.ln0\.", ".pre_ln."),
    (r"\.att\.", ".attention."),
    (r"\.ffn\.", ".feed_forward."),
    (r"time_mix_k$", "time_mix_key"),
    (r"time_mix_v$", "time_mix_value"),
    (r"time_mix_r$", "time_mix_receptance"),
    (r"^(?!head)", "rwkv."),
)


PREFIXES = [
    *("module.", "model.", "_forward_module.", "_orig_mod.module.", "_fsdp_wrapped_module."),
    *("net.", "base_model.model.", "student.rwkv_4.", "actor._fsdp_wrapped_module.net."),
]


def transformers_names(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    renamed = {}
    for name, array in weights.items():
        for pattern, replacement in TO_TRANSFORMERS:
            name = re.sub(pattern, replacement, name)
        renamed[name] = array
    return renamed


def assert_same_model(path: Path, weights: dict[str, np.ndarray]) -> None:
    with open_checkpoint(path) as checkpoint:
        assert diagnose(checkpoint)[:4] == (2, 32, 128, 50)
        assert checkpoint.tensors.keys() == weights.keys()
        for name, expected in weights.items():
            np.testing.assert_array_equal(checkpoint.read(name), expected)


def test_transformers_names_are_understood(tmp_path: Path) -> None:
    weights = random_weights(2, 32, 50)
    renamed = transformers_names(weights)
    assert "rwkv.blocks.1.feed_forward.time_mix_receptance" in renamed
    save_file(renamed, tmp_path / "m.safetensors")
    assert_same_model(tmp_path / "m.safetensors", weights)


def test_the_names_of_transformers_itself_are_understood(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.RwkvConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32
    )
    transformers.RwkvForCausalLM(config).save_pretrained(tmp_path)
    with open_checkpoint(tmp_path / "model.safetensors") as checkpoint:
        assert diagnose(checkpoint)[:4] == (2, 32, 128, 50)


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    weights = random_weights(2, 32, 50)
    weights["head.weight"] = weights["emb.weight"]
    renamed = transformers_names(weights)
    del renamed["head.weight"]
    save_file(renamed, tmp_path / "m.safetensors")
    assert_same_model(tmp_path / "m.safetensors", weights)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_training_framework_s_prefix_is_dropped(tmp_path: Path, prefix: str) -> None:
    weights = random_weights(2, 32, 50)
    write_pth(tmp_path / "m.pth", {prefix + name: array for name, array in weights.items()})
    assert_same_model(tmp_path / "m.pth", weights)


WRAPPED = [
    (r"^(blocks\.\d+)\.", r"\1._orig_mod."),
    (r"^(blocks\.\d+\.(?:att|ffn))\.", r"\1._checkpoint_wrapped_module._fsdp_wrapped_module."),
    (r"^(.*)\.(weight|bias)$", r"net.\1.module.\2"),
    (r"^(.*\.key)\.weight$", r"base_model.model.\1.base_layer.weight"),
    (r"^(blocks\.\d+)\.", r"\1.inner_module."),
]


@pytest.mark.parametrize(("pattern", "replacement"), WRAPPED)
def test_wrappers_within_names_are_dropped(tmp_path: Path, pattern: str, replacement: str) -> None:
    weights = random_weights(2, 32, 50)
    renamed = {re.sub(pattern, replacement, name): array for name, array in weights.items()}
    assert renamed.keys() != weights.keys()
    write_pth(tmp_path / "m.pth", renamed)
    with open_checkpoint(tmp_path / "m.pth") as checkpoint:
        assert diagnose(checkpoint)[:4] == (2, 32, 128, 50)
        assert checkpoint.tensors.keys() == weights.keys()


def test_vectors_with_other_axes_of_length_one_are_brought_into_shape(tmp_path: Path) -> None:
    weights = random_weights(2, 32, 50)
    other = {
        name: array.reshape(1, 1, -1) if name.endswith(("decay", "first")) else array.squeeze()
        for name, array in weights.items()
    }
    write_pth(tmp_path / "m.pth", other)
    assert_same_model(tmp_path / "m.pth", weights)


def test_one_tensor_under_two_names_is_an_error(tmp_path: Path) -> None:
    array = np.ones((3, 4), np.float32)
    write_pth(tmp_path / "m.pth", {"emb.weight": array, "module.emb.weight": array})
    with pytest.raises(CheckpointError, match=r"twice, as emb\.weight and module\.emb\.weight"):
        open_checkpoint(tmp_path / "m.pth")
