"""RWKV-5, 6 and 7 agree with the `rwkv` package on every backend, over one set of weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import rwkv_core
from later_versions import SIZES, VERSIONS, Sizes, later_weights
from pth_writer import write_pth

pytest.importorskip("rwkv")

TOLERANCE = 1e-4
LENGTHS = (1, 2, 17, 300)
BACKENDS = [
    row.name
    for row in rwkv_core.list_backends()
    if row.status == "ready" and row.name != "torch-quant"
]
# Where each shape of a model is compiled, which takes half a minute, one shape does.
COMPILING = ("jax", "tf")
LOADED = [
    (sizes, name)
    for sizes in SIZES
    for name in BACKENDS
    if sizes == SIZES[1] or name not in COMPILING
]


class Case(NamedTuple):
    version: str
    path: Path
    tokens: list[int]
    expected: np.ndarray

    def assert_close(self, logits: np.ndarray, n_tokens: int) -> None:
        expected = self.expected[LENGTHS.index(n_tokens)]
        limit = TOLERANCE * np.sqrt(np.mean(expected**2))
        assert np.max(np.abs(logits - expected)) <= limit, f"after {n_tokens} tokens"


class Loaded(NamedTuple):
    case: Case
    model: rwkv_core.Model


def options_for(backend: str, path: Path) -> dict[str, Any]:
    """With these the variants do what they are for: much is streamed, and heads are split."""
    if backend == "torch-stream":
        return {"target": 0.7e-9 * path.stat().st_size}
    return {"devices": ["cpu", "cpu"]} if backend == "torch-split" else {}


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return request.param


Cases = dict[Sizes | str, Case]


@pytest.fixture(scope="module")
def make_cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Cases]:
    return cache(lambda version: cases_in(tmp_path_factory.mktemp("later"), version))


@pytest.fixture(scope="module")
def cases(version: str, make_cases: Callable[[str], Cases]) -> Cases:
    return make_cases(version)


def cases_in(folder: Path, version: str) -> Cases:
    """A model of each size, and "tuned" begins from the state in `tuned.pth` beside it."""
    paths = {sizes: folder / f"{sizes.n_embd} wide.pth" for sizes in SIZES}
    for sizes, path in paths.items():
        write_pth(path, later_weights(version, sizes))
    both, tuned = folder / "both.pth", tuned_state(SIZES[1])
    write_pth(folder / "tuned.pth", tuned)
    write_pth(both, later_weights(version, SIZES[1]) | tuned)
    tokens = {path: tokens_for(sizes) for sizes, path in paths.items()}
    tokens[both] = tokens_for(SIZES[1])
    logits = logits_of_rwkv(version, tokens)
    found = {
        sizes: Case(version, path, tokens[path], logits[path]) for sizes, path in paths.items()
    }
    return found | {"tuned": Case(version, paths[SIZES[1]], tokens[both], logits[both])}


def tokens_for(sizes: Sizes) -> list[int]:
    return np.random.default_rng(0).integers(0, sizes.n_vocab, LENGTHS[-1]).tolist()


def tuned_state(sizes: Sizes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    shape = (sizes.n_embd // sizes.head_size, sizes.head_size, sizes.head_size)
    return {
        f"blocks.{i}.att.time_state": rng.normal(0.0, 0.3, shape).astype(np.float32)
        for i in range(sizes.n_layer)
    }


@pytest.fixture(
    scope="module", params=LOADED, ids=[f"{name}-{sizes.n_embd} wide" for sizes, name in LOADED]
)
def loaded(request: pytest.FixtureRequest, cases: Cases) -> Loaded:
    """Loaded once for all tests: some backends compile for each model."""
    sizes, backend = request.param
    case = cases[sizes]
    options = options_for(backend, case.path)
    return Loaded(case, rwkv_core.load(case.path, backend, dtype="float32", **options))


def logits_of_rwkv(version: str, tokens: dict[Path, list[int]]) -> dict[Path, np.ndarray]:
    """Return each model's logits after LENGTHS of its tokens, from one process for all."""
    for path, some in tokens.items():
        path.with_suffix(".json").write_text(json.dumps([some[:n] for n in LENGTHS]))
    script = Path(__file__).with_name("rwkv_process.py")
    variables = {"RWKV_V7_ON": "1"} if version == "7" else {}
    subprocess.run(
        [sys.executable, script, *tokens], env=os.environ | variables, check=True, timeout=300
    )
    return {path: np.load(path.with_suffix(".npz"))["logits"] for path in tokens}


def test_logits_are_the_peers(loaded: Loaded) -> None:
    case, model = loaded
    assert model.architecture == f"rwkv{case.version}"
    for n_tokens in LENGTHS:
        logits, _ = model.forward(case.tokens[:n_tokens])
        case.assert_close(model.to_numpy(logits), n_tokens)


def test_logits_are_the_peers_going_on_from_a_state(loaded: Loaded) -> None:
    """Tokens are read one by one, a few together, and more than a chunk of 256."""
    case, model = loaded
    logits, state = None, None
    for token in case.tokens[:17]:
        logits, state = model.forward([token], state)
    case.assert_close(model.to_numpy(logits), 17)
    logits, state = model.forward(case.tokens[17:40], state)
    logits, state = model.forward(case.tokens[40:], state)
    case.assert_close(model.to_numpy(logits), 300)


def test_a_batch_is_its_rows(loaded: Loaded) -> None:
    case, model = loaded
    if model.backend in COMPILING:
        pytest.skip("the conformance suite has batches of each version, and compiles them")
    _, state = model.forward(case.tokens[17:20])
    rows = [case.tokens[20:37], case.tokens[:17]]
    batch = model.stack_states([state, model.empty_state()])
    logits, after = model.forward(rows, batch, all_logits=True)
    case.assert_close(model.to_numpy(logits)[1, -1], 17)
    alone, _ = model.forward(rows[0], state)
    scale = np.abs(case.expected).max()
    np.testing.assert_allclose(
        model.to_numpy(logits)[0, -1], model.to_numpy(alone), atol=TOLERANCE * scale
    )
    _, alone_after = model.forward(case.tokens[:17])
    second = model.to_numpy(model.unstack_state(after)[1])
    found = model.to_numpy(alone_after)
    np.testing.assert_allclose(second, found, atol=TOLERANCE * max(1, np.abs(found).max()))


def test_a_tuned_state_begins_as_it_does_in_the_peer(cases: Cases) -> None:
    case = cases["tuned"]
    model = rwkv_core.load(case.path, "numpy", dtype="float32")
    state = model.load_state(case.path.with_name("tuned.pth"))
    for n_tokens in LENGTHS:
        case.assert_close(model.to_numpy(model.forward(case.tokens[:n_tokens], state)[0]), n_tokens)
