"""RWKV-5, 6 and 7 as other writers lay them out are the model that BlinkDL's file is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_rwkv_cpp import header, parameter

import rwkv_core
from later_versions import SIZES, VERSIONS, later_weights
from pth_writer import write_pth
from rwkv_core.errors import CheckpointError

pytestmark = pytest.mark.needs_backend

Weights = dict[str, np.ndarray]
SMALL = SIZES[1]
TOKENS = [1, 7, 30, 2, 100]
IS_LOW_RANK = re.compile(r"\.(time_maa_w[12]|time_decay_w[12]|[wavg][12])$")


def logits(path: Path, backend: str, version: str) -> np.ndarray:
    return logits_of(rwkv_core.load(path, backend), version)


def logits_of(model: rwkv_core.Model, version: str) -> np.ndarray:
    assert model.architecture == f"rwkv{version}"
    return model.to_numpy(model.forward(TOKENS, all_logits=True)[0])


def assert_same_model(
    version: str, weights: Weights, path: Path, backend: str, atol: float = 0.0
) -> None:
    """Check that `path` holds the model of `weights`, exactly or up to rounding."""
    write_pth(path.with_name("blinkdl.pth"), weights)
    models = [rwkv_core.load(one, backend) for one in (path, path.with_name("blinkdl.pth"))]
    assert models[0].fingerprint == models[1].fingerprint, "a state of one is none of the other"
    found, expected = (logits_of(model, version) for model in models)
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def turned(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.swapaxes(array, -1, -2))


def renamed(name: str, patterns: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in patterns:
        name = re.sub(pattern, replacement, name)
    return name


FLA = (
    (r"^emb\.", "embeddings."),
    (r"^ln_out\.", "norm."),
    (r"\.ln0\.", ".pre_norm."),
    (r"\.ln1\.", ".attn_norm."),
    (r"\.ln2\.", ".ffn_norm."),
    (r"^blocks\.", "layers."),
    (r"\.att\.receptance\.", ".att.r_proj."),
    (r"\.att\.(k)ey\.|\.att\.(v)alue\.|\.att\.(o)utput\.", r".att.\1\2\3_proj."),
    (r"\.att\.ln_x\.", ".att.g_norm."),
    (r"\.att\.([wavg])0$", r".att.\1_lora.lora.2.bias"),
    (r"\.att\.([wavg])1$", r".att.\1_lora.lora.0.weight"),
    (r"\.att\.([wavg])2$", r".att.\1_lora.lora.2.weight"),
    (r"\.att\.", ".attn."),
    (r"^", "model."),
    (r"^model\.head\.", "lm_head."),
)


def fla(weights: Weights) -> Weights:
    """Return an RWKV-7 as FLA's converter writes it: no v_lora in layer 0, shares [1, 1, D]."""
    result = {}
    for name, array in weights.items():
        if re.match(r"blocks\.0\.att\.v[012]$", name):
            continue
        if IS_LOW_RANK.search(name):
            array = turned(array)
        elif array.shape[:1] == (1,) and ".att.x_" not in name:
            array = array.squeeze()
        result[renamed(name, FLA)] = array
    return result


def test_fla(tmp_path: Path, backend: str) -> None:
    weights = later_weights("7", SMALL)
    stored = fla(weights)
    for name in ("attn.k_proj.weight", "attn.w_lora.lora.2.bias", "ffn.x_k", "pre_norm.bias"):
        assert f"model.layers.0.{name}" in stored
    save_file(stored, tmp_path / "model.safetensors")
    assert_same_model("7", weights, tmp_path / "model.safetensors", backend)


@pytest.mark.parametrize(
    ("config", "runs"),
    [
        ({"head_dim": 64, "norm_eps": 1e-5}, True),
        ({"head_dim": None}, True),
        ({"head_dim": 32}, False),
        ({"norm_eps": 1e-6}, False),
        ({"norm_eps": "small"}, False),
    ],
    ids=str,
)
def test_fla_with_another_group_norm_is_refused(
    tmp_path: Path, backend: str, config: dict[str, object], runs: bool
) -> None:
    """FLA's epsilon is head_dim * norm_eps; RWKV-7's is 64e-5 for heads of any size."""
    save_file(fla(later_weights("7", SMALL)), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "rwkv7"}))
    if runs:
        assert logits(tmp_path / "model.safetensors", backend, "7").shape == (5, SMALL.n_vocab)
        return
    with pytest.raises(CheckpointError, match=r"^[^\n]*config\.json: head_dim is [^\n]*$"):
        rwkv_core.load(tmp_path / "model.safetensors", backend)


