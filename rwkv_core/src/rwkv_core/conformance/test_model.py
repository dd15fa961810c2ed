"""Whole models against the float64 reference: in one piece, in chunks, token by token, in batches.

If only these tests fail, and the tests of single operations pass, the error is in `layers`,
`compile`, `embed` or `chunks`, or in memory that an operation keeps between calls.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rwkv_core.architectures.rwkv4 import AA, BB, CHANNEL_X, PP, TIME_X
from rwkv_core.backends.tensor_ops import TensorOps
from rwkv_core.conformance.closeness import assert_close, of_model
from rwkv_core.conformance.conftest import Models
from rwkv_core.conformance.references import rwkv4 as reference
from rwkv_core.conformance.references.rwkv4 import DEEP, SMALL, WIDE
from rwkv_core.conformance.shapes import token_counts
from rwkv_core.errors import OptionError
from rwkv_core.model import Model


def assert_state_close(
    found: np.ndarray, expected: reference.Run, t: int, tolerance: float
) -> None:
    """Compare a state [L, 5, D] with the reference's memory after token `t`."""
    found = found.astype(np.float64)
    after = f"state after {t + 1} tokens"
    rows = {
        "the input of channel mixing": (found[:, CHANNEL_X], expected.channel_x),
        "the input of time mixing": (found[:, TIME_X], expected.time_x),
        "aa / bb": (found[:, AA] / found[:, BB], expected.mean),
        "pp + log bb": (found[:, PP] + np.log(found[:, BB]), expected.log_weight),
    }
    for name, (row, of_all_tokens) in rows.items():
        assert_close(row, of_all_tokens[t], tolerance, f"{after}, {name} by layers")


def test_logits_and_state_are_the_references_at_every_length(
    ops: TensorOps, model: Model, tokens: list[int], expected: reference.Run
) -> None:
    for n_tokens in [n for n in token_counts(ops) if n <= 129]:
        logits, state = model.forward(tokens[:n_tokens])
        what, last = f"logits after a prompt of {n_tokens}", n_tokens - 1
        assert_close(model.to_numpy(logits), expected.logits[last], of_model(ops), what)
        assert_state_close(model.to_numpy(state), expected, last, of_model(ops))


def test_logits_after_every_token_are_the_references(
    ops: TensorOps, model: Model, tokens: list[int], expected: reference.Run
) -> None:
    for n_tokens in (1, 2, 17, 64, 300):
        logits, state = model.forward(tokens[:n_tokens], all_logits=True)
        what = f"logits after each of {n_tokens} tokens"
        assert_close(model.to_numpy(logits), expected.logits[:n_tokens], of_model(ops), what)
        assert_state_close(model.to_numpy(state), expected, n_tokens - 1, of_model(ops))


@pytest.mark.parametrize(("cut", "end"), [(1, 540), (16, 80), (299, 300)])
def test_reading_goes_on_from_a_state(
    ops: TensorOps,
    model: Model,
    tokens: list[int],
    expected: reference.Run,
    cut: int,
    end: int,
) -> None:
    """From a state, read more than a chunk, 64 tokens, or one token."""
    _, state = model.forward(tokens[:cut])
    logits, state = model.forward(tokens[cut:end], state, all_logits=True)
    what = f"logits of {end - cut} tokens after a state of {cut}"
    assert_close(model.to_numpy(logits), expected.logits[cut:end], of_model(ops), what)
    assert_state_close(model.to_numpy(state), expected, end - 1, of_model(ops))


@pytest.mark.parametrize("cut", [0, 3])
def test_a_full_chunk_after_a_state_and_without(
    ops: TensorOps, model: Model, tokens: list[int], expected: reference.Run, cut: int
) -> None:
    state = model.forward(tokens[:cut])[1] if cut else None
    logits, state = model.forward(tokens[cut : cut + 512], state)
    what = f"logits of a chunk of 512 tokens after {cut} others"
    assert_close(model.to_numpy(logits), expected.logits[cut + 511], of_model(ops), what)
    assert_state_close(model.to_numpy(state), expected, cut + 511, of_model(ops))


def test_step_by_step_is_the_references_too(
    ops: TensorOps, model: Model, tokens: list[int], expected: reference.Run
) -> None:
    state, rows = None, []
    for token in tokens[:40]:
        logits, state = model.forward([token], state)
        rows.append(model.to_numpy(logits).copy())
    what = "logits, one token per call"
    assert_close(np.stack(rows), expected.logits[:40], of_model(ops), what)
    assert_state_close(model.to_numpy(state), expected, 39, of_model(ops))


