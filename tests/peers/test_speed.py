"""The table and the plot show the measurements; the figures themselves are not tested."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rwkv")
pytest.importorskip("transformers")
image = pytest.importorskip("matplotlib.image")

import ratio_picture  # noqa: E402
import speed  # noqa: E402
import speed_report  # noqa: E402


def row(name: str, ours: bool, decode: float, prefill: float, tokens: int = 256) -> dict[str, Any]:
    return {
        "name": name, "precision": "float32", "group": "float32", "ours": ours,
        "load_seconds": 1.25, "peak_bytes": 900_000_000,
        "decode": {"tokens_per_second": decode, "rounds": [decode]},
        "prefill": [{"tokens": tokens, "tokens_per_second": prefill, "rounds": [prefill]}],
    }  # fmt: skip


@pytest.fixture
def results() -> dict[str, Any]:
    failed = {"name": "tf", "precision": "float32", "group": "float32", "ours": True}
    rows = [
        row("torch", True, 60, 600),
        row("rwkv 0.8.32", False, 24, 500),
        row("slow", False, 0.5, 2, tokens=16),
        failed | {"error": "no memory"},
    ]
    machine = {
        "cpu": "A processor", "cores": 2, "simd": ["AVX2"], "system": "Linux x86_64",
        "threads": "2", "date": "2026-01-02", "versions": {"numpy": "2.4.6", "numba": "-"},
    }  # fmt: skip
    numpy = {"read_bytes_per_second": 42e9, "gemm_flops_per_second": 150e9}
    return {"machine": machine, "numpy": numpy, "rounds": 5, "shapes": {"169M": rows}}


def test_the_table_has_the_rates_and_their_ratios_to_the_best_peer(results: dict[str, Any]) -> None:
    page = speed_report.markdown(results)
    assert "| **torch** | float32 | 60.0 | 2.50 | 600 | 1.20 | - | 1.2 | 900 |" in page
    assert "| rwkv 0.8.32 | float32 | 24.0 | 1.00 | 500 | 1.00 |" in page
    assert "| slow | float32 | 0.5 | 0.02 | 2.0 \\* 16 |" in page and "\\* Of so many" in page
    assert "tf float32 failed: no memory" in page
    for said in ("A processor, 2 cores, AVX2", "42.0 GB/s", "150 GFLOP/s", "numpy 2.4.6"):
        assert said in page
    assert "numba" not in page


def test_a_shape_without_peers_has_no_ratios(results: dict[str, Any]) -> None:
    results["shapes"]["169M"] = results["shapes"]["169M"][:1]
    assert "| **torch** | float32 | 60.0 | - | 600 | - |" in speed_report.markdown(results)


def test_the_page_and_the_plot_are_written(results: dict[str, Any], tmp_path: Path) -> None:
    speed_report.write_report(results, tmp_path)
    assert (tmp_path / "speed.md").read_text() == speed_report.markdown(results)
    height, width, _ = image.imread(tmp_path / "speed.png").shape
    assert width > 1000 and height > 100


def test_the_picture_compares_each_precision_with_peers_of_as_many_bits(
    results: dict[str, Any], tmp_path: Path
) -> None:
    four_bits = {"precision": "int4", "group": "8 and 4 bits"}
    results["shapes"]["169M"] += [
        row("numba", True, 240, 550) | four_bits,
        row("small", False, 30, 400) | {"precision": "q8", "group": "8 and 4 bits"},
    ]
    found = ratio_picture.ratios(results["shapes"]["169M"])
    assert found == [("float32", 2.5, 1.2), ("int4", 8.0, 1.1)]
    said = ratio_picture.title(found, ["rwkv", "small"])
    assert "decodes 2.5 to 8.0 times as fast as rwkv or small" in said
    assert "reads prompts 1.1 to 1.2 times as fast" in said
    ratio_picture.draw_ratios(results, tmp_path / "ratio.png")
    assert image.imread(tmp_path / "ratio.png").shape[1] > 800


def test_without_peers_there_is_no_picture_of_ratios(
    results: dict[str, Any], tmp_path: Path
) -> None:
    results["shapes"]["169M"] = results["shapes"]["169M"][:1]
    speed_report.write_report(results, tmp_path)
    assert not (tmp_path / "ratio.png").exists() and (tmp_path / "speed.png").exists()


def test_a_page_gets_the_summary_between_its_marks(results: dict[str, Any], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- speed -->\nstale\n<!-- end of speed -->\nafter\n")
    speed_report.write_summary(results, page)
    text = page.read_text()
    assert "| **torch float32** | 60.0 \\| 600 |" in text and "A processor, 2 cores" in text
    assert "stale" not in text and text.startswith("before\n") and text.endswith("\nafter\n")
    speed_report.write_summary(results, page)
    assert page.read_text() == text
    page.write_text("no marks")
    with pytest.raises(ValueError, match="no marks"):
        speed_report.write_summary(results, page)
    assert page.read_text() == "no marks"


def test_a_run_times_all_of_a_precision_in_turn(tmp_path: Path) -> None:
    arguments = ["--shape", "2x64", "--rounds", "2", "--tokens", "3", "--output", str(tmp_path)]
    speed.main([*arguments, "--only", "float32", "--only", "cpu fp32"])
    results = json.loads((tmp_path / "speed.json").read_text())
    rows = results["shapes"]["2x64"]
    ours = {row["name"]: row["precision"] for row in rows if row["ours"]}
    assert ours == dict.fromkeys(["numpy", "numba", "torch", "jax", "tf"], "float32")
    peers = [(row["name"].split()[0], row["precision"], row["group"]) for row in rows[len(ours) :]]
    assert peers == [
        ("rwkv", "cpu fp32", "float32"),
        ("transformers", "float32", "float32"),
        ("rwkv", "cpu fp32i8", "8 and 4 bits"),
    ]
    for found in rows:
        assert "error" not in found
        assert found["load_seconds"] > 0 and found["peak_bytes"] > 2**20
        assert len(found["decode"]["rounds"]) == 2
        assert [one["tokens"] for one in found["prefill"]] == [256, 1024]
    assert results["machine"]["cores"] >= 1 and results["numpy"]["read_bytes_per_second"] > 0
    assert (tmp_path / "speed.md").exists() and (tmp_path / "speed.png").exists()
