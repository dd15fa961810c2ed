"""States and results do not change, whatever is computed from them afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwkv_core.conformance.conftest import Models
from rwkv_core.conformance.references import rwkv4 as reference
from rwkv_core.model import Model
from rwkv_core.state import State

lengths = pytest.mark.parametrize("n_tokens", [1, 17])


def logits_of(model: Model, tokens: list[int], state: State | None = None) -> np.ndarray:
    return model.to_numpy(model.forward(tokens, state)[0]).copy()


@lengths
def test_forward_leaves_the_state_it_is_given_alone(
    model: Model, tokens: list[int], n_tokens: int
) -> None:
    _, state = model.forward(tokens[:5])
    before = model.to_numpy(state).copy(), model.to_numpy(state.logits).copy()
    model.forward(tokens[:n_tokens], state)
    model.forward(tokens[:n_tokens], state, all_logits=True)
    assert np.array_equal(model.to_numpy(state), before[0])
    assert np.array_equal(model.to_numpy(state.logits), before[1])


@lengths
def test_results_outlive_the_next_call(model: Model, tokens: list[int], n_tokens: int) -> None:
    logits, state = model.forward(tokens[:n_tokens])
    before = model.to_numpy(logits).copy(), model.to_numpy(state).copy()
    for _ in range(3):
        model.forward(tokens[-n_tokens:])
        model.forward(tokens[-n_tokens:], state)
    assert np.array_equal(model.to_numpy(logits), before[0])
    assert np.array_equal(model.to_numpy(state), before[1])


@lengths
def test_the_same_call_gives_the_same_bits(model: Model, tokens: list[int], n_tokens: int) -> None:
    _, state = model.forward(tokens[:5])
    first = logits_of(model, tokens[:n_tokens], state)
    model.forward(tokens[:64])
    for _ in range(3):
        assert np.array_equal(logits_of(model, tokens[:n_tokens], state), first)


def test_a_kept_state_is_a_way_back(model: Model, tokens: list[int]) -> None:
    _, kept = model.forward(tokens[:10])
    first = logits_of(model, tokens[10:20], kept)
    state = kept
    for token in tokens[50:60]:
        _, state = model.forward([token], state)
    assert np.array_equal(logits_of(model, tokens[10:20], kept), first)


def test_a_state_survives_the_way_through_numpy(model: Model, tokens: list[int]) -> None:
    _, state = model.forward(tokens[:20])
    again = State(model.ops.vector(model.to_numpy(state)))
    assert np.array_equal(model.to_numpy(again), model.to_numpy(state))
    assert np.array_equal(
        logits_of(model, tokens[20:84], again), logits_of(model, tokens[20:84], state)
    )


def test_a_saved_state_goes_on_in_another_model_of_the_same_weights(
    model: Model, models: Models, options: dict[str, Any], tokens: list[int], tmp_path: Path
) -> None:
    _, state = model.forward(tokens[:20])
    model.save_state(tmp_path / "a.state", state)
    other = models.load(reference.MEDIUM, options)
    loaded = other.load_state(tmp_path / "a.state")
    assert np.array_equal(other.to_numpy(loaded), model.to_numpy(state))
    assert np.array_equal(other.to_numpy(loaded.logits), model.to_numpy(state.logits))
    found, expected = (
        logits_of(other, tokens[20:84], loaded),
        logits_of(model, tokens[20:84], state),
    )
    assert np.array_equal(found, expected)


def test_an_empty_state_is_as_good_as_none(model: Model, tokens: list[int]) -> None:
    found = logits_of(model, tokens[:5], model.empty_state())
    assert np.array_equal(found, logits_of(model, tokens[:5]))


def test_states_stack_and_unstack_unchanged(model: Model, tokens: list[int]) -> None:
    states = [model.forward(tokens[: i + 1])[1] for i in range(3)]
    for found, state in zip(model.unstack_state(model.stack_states(states)), states, strict=True):
        assert np.array_equal(model.to_numpy(found), model.to_numpy(state))
        assert np.array_equal(model.to_numpy(found.logits), model.to_numpy(state.logits))


def test_two_models_do_not_disturb_each_other(
    model: Model, models: Models, options: dict[str, Any], tokens: list[int]
) -> None:
    before = logits_of(model, tokens[:17])
    other = models.load(reference.SMALL, options)
    other.forward(tokens[:17])
    other.forward([1])
    assert np.array_equal(logits_of(model, tokens[:17]), before)
