"""Whole models of RWKV-5 to 7 against the float64 references.

If only these tests fail, and the tests of single operations pass, the error is in `layers` or
`compile`, in the values that one layer passes to the next, or in the backend's kernel for a token.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rwkv_core
from rwkv_core.backends.tensor_ops import TensorOps
from rwkv_core.conformance.closeness import assert_close, of_model
from rwkv_core.conformance.conftest import LATER_VERSIONS, Loaded, later_weights, save_weights
from rwkv_core.conformance.references import blocks
from rwkv_core.conformance.references.blocks import MEDIUM, SMALL, WIDE

Load = Callable[[str, blocks.Sizes], Loaded]

CHANNEL_X, TIME_X, FIRST_OF_S = range(3)  # rows of a layer's state [2 + N, D]


@pytest.fixture(scope="session", params=["rwkv5.2", "rwkv6", "rwkv7"])
def later(request: pytest.FixtureRequest, load_later: Load) -> Loaded:
    """A model of three layers."""
    return load_later(request.param, MEDIUM)


def assert_state_close(found: np.ndarray, expected: blocks.Run, t: int, tolerance: float) -> None:
    """Compare a state [L, 2 + N, D] with the reference's memory after token `t`."""
    n_layer, n_row, width = found.shape
    s = expected.s[t].transpose(0, 2, 1, 3).reshape(n_layer, n_row - FIRST_OF_S, width)
    rows = {
        "the input of channel mixing": (found[:, CHANNEL_X], expected.channel_x[t]),
        "the input of time mixing": (found[:, TIME_X], expected.time_x[t]),
    }
    what = f"state after {t + 1} tokens"
    for name, (row, right) in rows.items():
        assert_close(row, right, tolerance, f"{what}, {name} by layers")
    # Products of keys and values are up to 12 times their RMS, and so are their errors.
    found = found[:, FIRST_OF_S:]
    assert_close(found, s, 2 * tolerance, f"{what}, S, a row for each value channel, by layers")


def check(
    ops: TensorOps, loaded: Loaded, tokens: list[int], start: int, end: int, state: Any, what: str
) -> Any:
    """Read tokens `start` to `end`; compare all logits and the state with the reference's."""
    model, expected = loaded
    logits, state = model.forward(tokens[start:end], state, all_logits=True)
    what = f"{model.architecture}: logits of {what}"
    assert_close(model.to_numpy(logits), expected.logits[start:end], of_model(ops), what)
    assert_state_close(model.to_numpy(state), expected, end - 1, of_model(ops))
    return state


def test_logits_and_state_are_the_references_at_every_length(
    ops: TensorOps, later: Loaded, tokens: list[int]
) -> None:
    model, expected = later
    for n_tokens in (1, 2, 17, 80):
        logits, state = model.forward(tokens[:n_tokens])
        what = f"{model.architecture}: logits after a prompt of {n_tokens}"
        found = model.to_numpy(logits)
        assert_close(found, expected.logits[n_tokens - 1], of_model(ops), what)
        assert_state_close(model.to_numpy(state), expected, n_tokens - 1, of_model(ops))


def test_reading_goes_on_from_a_state(ops: TensorOps, later: Loaded, tokens: list[int]) -> None:
    _, state = later.model.forward(tokens[:1])
    check(ops, later, tokens, 1, 65, state, "64 tokens after a state")


def test_step_by_step_is_the_references_too(
    ops: TensorOps, later: Loaded, tokens: list[int]
) -> None:
    model, expected = later
    state, rows = None, []
    for token in tokens[:20]:
        logits, state = model.forward([token], state)
        rows.append(model.to_numpy(logits).copy())
    what = f"{model.architecture}: logits, one token per call"
    assert_close(np.stack(rows), expected.logits[:20], of_model(ops), what)
    assert_state_close(model.to_numpy(state), expected, 19, of_model(ops))