@pytest.mark.parametrize(("n_batch", "n_tokens"), [(3, 1), (5, 16)])
def test_each_row_of_a_batch_is_the_references(
    ops: TensorOps,
    model: Model,
    tokens: list[int],
    expected: reference.Run,
    n_batch: int,
    n_tokens: int,
) -> None:
    # Row i has read i tokens when the batch begins, so that no two rows are alike.
    states = [model.empty_state()]
    while len(states) < n_batch:
        states.append(model.forward(tokens[len(states) - 1 : len(states)], states[-1])[1])
    rows = [tokens[i : i + n_tokens] for i in range(n_batch)]
    batch = model.stack_states(states)
    logits, _ = model.forward(rows, batch)
    all_logits, after = model.forward(rows, batch, all_logits=True)
    for i, state in enumerate(model.unstack_state(after)):
        end, what = i + n_tokens, f"logits of row {i} in a batch of {n_batch}"
        last = model.to_numpy(logits)[i]
        assert_close(last, expected.logits[end - 1], of_model(ops), what)
        every = model.to_numpy(all_logits)[i]
        assert_close(every, expected.logits[i:end], of_model(ops), f"{what}, all of them")
        assert_state_close(model.to_numpy(state), expected, end - 1, of_model(ops))


@pytest.mark.parametrize("n_chunk", [1, 2, 16])
def test_a_chunk_beside_single_tokens_is_the_references(
    ops: TensorOps, model: Model, tokens: list[int], expected: reference.Run, n_chunk: int
) -> None:
    if not ops.ragged:
        pytest.skip("this backend reads them one after the other")
    # Row i has read i tokens; the chunk continues the first row.
    states = [model.empty_state()]
    while len(states) < 4:
        states.append(model.forward(tokens[len(states) - 1 : len(states)], states[-1])[1])
    column, batch = tokens[1:4], model.stack_states(states[1:])
    logits, after = model.forward_ragged(tokens[:n_chunk], states[0], column, batch)
    ends = [n_chunk, 2, 3, 4]
    for i, (end, state) in enumerate(zip(ends, model.unstack_state(after), strict=True)):
        what = f"logits of row {i}, a chunk of {n_chunk} tokens before three of one"
        assert_close(model.to_numpy(logits)[i], expected.logits[end - 1], of_model(ops), what)
        assert_state_close(model.to_numpy(state), expected, end - 1, of_model(ops))


@pytest.mark.parametrize("sizes", [DEEP, WIDE], ids=["13 layers", "1088 wide"])
def test_a_model_of_another_size_is_the_references(
    ops: TensorOps,
    models: Models,
    options: dict[str, Any],
    tokens: list[int],
    sizes: reference.Sizes,
) -> None:
    """Read the prompt in one piece, and token by token."""
    try:
        model = models.load(sizes, options)
    except OptionError as error:
        pytest.skip(str(error))  # The options leave no room for it.
    expected = models.expected(ops, sizes, 20)
    logits, state = model.forward(tokens[:16], all_logits=True)
    what = f"logits of a model of {sizes.n_layer} layers, {sizes.n_embd} wide"
    assert_close(model.to_numpy(logits), expected.logits[:16], of_model(ops), what)
    assert_state_close(model.to_numpy(state), expected, 15, of_model(ops))
    for t in range(16, 20):
        logits, state = model.forward([tokens[t]], state)
        assert_close(model.to_numpy(logits), expected.logits[t], of_model(ops), f"{what}, by step")
        assert_state_close(model.to_numpy(state), expected, t, of_model(ops))


def test_large_activations_overflow_nothing_and_stay_in_their_model(
    ops: TensorOps, models: Models, options: dict[str, Any], tokens: list[int], model: Model
) -> None:
    """A model is correct if channel mixing's squares exceed 65504, the largest float16.

    After other models were loaded and run on the backend, the first model must still compute with
    its own weights.
    """
    before = model.to_numpy(model.forward(tokens[:17])[0])
    loaded = [(size, models.load(SMALL, options, size)) for size in (1, 400)]
    for _ in range(2):
        for size, one in loaded:
            found = one.to_numpy(one.forward(tokens[:17], all_logits=True)[0])
            expected = models.expected(ops, SMALL, 17, size).logits
            what = f"logits with weights of channel mixing times {size}"
            assert_close(found, expected, of_model(ops), what)
    after = model.to_numpy(model.forward(tokens[:17])[0])
    assert np.array_equal(after, before), "another model of this backend has changed this one"
