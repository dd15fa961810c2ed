"""llama.cpp's .gguf of RWKV-6 and 7 is the model that BlinkDL's file is."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rwkv_core
from later_versions import SIZES, later_weights
from pth_writer import write_pth
from rwkv_core.checkpoint import diagnose, open_checkpoint
from rwkv_core.errors import CheckpointError

gguf = pytest.importorskip("gguf")

Weights = dict[str, np.ndarray]
SMALL = SIZES[1]
TOKENS = [1, 7, 30, 2, 100]
RESCALE_EVERY = 2
NAMES = (
    (r"^emb\.", "token_embd."),
    (r"^blocks\.0\.ln0\.", "token_embd_norm."),
    (r"^ln_out\.", "output_norm."),
    (r"^head\.", "output."),
    (r"^blocks\.", "blk."),
    (r"\.ln1\.", ".attn_norm."),
    (r"\.ln2\.", ".attn_norm_2."),
    (r"\.att\.ln_x\.", ".time_mix_ln."),
    (r"\.att\.time_maa_([xwkvrg])$", r".time_mix_lerp_\1"),
    (r"\.att\.time_maa_w([12])$", r".time_mix_w\1"),
    (r"\.att\.time_faaaa$", ".time_mix_first"),
    (r"\.att\.time_decay", ".time_mix_decay"),
    (r"\.ffn\.(?:time_maa|x)_([kr])$", r".channel_mix_lerp_\1"),
    (r"\.att\.", ".time_mix_"),
    (r"\.ffn\.", ".channel_mix_"),
    (r"(?<!\.weight)(?<!\.bias)$", ".weight"),
)
FUSED = {"6": "wkvrg", "7": "rwkvag"}
MATRIX = re.compile(r"(key|value|receptance|gate|output|emb|head)\.weight$")
LOW_RANK = re.compile(r"\.(time_maa_w[12]|time_decay_w[12]|[wavg][12])$")


def converted(weights: Weights, version: str, is_fused: bool = True) -> Weights:
    """Return the tensors that llama.cpp's converter writes, in float32."""
    result: Weights = {}
    shares: dict[str, dict[str, np.ndarray]] = {}
    for name, array in weights.items():
        share = re.match(r"(blocks\.\d+)\.att\.(?:time_maa|x)_([wkvrga])$", name)
        if share and is_fused:
            shares.setdefault(share[1], {})[share[2]] = array
            continue
        if LOW_RANK.search(name):
            array = np.ascontiguousarray(np.swapaxes(array, -1, -2))
        elif name.endswith(".r_k"):
            array = array.reshape(-1)
        elif array.shape[:2] == (1, 1):
            array = array.squeeze()
        deep = re.match(r"blocks\.(\d+)\.(att\.output|ffn\.value)", name)
        if version == "6" and deep:
            array = array / np.float32(2 ** (int(deep[1]) // RESCALE_EVERY))
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        result[name] = array
    for block, parts in shares.items():
        fused = np.stack([parts[x].reshape(1, 1, -1) for x in FUSED[version]])
        result[f"{block.replace('blocks', 'blk')}.time_mix_lerp_fused.weight"] = fused
    return result


def write_gguf(
    path: Path, tensors: Weights, version: str, kind: str = "F32", **changes: Any
) -> None:
    """Write them with the `gguf` package, with matrices in `kind`."""
    values = {
        "architecture": f"rwkv{version}", "epsilon": 1e-5, "head_size": SMALL.head_size,
    } | changes  # fmt: skip
    writer = gguf.GGUFWriter(path, values["architecture"])
    writer.add_layer_norm_eps(values["epsilon"])
    writer.add_wkv_head_size(values["head_size"])
    writer.add_token_list(["a", "b" * 300])
    writer.add_array("tokenizer.ggml.token_type", [1, 2, 3])
    if version == "6":
        writer.add_rescale_every_n_layers(RESCALE_EVERY)
    for name, array in tensors.items():
        if array.ndim != 2 or kind == "F32" or array.shape[-1] % 32:
            writer.add_tensor(name, array.astype(np.float32))
        elif kind == "F16":
            writer.add_tensor(name, array.astype(np.float16))
        else:
            quant = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quantize(array, quant), raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(path: Path, backend: str) -> np.ndarray:
    model = rwkv_core.load(path, backend)
    return model.to_numpy(model.forward(TOKENS, all_logits=True)[0])


@pytest.mark.needs_backend
@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("version", ["6", "7"])
def test_a_float32_file_is_the_model(
    tmp_path: Path, backend: str, version: str, is_fused: bool
) -> None:
    if version == "7" and not is_fused:
        pytest.skip("llama.cpp has no such RWKV-7")
    weights = later_weights(version, SMALL)
    write_gguf(tmp_path / "m.gguf", converted(weights, version, is_fused), version)
    write_pth(tmp_path / "m.pth", weights)
    assert rwkv_core.load(tmp_path / "m.gguf", backend).architecture == f"rwkv{version}"
    found, expected = (logits(tmp_path / f"m.{suffix}", backend) for suffix in ("gguf", "pth"))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
@pytest.mark.parametrize("version", ["6", "7"])
def test_short_types_are_read_as_the_gguf_package_reads_them(
    tmp_path: Path, version: str, kind: str
) -> None:
    weights = later_weights(version, SMALL)
    write_gguf(tmp_path / "m.gguf", converted(weights, version), version, kind)
    stored = {
        one.name: gguf.dequantize(one.data, one.tensor_type)
        for one in gguf.GGUFReader(tmp_path / "m.gguf").tensors
    }
    with open_checkpoint(tmp_path / "m.gguf") as checkpoint:
        assert checkpoint.format == "gguf"
        config = diagnose(checkpoint)
        for name in config.weights():
            found = checkpoint.read(name)
            assert found.dtype == checkpoint.tensors[name].dtype
            assert found.shape == checkpoint.tensors[name].shape
            (renamed,) = converted({name: weights[name]}, version, is_fused=False)
            share = re.search(r"lerp_([wkvrga])\.weight$|mix_x_([rwkvag])\.weight$", renamed)
            if share and "channel" not in renamed:
                block = renamed.split(".time_mix")[0]
                letter = share[1] or share[2]
                expected = stored[f"{block}.time_mix_lerp_fused.weight"][
                    FUSED[version].index(letter)
                ]
            else:
                expected = stored[renamed]
            if LOW_RANK.search(name):
                expected = np.swapaxes(expected, -1, -2)
            deep = re.match(r"blocks\.(\d+)\.(att\.output|ffn\.value)", name)
            if version == "6" and deep:
                expected = expected * 2 ** (int(deep[1]) // RESCALE_EVERY)
            np.testing.assert_array_equal(found.reshape(-1), expected.reshape(-1), name)
            rounding = 0.02 * np.abs(weights[name]).max()
            assert np.abs(found.reshape(-1) - weights[name].reshape(-1)).max() <= rounding


@pytest.mark.needs_backend
def test_a_q8_0_file_prequantizes_and_generates_close_to_the_model(
    tmp_path: Path, backend: str
) -> None:
    weights = later_weights("7", SMALL)
    write_gguf(tmp_path / "m.gguf", converted(weights, "7"), "7", "Q8_0")
    write_pth(tmp_path / "m.pth", weights)
    path = rwkv_core.prequantize(tmp_path / "m.gguf", group_size=32)
    expected = logits(tmp_path / "m.pth", backend)
    for one in (tmp_path / "m.gguf", path):
        off = np.sqrt(np.mean((logits(one, backend) - expected) ** 2))
        assert off <= 0.03 * np.sqrt(np.mean(expected**2))


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught, open_checkpoint(path) as checkpoint:
        diagnose(checkpoint)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "llama"}, "'llama', expected rwkv6 or rwkv7"),
        ({"architecture": "rwkv6qwen2"}, "'rwkv6qwen2', expected rwkv6 or rwkv7"),
        ({"epsilon": 1e-6}, "epsilon"),
        ({"head_size": 0}, "heads have a size of 0"),
        ({"kind": "Q4_0"}, "GGML type 2"),
    ],
)
def test_what_it_cannot_be_read_as_is_a_line(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    tensors = converted(later_weights("7", SMALL), "7")
    write_gguf(tmp_path / "m.gguf", tensors, "7", **changes)
    assert message in refusal(tmp_path / "m.gguf")


def test_another_version_of_gguf_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
    assert "GGUF version 1, expected 2 or 3" in refusal(tmp_path / "m.gguf")


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write_gguf(path, {"token_embd.weight": np.ones((3, 64), np.float32)}, "7", "Q8_0")
    return path.read_bytes()


def test_a_file_cut_short_anywhere_is_a_line(tmp_path: Path, small_file: bytes) -> None:
    for length in range(4, len(small_file) - 32, 7):
        (tmp_path / "m.gguf").write_bytes(small_file[:length])
        refusal(tmp_path / "m.gguf")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bytes_never_do_worse_than_an_error(
    tmp_path_factory: pytest.TempPathFactory,
    small_file: bytes,
    flips: list[tuple[int, int]],
) -> None:
    path, content = tmp_path_factory.getbasetemp() / "flipped.gguf", bytearray(small_file)
    for position, mask in flips:
        content[4 + position % (len(content) - 4)] ^= mask
    path.write_bytes(content)
    try:
        with open_checkpoint(path) as checkpoint:
            for name in checkpoint.tensors:
                checkpoint.read(name).copy()
    except CheckpointError as error:
        assert str(error).count("\n") <= 1 and "failed to open" not in str(error)