@pytest.mark.parametrize(("n_batch", "n_tokens"), [(3, 1), (3, 16)])
def test_each_row_of_a_batch_is_the_references(
    ops: TensorOps, later: Loaded, tokens: list[int], n_batch: int, n_tokens: int
) -> None:
    model, expected = later
    # Row i has read i tokens when the batch begins, so that no two rows are alike.
    states = [model.empty_state()]
    while len(states) < n_batch:
        states.append(model.forward(tokens[len(states) - 1 : len(states)], states[-1])[1])
    rows = [tokens[i : i + n_tokens] for i in range(n_batch)]
    logits, after = model.forward(rows, model.stack_states(states))
    for i, state in enumerate(model.unstack_state(after)):
        last, what = i + n_tokens - 1, f"{model.architecture}: logits of row {i} of {n_batch}"
        assert_close(model.to_numpy(logits)[i], expected.logits[last], of_model(ops), what)
        assert_state_close(model.to_numpy(state), expected, last, of_model(ops))


def test_a_chunk_beside_single_tokens_is_the_references(
    ops: TensorOps, later: Loaded, tokens: list[int]
) -> None:
    if not ops.ragged:
        pytest.skip("this backend reads them one after the other")
    model, expected = later
    _, first = model.forward(tokens[:1])
    _, second = model.forward(tokens[:2])
    batch = model.stack_states([first, second])
    logits, after = model.forward_ragged(tokens[:16], model.empty_state(), tokens[1:3], batch)
    for i, (end, state) in enumerate(zip([16, 2, 3], model.unstack_state(after), strict=True)):
        what = f"{model.architecture}: logits of row {i}, 16 tokens before two of one"
        assert_close(model.to_numpy(logits)[i], expected.logits[end - 1], of_model(ops), what)
        assert_state_close(model.to_numpy(state), expected, end - 1, of_model(ops))


def test_states_and_results_outlive_the_next_call(later: Loaded, tokens: list[int]) -> None:
    model = later.model
    for n_tokens in (1, 16):
        _, given = model.forward(tokens[:2])
        logits, state = model.forward(tokens[:n_tokens], given)
        kept = [given.array, given.logits, logits, state.array]
        before = [model.to_numpy(array).copy() for array in kept]
        for _ in range(3):
            model.forward(tokens[-n_tokens:], state)
        again, _ = model.forward(tokens[:n_tokens], given)
        for array, copy in zip(kept, before, strict=True):
            assert np.array_equal(model.to_numpy(array), copy)
        assert np.array_equal(model.to_numpy(again), before[2]), "the same call, other logits"


@pytest.mark.parametrize("version", LATER_VERSIONS)
def test_a_model_of_another_size_is_the_references(
    ops: TensorOps, load_later: Load, tokens: list[int], version: str
) -> None:
    """Read a prompt, then single tokens. Two layers, with heads of 64 except in 5.0 and 5.1."""
    sizes = SMALL if version in ("rwkv5.0", "rwkv5.1") else WIDE
    loaded = load_later(version, sizes)
    assert loaded.model.architecture == version
    state = check(ops, loaded, tokens, 0, 16, None, f"a model {sizes.n_embd} wide")
    for t in range(16, 20):
        state = check(ops, loaded, tokens, t, t + 1, state, f"a model {sizes.n_embd} wide, by step")


def test_layer_0_of_rwkv7_needs_no_v0(
    request: pytest.FixtureRequest,
    load_later: Load,
    options: dict[str, Any],
    tokens: list[int],
    tmp_path: Path,
) -> None:
    """Files may have v0, v1 and v2 in layer 0, but these tensors are not used."""
    model = load_later("rwkv7", MEDIUM).model
    unused = [f"blocks.0.att.v{i}" for i in range(3)]
    weights = dict(later_weights("rwkv7", MEDIUM))
    for name in unused:
        del weights[name]
    save_weights(tmp_path / "model.safetensors", weights)
    backend = request.config.getoption("rwkv_backend")
    without = rwkv_core.load(tmp_path / "model.safetensors", backend, **options)
    found, expected = (one.to_numpy(one.forward(tokens[:1])[0]) for one in (without, model))
    assert np.array_equal(found, expected)
