"""The whole model against the float64 reference, in one piece, in chunks, in steps, in batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import rwkv_core
from rwkv_core.conformance import reference
from rwkv_core.conformance.closeness import as_rounded, assert_close, of_model
from rwkv_core.model import Model
from rwkv_core.recurrence import AA, BB, CHANNEL_X, PP, TIME_X
from rwkv_core.tensor_ops import TensorOps

lengths = pytest.mark.parametrize("n_tokens", [1, 2, 17, 300])


def assert_state_close(
    found: np.ndarray, expected: reference.Run, t: int, tolerance: float
) -> None:
    """Hold a state [L, 5, D] against the reference's memory after token `t`."""
    found = found.astype(np.float64)
    assert_close(found[:, CHANNEL_X], expected.channel_x[t], tolerance, "channel mixing's input")
    assert_close(found[:, TIME_X], expected.time_x[t], tolerance, "time mixing's input")
    assert_close(found[:, AA] / found[:, BB], expected.mean[t], tolerance, "aa / bb")
    log_weight = found[:, PP] + np.log(found[:, BB])
    assert_close(log_weight, expected.log_weight[t], tolerance, "pp + log bb")


@lengths
def test_logits_and_state_are_the_references(
    ops: TensorOps, model: Model, tokens: list[int], expected: reference.Run, n_tokens: int
) -> None:
    logits, state = model.forward(tokens[:n_tokens])
    last = n_tokens - 1
    assert_close(model.to_numpy(logits), expected.logits[last], of_model(ops), "logits")
    assert_state_close(model.to_numpy(state), expected, last, of_model(ops))


@lengths
def test_logits_after_every_token_are_the_references(
    ops: TensorOps, model: Model, tokens: list[int], expected: reference.Run, n_tokens: int
) -> None:
    logits, state = model.forward(tokens[:n_tokens], all_logits=True)
    assert_close(model.to_numpy(logits), expected.logits[:n_tokens], of_model(ops), "logits")
    assert_state_close(model.to_numpy(state), expected, n_tokens - 1, of_model(ops))


@pytest.mark.parametrize("cut", [1, 16, 150, 299])
def test_reading_goes_on_from_a_state(
    ops: TensorOps, model: Model, tokens: list[int], expected: reference.Run, cut: int
) -> None:
    _, state = model.forward(tokens[:cut])
    logits, state = model.forward(tokens[cut:], state, all_logits=True)
    assert_close(model.to_numpy(logits), expected.logits[cut:], of_model(ops), "logits")
    assert_state_close(model.to_numpy(state), expected, 299, of_model(ops))


def test_step_by_step_is_the_references_too(
    ops: TensorOps, model: Model, tokens: list[int], expected: reference.Run
) -> None:
    state, rows = None, []
    for token in tokens[:40]:
        logits, state = model.forward([token], state)
        rows.append(model.to_numpy(logits).copy())
    assert_close(np.stack(rows), expected.logits[:40], of_model(ops), "logits")
    assert_state_close(model.to_numpy(state), expected, 39, of_model(ops))


def test_a_prompt_of_several_chunks_reads_as_two_shorter_ones(
    ops: TensorOps, model: Model, tokens: list[int]
) -> None:
    prompt = [*tokens, *tokens[:237]]
    whole, whole_state = model.forward(prompt)
    _, state = model.forward(prompt[:270])
    logits, state = model.forward(prompt[270:], state)
    assert_close(model.to_numpy(logits), model.to_numpy(whole), of_model(ops), "logits")
    rows = [TIME_X, CHANNEL_X]
    found, expected = model.to_numpy(state)[:, rows], model.to_numpy(whole_state)[:, rows]
    assert_close(found, expected, of_model(ops), "state")


@pytest.mark.parametrize("n_tokens", [1, 17])
@pytest.mark.parametrize("n_batch", [1, 3])
def test_each_row_of_a_batch_is_the_references(
    ops: TensorOps,
    model: Model,
    tokens: list[int],
    expected: reference.Run,
    n_batch: int,
    n_tokens: int,
) -> None:
    # Row i has read i tokens when the batch begins, so that no two rows are alike.
    states = [model.empty_state(), *(model.forward(tokens[:i])[1] for i in range(1, n_batch))]
    rows = [tokens[i : i + n_tokens] for i in range(n_batch)]
    batch = model.stack_states(states)
    logits, _ = model.forward(rows, batch)
    all_logits, after = model.forward(rows, batch, all_logits=True)
    for i, state in enumerate(model.unstack_state(after)):
        end = i + n_tokens
        assert_close(model.to_numpy(logits)[i], expected.logits[end - 1], of_model(ops), "last")
        assert_close(model.to_numpy(all_logits)[i], expected.logits[i:end], of_model(ops), "all")
        assert_state_close(model.to_numpy(state), expected, end - 1, of_model(ops))


def test_large_activations_overflow_nothing(
    ops: TensorOps, options: dict[str, Any], tokens: list[int], tmp_path: Path, model: Model
) -> None:
    """Channel mixing's squares go past 65504, where float16 ends; float32 does not notice."""
    weights = reference.random_weights()
    for i in range(reference.N_LAYER):
        weights[f"blocks.{i}.ffn.key.weight"] *= 400
    path = tmp_path / "large.safetensors"
    save_file({name: array.astype(np.float32) for name, array in weights.items()}, path)
    large = rwkv_core.load(path, model.backend, **options)
    found = large.to_numpy(large.forward(tokens[:17], all_logits=True)[0])
    expected = reference.run(as_rounded(ops, weights), tokens[:17]).logits
    assert_close(found, expected, of_model(ops))
