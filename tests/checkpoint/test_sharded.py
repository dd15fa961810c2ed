"""A model in several files is read by its index or folder; files elsewhere are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_names import transformers_names

import rwkv_core
from hub_server import Hub
from pth_writer import write_pth
from random_model import random_weights
from rwkv_core.checkpoint import diagnose, open_checkpoint
from rwkv_core.checkpoint.fingerprint import fingerprint_of
from rwkv_core.checkpoint.folder import model_bytes
from rwkv_core.errors import CheckpointError, DownloadError
from rwkv_core.model_file import model_files, prequantize
from rwkv_core.sources import local_file

INDEX = {"safetensors": "model.safetensors.index.json", "bin": "pytorch_model.bin.index.json"}


def save_shards(folder: Path, weights: dict[str, np.ndarray], suffix: str, n: int = 3) -> Path:
    """Save a model like transformers' save_pretrained. Return the index."""
    folder.mkdir(exist_ok=True)
    names, places = list(weights), {}
    for i in range(n):
        shard = f"model-{i + 1:05}-of-{n:05}.{suffix}"
        part = {name: weights[name] for name in names[i::n]}
        places |= dict.fromkeys(part, shard)
        (
            save_file(part, folder / shard)
            if suffix == "safetensors"
            else write_pth(folder / shard, part)
        )
    index = folder / INDEX[suffix]
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


@pytest.mark.parametrize("suffix", INDEX)
def test_shards_are_one_model(tmp_path: Path, suffix: str) -> None:
    weights = random_weights(2, 32, 50)
    index = save_shards(tmp_path / "m", transformers_names(weights), suffix)
    write_pth(tmp_path / "whole.pth", weights)
    with open_checkpoint(tmp_path / "whole.pth") as whole:
        fingerprint = fingerprint_of(whole, diagnose(whole))
    for path in (index, index.parent):
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.path == index
            assert diagnose(checkpoint)[:4] == (2, 32, 128, 50)
            assert fingerprint_of(checkpoint, diagnose(checkpoint)) == fingerprint
            for name, expected in weights.items():
                np.testing.assert_array_equal(checkpoint.read(name), expected)
    assert prequantize(index, group_size=32).parent == index.parent


def test_a_tied_head_of_shards_is_the_embedding(tmp_path: Path) -> None:
    weights = transformers_names(random_weights(1, 32, 50))
    del weights["head.weight"]
    with open_checkpoint(save_shards(tmp_path, weights, "safetensors")) as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("head.weight"), checkpoint.read("emb.weight"))


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught, open_checkpoint(path):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        *("../secret", "/etc/passwd", "..", "", ".", "a/b", "..\\secret", "C:secret", "a\\nb"),
        *("n" * 256, 5, None, ["a"]),
    ],
)
def test_an_index_never_leaves_its_folder(tmp_path: Path, name: object) -> None:
    write_pth(tmp_path / "secret", {"x": np.ones(3, np.float32)})
    index = save_shards(tmp_path / "m", {"x": np.ones(3, np.float32)}, "safetensors", 1)
    index.write_text(json.dumps({"weight_map": {"x": name}}))
    assert "expected the name of a file beside the index" in refusal(index)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "{" * 100_000]
)
def test_a_malformed_index_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    message = refusal(tmp_path / "model.safetensors.index.json")
    assert "index of a model's shards" in message or "empty" in message or "no known" in message


def test_a_shard_that_is_missing_damaged_or_without_its_tensor_is_named(tmp_path: Path) -> None:
    index = save_shards(tmp_path, random_weights(1, 8, 10), "safetensors", 2)
    first, second = sorted(tmp_path.glob("model-*"))
    content = second.read_bytes()
    second.write_bytes(content[:-4])
    assert f"{second}: truncated or damaged" in refusal(index)
    second.write_bytes(b"<html>" + content)
    assert f"{second}: a shard of {index.name} that is neither" in refusal(index)
    second.write_bytes(first.read_bytes())
    assert f"is in {second.name}, which does not hold it" in refusal(index)
    second.unlink()
    assert f"{second}: no such file; {index.name} needs it" in refusal(index)


def test_a_folder_of_one_model_is_that_model_and_of_several_none(tmp_path: Path) -> None:
    write_pth(tmp_path / "a.pth", {"x": np.ones(3, np.float32)})
    (tmp_path / "README.md").write_text("about it")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.path == tmp_path / "a.pth"
    write_pth(tmp_path / "b.pth", {"x": np.ones(3, np.float32)})
    assert "a folder with several models (a.pth, b.pth); name one" in refusal(tmp_path)


