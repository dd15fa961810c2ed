"""A plugin's architecture runs on every backend, with everything that the built-in ones have."""

from pathlib import Path

import numpy as np
import pytest

import rwkv_core
from pth_writer import write_pth
from rwkv_core.model_file import prequantize

SOURCE = Path(__file__).parents[1] / "plugins" / "mean_architecture.py"
D, F, V, L = 32, 64, 50, 2


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"emb.weight": (V, D), "head.weight": (V, D)}
    for i in range(L):
        shapes |= {f"blocks.{i}.inner.weight": (F, D), f"blocks.{i}.outer.weight": (D, F)}
    found = {name: rng.normal(0, 0.3, shape) for name, shape in shapes.items()}
    for norm in [f"blocks.{i}.ln1" for i in range(L)] + ["ln_out"]:
        found |= {f"{norm}.weight": rng.normal(1, 0.1, D), f"{norm}.bias": rng.normal(0, 0.1, D)}
    for i in range(L):
        found[f"blocks.{i}.share"] = rng.normal(1, 0.1, D)
    return {name: array.astype(np.float32) for name, array in found.items()}


@pytest.fixture
def path(weights, install_plugin, tmp_path: Path) -> Path:
    install_plugin("mean-architecture", SOURCE.read_text())
    write_pth(tmp_path / "mean.pth", weights)
    return tmp_path / "mean.pth"


def expected(weights: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        scaled = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
        return scaled * weights[name + ".weight"] + weights[name + ".bias"]

    x = weights["emb.weight"][tokens].astype(float)
    for i in range(L):
        mean = np.cumsum(norm(x, f"blocks.{i}.ln1"), 0) / np.arange(1, len(tokens) + 1)[:, None]
        inner = np.maximum(
            weights[f"blocks.{i}.share"] * mean @ weights[f"blocks.{i}.inner.weight"].T, 0
        )
        x = x + inner**2 @ weights[f"blocks.{i}.outer.weight"].T
    return norm(x, "ln_out") @ weights["head.weight"].T


def test_a_plugins_architecture_runs(weights, path: Path, backend: str) -> None:
    model = rwkv_core.load(path, backend)
    tokens = [3, 1, 4, 1, 5, 9, 2, 6]
    logits, state = model.forward(tokens[:5])
    logits, state = model.forward(tokens[5:], state)
    found, wanted = model.to_numpy(logits), expected(weights, tokens)[-1]
    tolerance = 0.3 if backend == "torch-quant" else 0.02
    assert model.architecture == "mean1"
    assert np.abs(found - wanted).max() <= tolerance * np.sqrt((wanted**2).mean())
    saved = path.with_name("mean.state")
    model.save_state(saved, state)
    assert np.array_equal(model.to_numpy(model.load_state(saved)), model.to_numpy(state))


def test_it_is_listed_and_its_files_are_prequantized(path: Path) -> None:
    (row,) = [one for one in rwkv_core.list_plugins() if one.name == "mean-architecture"]
    assert row.offers == {"architectures": ["mean1"]} and not row.problems
    assert prequantize(path, bits=8, group_size=32).stat().st_size < path.stat().st_size
