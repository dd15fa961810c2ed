"""Each command runs an RWKV-7."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import rwkv_core
from byte_tokenizer import write_byte_tokenizer
from later_versions import VERSIONS, Sizes, later_weights
from pth_writer import write_pth
from rwkv_core import Lora
from rwkv_core.cli import main

pytestmark = pytest.mark.needs_backend

TEXT = "A cat sat on the mat. " * 20
RANK, ALPHA = 4, 8.0


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> Sizes:
    n_vocab = write_byte_tokenizer(tmp_path_factory.getbasetemp() / "tokenizer.json")
    return Sizes(2, 128, 32, 512, n_vocab, (8, 12, 16, 20))


@pytest.fixture(scope="module")
def model(sizes: Sizes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seven")
    write_byte_tokenizer(folder / "tokenizer.json")
    write_pth(folder / "seven.pth", later_weights("7", sizes))
    (folder / "text.txt").write_text(TEXT)
    return folder / "seven.pth"


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_vram_counts_its_parameters_and_its_state(
    model: Path, sizes: Sizes, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (row,) = json.loads(printed(capsys, "vram", "-m", model, "--json"))
    unused = ("blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2")
    weights = later_weights("7", sizes)
    assert row["parameters"] == sum(
        array.size for name, array in weights.items() if name not in unused
    )
    rows = sizes.n_layer * (2 + sizes.head_size) * sizes.n_embd
    assert row["state"] == 4 * (rows + sizes.n_vocab)


def test_perplexity_compares_precisions(
    model: Path, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = model.with_name("text.txt")
    out = printed(capsys, "perplexity", text, "-m", model, "-b", backend, "--compare", "--json")
    by_name = {row["precision"]: row for row in json.loads(out)["precisions"]}
    assert by_name["float32"]["divergence"] == 0
    assert 0 < by_name["int8"]["divergence"] < by_name["int4"]["divergence"]


def test_prequantize_writes_a_file_that_generates(
    model: Path, tmp_path: Path, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "small.pqth"
    printed(capsys, "prequantize", model, "--output", small)
    arguments = ["-b", backend, "-n", "5", "--tokenizer", model.with_name("tokenizer.json")]
    assert printed(capsys, "generate", "a", "-m", small, *arguments)


def test_bench_times_it(model: Path, backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(
        capsys, "bench", "-m", model, "-b", backend, "--rounds", "1", "--prefill", "8", "--json"
    )
    found = json.loads(out)
    assert found["decode"]["tokens_per_second"] > 0 and found["prefill"][0]["share"] > 0


def test_verify_passes(backend: str, capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(printed(capsys, "verify", "-b", backend, "--json"))
    assert {row["status"] for row in rows} == {"pass"}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_lora_is_merged_as_by_hand(
    version: str, sizes: Sizes, tmp_path: Path, backend: str
) -> None:
    weights, rng = later_weights(version, sizes), np.random.default_rng(1)
    lora, merged = {}, dict(weights)
    for name in ("blocks.0.att.key", "blocks.1.att.receptance", "blocks.1.ffn.value"):
        rows, columns = weights[f"{name}.weight"].shape
        a, b = rng.normal(0, 0.1, (RANK, columns)), rng.normal(0, 0.1, (rows, RANK))
        lora |= {f"{name}.lora_A": a.astype(np.float32), f"{name}.lora_B": b.astype(np.float32)}
        merged[f"{name}.weight"] = (weights[f"{name}.weight"] + b @ a * (ALPHA / RANK)).astype(
            np.float32
        )
    whole = "blocks.1.att.x_k" if version == "7" else "blocks.1.att.time_decay"
    lora[whole] = merged[whole] = weights[whole] * np.float32(0.9)
    for name, tensors in (("base", weights), ("merged", merged), ("lora", lora)):
        write_pth(tmp_path / f"{name}.pth", tensors)
    expected = rwkv_core.load(tmp_path / "merged.pth", backend)
    found = rwkv_core.load(
        tmp_path / "base.pth", backend, lora=Lora(tmp_path / "lora.pth", alpha=ALPHA)
    )
    np.testing.assert_allclose(
        found.to_numpy(found.forward([1, 2, 3])[0]),
        expected.to_numpy(expected.forward([1, 2, 3])[0]),
        atol=1e-4,
    )


def test_a_peft_lora_is_merged(model: Path, sizes: Sizes, tmp_path: Path, backend: str) -> None:
    rng, name = np.random.default_rng(2), "base_model.model.blocks.1.att.key"
    a, b = (rng.normal(0, 0.1, s).astype(np.float32) for s in ((RANK, 128), (128, RANK)))
    save_file(
        {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b},
        tmp_path / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "lora_alpha": ALPHA, "r": RANK}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    weights = later_weights("7", sizes)
    weights["blocks.1.att.key.weight"] += b @ a * np.float32(ALPHA / RANK)
    write_pth(tmp_path / "merged.pth", weights)
    found = rwkv_core.load(model, backend, lora=tmp_path / "adapter_model.safetensors")
    expected = rwkv_core.load(tmp_path / "merged.pth", backend)
    np.testing.assert_allclose(
        found.to_numpy(found.forward([1, 2, 3])[0]),
        expected.to_numpy(expected.forward([1, 2, 3])[0]),
        atol=1e-4,
    )