@pytest.mark.parametrize(
    "name", ["model.fp16.safetensors.index.json", "model.safetensors.index.fp16.json"]
)
def test_a_folder_of_a_variant_alone_is_that_model(tmp_path: Path, name: str) -> None:
    index = save_shards(tmp_path, random_weights(1, 32, 10), "safetensors")
    variant = index.rename(tmp_path / name)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.path == variant
    quantized = prequantize(variant, group_size=32)
    assert quantized.name in ("model.fp16.pqth", "model.pqth")
    quantized.unlink()
    (tmp_path / "other.index.json").write_text(variant.read_text())
    assert f"several models ({', '.join(sorted([name, 'other.index.json']))}" in refusal(tmp_path)


def test_a_folder_of_shards_without_their_index_says_what_is_missing(tmp_path: Path) -> None:
    index = save_shards(tmp_path, random_weights(1, 8, 10), "safetensors", 2)
    index.unlink()
    message = refusal(tmp_path)
    assert "parts of a model (model-00001-of-00002.safetensors, model-00002-of-" in message
    assert "without their .index.json" in message


def test_a_model_in_several_files_is_one_of_the_folder_s_models(tmp_path: Path) -> None:
    index = save_shards(tmp_path, random_weights(1, 8, 10), "safetensors", 2)
    write_pth(tmp_path / "a.pth", random_weights(1, 8, 10))
    (tmp_path / "of_something_else.index.json").write_text('{"a": 1}')
    assert model_files(tmp_path) == [tmp_path / "a.pth", index]
    (tmp_path / "itself.index.json").write_text('{"weight_map": {"a": "itself.index.json"}}')
    assert tmp_path / "itself.index.json" in model_files(tmp_path)
    assert model_bytes(index) == sum(path.stat().st_size for path in tmp_path.glob("model-*"))


@pytest.mark.needs_backend
def test_a_folder_with_its_tokenizer_is_loaded(small_model: Path, tmp_path: Path) -> None:
    with open_checkpoint(small_model) as checkpoint:
        weights = {name: checkpoint.read(name).copy() for name in checkpoint.tensors}
    save_shards(tmp_path, weights, "bin")
    (tmp_path / "tokenizer.json").write_bytes(small_model.with_name("tokenizer.json").read_bytes())
    found = rwkv_core.RWKV(tmp_path).generate(5, temperature=0).tokens
    assert found == rwkv_core.RWKV(small_model).generate(5, temperature=0).tokens


@pytest.mark.parametrize("suffix", INDEX)
def test_shards_on_the_hub_are_fetched_with_their_index(
    web: Hub, tmp_path: Path, suffix: str
) -> None:
    index = save_shards(tmp_path / "m", random_weights(1, 8, 10), suffix)
    files = {path.name: path.read_bytes() for path in index.parent.iterdir()}
    web.repositories["owner/repo"] = files
    for address in (f"hf://owner/repo/{index.name}", "hf://owner/repo", "hf://owner/repo@main/"):
        with open_checkpoint(local_file(address)) as checkpoint:
            assert diagnose(checkpoint)[:4] == (1, 8, 32, 10)
    del files[min(files)]
    web.repositories["owner/other"] = files
    with pytest.raises(CheckpointError, match=r"no such file; .* needs it"):
        open_checkpoint(local_file("hf://owner/other"))


def test_shards_at_an_address_are_fetched_with_their_index(web: Hub, tmp_path: Path) -> None:
    index = save_shards(tmp_path / "m", random_weights(1, 8, 10), "safetensors")
    files = {f"/m/{path.name}": path.read_bytes() for path in index.parent.iterdir()}
    web.files |= files
    address = web.address.replace("127.0.0.1", "localhost") + f"/m/{index.name}"
    with open_checkpoint(local_file(address)) as checkpoint:
        assert diagnose(checkpoint)[:4] == (1, 8, 32, 10)
    other = address.replace("/m/", "/other/")
    web.files[f"/other/{index.name}"] = index.read_bytes()
    with pytest.raises(DownloadError, match=r"/other/model-00001-.*: no such file there"):
        local_file(other)


def test_a_repository_without_a_model_is_one_line(web: Hub) -> None:
    web.repositories["owner/repo"] = {"README.md": b""}
    with pytest.raises(DownloadError, match=r"hf://owner/repo: holds none of model\.safetensors, "):
        local_file("hf://owner/repo")
    with pytest.raises(DownloadError, match="expected hf://owner/repo/file"):
        local_file(f"hf://owner/repo#sha256={'0' * 64}")