def test_fla_with_a_tied_head(tmp_path: Path, backend: str) -> None:
    weights = later_weights("7", SMALL)
    weights["head.weight"] = weights["emb.weight"]
    stored = fla(weights)
    del stored["lm_head.weight"]
    save_file(stored, tmp_path / "model.safetensors")
    assert_same_model("7", weights, tmp_path / "model.safetensors", backend)


def test_fla_with_ranks_as_wide_as_the_model(tmp_path: Path, backend: str) -> None:
    weights = later_weights("7", SMALL._replace(ranks=(192, 16, 192, 40)))
    save_file(fla(weights), tmp_path / "model.safetensors")
    assert_same_model("7", weights, tmp_path / "model.safetensors", backend)


def test_a_lora_of_an_fla_model_is_merged(tmp_path: Path, backend: str) -> None:
    weights, rng = later_weights("7", SMALL), np.random.default_rng(0)
    a, b = (rng.normal(0, 0.1, shape).astype(np.float32) for shape in ((4, 192), (192, 4)))
    name = "base_model.model.model.layers.1.attn.r_proj"
    adapter = {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    save_file(adapter, tmp_path / "adapter.safetensors")
    save_file(fla(weights), tmp_path / "model.safetensors")
    lora = rwkv_core.Lora(tmp_path / "adapter.safetensors", alpha=4.0)
    model = rwkv_core.load(tmp_path / "model.safetensors", backend, lora=lora)
    weights["blocks.1.att.receptance.weight"] += b @ a
    write_pth(tmp_path / "merged.pth", weights)
    expected = logits(tmp_path / "merged.pth", backend, "7")
    found = model.to_numpy(model.forward(TOKENS, all_logits=True)[0])
    np.testing.assert_allclose(found, expected, atol=1e-4)


LONG_NAMES = (
    (r"time_mix_k$", "time_mix_key"),
    (r"time_mix_v$", "time_mix_value"),
    (r"time_mix_r$", "time_mix_receptance"),
    (r"time_mix_g$", "time_mix_gate"),
)
TRANSFORMERS = (
    (r"^emb\.", "embeddings."),
    (r"\.ln0\.", ".pre_ln."),
    (r"\.att\.", ".attention."),
    (r"\.ffn\.", ".feed_forward."),
    (r"^(?!head)", "rwkv."),
)


@pytest.mark.parametrize("version", ["5.0", "5.1", "5.2", "6"])
def test_transformers(tmp_path: Path, backend: str, version: str) -> None:
    weights = later_weights(version, SMALL)
    names = LONG_NAMES + TRANSFORMERS
    write_pth(tmp_path / "m.bin", {renamed(name, names): w for name, w in weights.items()})
    assert_same_model(version, weights, tmp_path / "m.bin", backend)


def test_transformers_files_that_say_time_mix_for_time_maa(tmp_path: Path, backend: str) -> None:
    weights = later_weights("6", SMALL)
    names = ((r"time_maa_", "time_mix_"), *LONG_NAMES, *TRANSFORMERS)
    stored = {renamed(name, names): array for name, array in weights.items()}
    assert "rwkv.blocks.1.feed_forward.time_mix_key" in stored
    save_file(stored, tmp_path / "m.safetensors")
    assert_same_model("6", weights, tmp_path / "m.safetensors", backend)


def web_rwkv(weights: Weights, version: str, turns: int) -> Weights:
    """Write like web-rwkv's converter: float16, lower-case names, transposed low-rank matrices."""
    result = {}
    for name, array in weights.items():
        array = array.astype(np.float16)
        if IS_LOW_RANK.search(name):
            for _ in range(turns):
                array = turned(array)
        if version == "5.1" and name.endswith(("time_decay", "time_faaaa")):
            array = np.repeat(array[:, None], SMALL.head_size, axis=1)
        name = name.replace("time_faaaa", "time_first").replace("time_maa", "time_mix").lower()
        result[name] = array
    return result


@pytest.mark.parametrize("turns", [1, 2])
@pytest.mark.parametrize("version", VERSIONS)
def test_web_rwkv(tmp_path: Path, backend: str, version: str, turns: int) -> None:
    weights = later_weights(version, SMALL)
    save_file(web_rwkv(weights, version, turns), tmp_path / "model.st", {"format": "pt"})
    half = {name: array.astype(np.float16) for name, array in weights.items()}
    write_pth(tmp_path / "half.pth", half)
    # The converter writes 5.1's decay and bonus for each channel, which makes a 5.2 of it.
    as_loaded = "5.2" if version == "5.1" else version
    found = logits(tmp_path / "model.st", backend, as_loaded)
    np.testing.assert_array_equal(found, logits(tmp_path / "half.pth", backend, version))


def of_rwkv_cpp(weights: Weights, version: str, in_half: bool) -> bytes:
    """Write like rwkv.cpp's converter; see `rwkv_core.checkpoint.rwkv_cpp`."""
    stored: Weights = {}
    for name, array in weights.items():
        if version == "7" and ".att.x_" in name:
            fused = name[:-1] + "rwkvag"
            stored[fused] = np.concatenate([stored[fused], array]) if fused in stored else array
        else:
            stored[name] = array
    parts = [header(101, int(in_half))]
    for name, array in stored.items():
        if ".time_" in name:
            array = array.squeeze()
        if IS_LOW_RANK.search(name):
            array = turned(array)
        if name.endswith(".time_decay"):
            array = _stored_decay(array, version)
        elif name.endswith(".time_first"):
            array = np.exp(array).reshape(-1, 1, 1)
        elif name.endswith(".time_faaaa"):
            array = array[..., None]
        kept = (".time_", ".k_k", ".k_a", ".r_k", ".x_rwkvag", ".x_k", ".w0", ".a0", ".v0")
        if in_half and array.ndim > 1 and not any(part in name for part in kept):
            array = array.astype(np.float16)
        parts.append(parameter(name, array))
    return b"".join(parts)


def _stored_decay(array: np.ndarray, version: str) -> np.ndarray:
    if version == "6":
        return array.reshape(SMALL.n_embd // SMALL.head_size, -1, 1)
    array = np.exp(-np.exp(array))
    return array.reshape(-1, 1, 1) if version == "5.0" else array[..., None]


@pytest.mark.parametrize("in_half", [False, True])
@pytest.mark.parametrize("version", VERSIONS)
def test_rwkv_cpp(tmp_path: Path, backend: str, version: str, in_half: bool) -> None:
    weights = later_weights(version, SMALL)
    (tmp_path / "model.bin").write_bytes(of_rwkv_cpp(weights, version, in_half))
    if in_half:
        weights = {name: _rounded(name, array) for name, array in weights.items()}
    atol = 1e-5 if version.startswith("5") else 0.0  # a decay that is computed back
    assert_same_model(version, weights, tmp_path / "model.bin", backend, atol)


def _rounded(name: str, array: np.ndarray) -> np.ndarray:
    is_whole = array.ndim < 2 or ".time_" in name or array.shape[0] == 1 or name.endswith(".r_k")
    return array if is_whole else array.astype(np.float16)


@pytest.mark.parametrize("extreme", [-80.0, 5.0, 80.0])
def test_a_decay_of_0_or_1_in_rwkv_cpp_stays_that(
    tmp_path: Path, backend: str, extreme: float
) -> None:
    weights = later_weights("5.2", SMALL)
    weights["blocks.0.att.time_decay"][0] = extreme
    with np.errstate(over="ignore", under="ignore"):
        (tmp_path / "model.bin").write_bytes(of_rwkv_cpp(weights, "5.2", False))
    assert_same_model("5.2", weights, tmp_path / "model.bin", backend, 1e-5)


def test_a_decay_beyond_1_is_refused(tmp_path: Path, backend: str) -> None:
    weights = later_weights("5.2", SMALL)
    content = of_rwkv_cpp(weights, "5.2", False)
    decay = np.exp(-np.exp(weights["blocks.0.att.time_decay"]))
    assert decay.tobytes() in content
    (tmp_path / "m.bin").write_bytes(content.replace(decay.tobytes(), (decay + 2).tobytes()))
    with pytest.raises(rwkv_core.CheckpointError, match="NaN or infinite"):
        rwkv_core.load(tmp_path / "m.bin", backend)


def test_fla_s_early_files_join_the_shares(tmp_path: Path, backend: str) -> None:
    weights = later_weights("7", SMALL)
    stored = fla(weights)
    for i in range(SMALL.n_layer):
        block = f"model.layers.{i}.attn"
        shares = [stored.pop(f"{block}.x_{x}").reshape(-1) for x in "rwkvag"]
        stored[f"{block}.x_x"] = np.stack(shares)
    save_file(stored, tmp_path / "model.safetensors")
    assert_same_model("7", weights, tmp_path / "model.safetensors", backend)


def test_transformers_files_of_7_keep_blinkdl_s_names(tmp_path: Path, backend: str) -> None:
    weights = later_weights("7", SMALL)
    stored = {name if name == "head.weight" else f"model.{name}": w for name, w in weights.items()}
    save_file(stored, tmp_path / "model.safetensors")
    assert_same_model("7", weights, tmp_path / "model.safetensors", backend)
