"""Logits agree with those of transformers and of the `rwkv` package, over one set of weights.

Run with `tests` on the path, where both peers are installed; without them there is nothing to do.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import rwkv_core
from peers import Peer, Rwkv, Transformers, transformers_names
from pth_writer import write_pth
from random_model import random_weights

pytest.importorskip("rwkv")
pytest.importorskip("transformers")

# Layers, width, vocabulary. (transformers has no model of one layer.)
SIZES = [(2, 32, 50), (3, 64, 101), (6, 128, 257)]
TOLERANCE = 1e-4
BACKENDS = [
    row.name
    for row in rwkv_core.list_backends()
    if row.status == "ready"
    and any(option.name == "dtype" and "float32" in option.choices for option in row.options)
]

lengths = pytest.mark.parametrize("n_tokens", [1, 2, 17, 300])
backends = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(scope="module", params=SIZES, ids="{0[0]} layers of {0[1]}".format)
def weights(request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    n_layer, n_embd, n_vocab = request.param
    return random_weights(n_layer, n_embd, n_vocab, seed=n_layer)


@pytest.fixture(scope="module")
def path(weights: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peers") / "model.pth"
    write_pth(path, weights)
    return path


@pytest.fixture(scope="module", params=["transformers", "rwkv"])
def peer(request: pytest.FixtureRequest, weights: dict[str, np.ndarray], path: Path) -> Peer:
    return Transformers(weights) if request.param == "transformers" else Rwkv(path)


def tokens_for(weights: dict[str, np.ndarray], n_tokens: int) -> list[int]:
    return np.random.default_rng(0).integers(0, len(weights["emb.weight"]), n_tokens).tolist()


def assert_same_logits(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.max(np.abs(found - expected)) <= TOLERANCE * np.sqrt(np.mean(expected**2))


@backends
@lengths
def test_logits_are_the_peers(
    weights: dict[str, np.ndarray], path: Path, peer: Peer, backend: str, n_tokens: int
) -> None:
    tokens = tokens_for(weights, n_tokens)
    model = rwkv_core.load(path, backend, dtype="float32")
    logits, _ = model.forward(tokens)
    expected, _ = peer.forward(tokens)
    assert_same_logits(model.to_numpy(logits), expected)


@backends
@pytest.mark.parametrize("cut", [1, 16, 299])
def test_logits_are_the_peers_going_on_from_a_state(
    weights: dict[str, np.ndarray], path: Path, peer: Peer, backend: str, cut: int
) -> None:
    tokens = tokens_for(weights, 300)
    model = rwkv_core.load(path, backend, dtype="float32")
    _, state = model.forward(tokens[:cut])
    _, peer_state = peer.forward(tokens[:cut])
    logits, _ = model.forward(tokens[cut:], state)
    expected, _ = peer.forward(tokens[cut:], peer_state)
    assert_same_logits(model.to_numpy(logits), expected)


@backends
def test_logits_are_the_peers_one_token_at_a_time(
    weights: dict[str, np.ndarray], path: Path, peer: Peer, backend: str
) -> None:
    model = rwkv_core.load(path, backend, dtype="float32")
    state = peer_state = None
    for token in tokens_for(weights, 40):
        logits, state = model.forward([token], state)
        expected, peer_state = peer.forward([token], peer_state)
        assert_same_logits(model.to_numpy(logits), expected)


@backends
def test_a_file_in_transformers_names_gives_the_same_logits(
    weights: dict[str, np.ndarray], path: Path, backend: str, tmp_path: Path
) -> None:
    tokens = tokens_for(weights, 17)
    save_file(transformers_names(weights), tmp_path / "model.safetensors")
    theirs = rwkv_core.load(tmp_path / "model.safetensors", backend, dtype="float32")
    ours = rwkv_core.load(path, backend, dtype="float32")
    found = theirs.to_numpy(theirs.forward(tokens)[0])
    assert np.array_equal(found, ours.to_numpy(ours.forward(tokens)[0]))
    assert theirs.fingerprint == ours.fingerprint


@backends
def test_a_file_that_transformers_saved_gives_its_logits(
    weights: dict[str, np.ndarray], backend: str, tmp_path: Path
) -> None:
    tokens = tokens_for(weights, 17)
    peer = Transformers(weights)
    peer.model.save_pretrained(tmp_path)
    model = rwkv_core.load(tmp_path / "model.safetensors", backend, dtype="float32")
    assert_same_logits(model.to_numpy(model.forward(tokens)[0]), peer.forward(tokens)[0])
