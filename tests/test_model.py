"""Model: tokens and a state in, logits and the next state out."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rwkv_core
from later_versions import Sizes, later_weights
from pth_writer import write_pth
from random_model import random_weights
from rwkv_core import BackendError, CheckpointError, OptionError

TOKENS = [i * 31 % 250 for i in range(40)]


def logits(model: rwkv_core.Model, *arguments: Any, **options: Any) -> np.ndarray:
    return model.to_numpy(model.forward(*arguments, **options)[0])


def test_it_says_what_it_is(small_model: Path, backend: str) -> None:
    model = rwkv_core.load(small_model, backend=backend)
    assert (model.n_layer, model.n_embd, model.backend) == (2, 32, backend)
    assert model.architecture == "rwkv4"
    matrices = model.matrices()
    assert len(matrices) == 15 and list(matrices)[-1] == "head.weight"
    assert matrices["blocks.1.ffn.value.weight"] is model.parameters.blocks[1].channel.value
    found = logits(model, [1, 2, 3])
    assert (found.shape, found.dtype) == ((model.n_vocab,), np.float32)


def test_all_logits_are_those_after_each_token(small_model: Path, backend: str) -> None:
    model = rwkv_core.load(small_model, backend=backend)
    every = logits(model, TOKENS, all_logits=True)
    assert every.shape == (len(TOKENS), model.n_vocab)
    for n_tokens in (1, 2, 17, len(TOKENS)):
        one = logits(model, TOKENS[:n_tokens])
        np.testing.assert_allclose(every[n_tokens - 1], one, rtol=1e-4, atol=1e-5)


def test_all_logits_reach_across_chunks(small_model: Path, backend: str) -> None:
    model = rwkv_core.load(small_model, backend=backend)
    tokens = TOKENS * 20
    assert len(model.ops.chunks(len(tokens))) > 1
    every = logits(model, tokens, all_logits=True)
    assert every.shape == (len(tokens), model.n_vocab)
    np.testing.assert_allclose(every[-1], logits(model, tokens), rtol=1e-4, atol=1e-5)
    rows = logits(model, [tokens, tokens], all_logits=True)
    np.testing.assert_allclose(rows[1], every, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("version", ["4", "7"])
def test_the_head_makes_logits_of_an_embedding(tmp_path: Path, backend: str, version: str) -> None:
    sizes = Sizes(2, 64, 32, 224, 50, (8, 12, 16, 20))
    weights = random_weights(2, 64, 50) if version == "4" else later_weights(version, sizes)
    write_pth(tmp_path / "model.pth", weights)
    model = rwkv_core.load(tmp_path / "model.pth", backend=backend)
    tokens = [i * 31 % 50 for i in range(20)]
    _, state = model.forward(tokens[:7])
    found = model.to_numpy(model.embed(tokens[7:], state))
    assert (found.shape, found.dtype) == ((64,), np.float32)
    expected = logits(model, tokens)
    # torch-quant keeps the head in 8 bits.
    close = {"rtol": 0.1, "atol": 0.3} if backend == "torch-quant" else {"rtol": 1e-3, "atol": 1e-3}
    np.testing.assert_allclose(weights["head.weight"] @ found, expected, **close)
    rows = model.to_numpy(model.embed([tokens[7:]] * 2, model.stack_states([state, state])))
    np.testing.assert_allclose(rows, [found, found], rtol=1e-3, atol=1e-4)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(cuts=st.lists(st.integers(1, len(TOKENS) - 1), max_size=6))
def test_where_a_text_is_cut_does_not_matter(
    small_model: Path, backend: str, cuts: list[int]
) -> None:
    model = rwkv_core.load(small_model, backend=backend)
    edges = [0, *sorted(set(cuts)), len(TOKENS)]
    state = None
    for start, end in pairwise(edges):
        found, state = model.forward(TOKENS[start:end], state)
    np.testing.assert_allclose(model.to_numpy(found), logits(model, TOKENS), rtol=1e-4, atol=1e-5)


def test_a_state_never_changes(small_model: Path, backend: str) -> None:
    model = rwkv_core.load(small_model, backend=backend)
    _, state = model.forward(TOKENS)
    before, after = model.to_numpy(state).copy(), model.to_numpy(state.logits).copy()
    for _ in range(3):
        model.forward([5, 6], state)
    assert np.array_equal(model.to_numpy(state), before)
    assert np.array_equal(model.to_numpy(state.logits), after)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "at least one token"),
        ([[], []], "at least one token"),
        ([[1, 2], [3]], "equal lengths"),
        ([[[1]]], "at least one token"),
        ([1.0], "whole numbers"),
        ([True], "whole numbers"),
        (["a"], "whole numbers"),
        ("text", "at least one token"),
        ([None], "whole numbers"),
        ([2**70], "whole numbers"),
        ([-1], "found -1, expected 0 to"),
        ([3, 10**6], "found 1000000, expected 0 to"),
    ],
)
def test_unusable_tokens_are_one_line(
    small_model: Path, backend: str, tokens: Any, message: str
) -> None:
    model = rwkv_core.load(small_model, backend=backend)
    with pytest.raises(OptionError, match=message) as error:
        model.forward(tokens)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("tokens", [np.array([1, 2], np.uint16), (1, 2), [np.int32(1), 2]])
def test_whole_numbers_of_any_kind_are_tokens(small_model: Path, backend: str, tokens: Any) -> None:
    model = rwkv_core.load(small_model, backend=backend)
    assert np.array_equal(logits(model, tokens), logits(model, [1, 2]))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_a_files_type_is_no_matter_but_for_rounding(
    tmp_path: Path, backend: str, dtype: Any
) -> None:
    weights = random_weights(2, 32, 300, seed=3)
    rounded = {name: w.astype(dtype) for name, w in weights.items()}
    write_pth(tmp_path / "a.pth", rounded)
    write_pth(tmp_path / "b.pth", {name: w.astype(np.float32) for name, w in rounded.items()})
    one, other = (rwkv_core.load(tmp_path / name, backend=backend) for name in ("a.pth", "b.pth"))
    assert one.fingerprint == other.fingerprint
    np.testing.assert_allclose(logits(one, TOKENS[:9]), logits(other, TOKENS[:9]), rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_matrix_that_is_not_finite_is_refused(tmp_path: Path, backend: str, value: float) -> None:
    weights = random_weights(2, 32, 300)
    weights["blocks.1.ffn.key.weight"][3, 4] = value
    write_pth(tmp_path / "bad.pth", weights)
    with pytest.raises(CheckpointError, match=r"bad\.pth: blocks\.1\.ffn\.key\.weight holds 1 NaN"):
        rwkv_core.load(tmp_path / "bad.pth", backend=backend)


@pytest.mark.parametrize("path", [None, 5, b"model.pth", ["model.pth"]])
def test_what_is_no_path_is_one_line(path: Any) -> None:
    with pytest.raises(CheckpointError) as error:
        rwkv_core.load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("backend", [5, "", ["numpy"]])
def test_what_is_no_backend_is_one_line(small_model: Path, backend: Any) -> None:
    with pytest.raises(BackendError) as error:
        rwkv_core.load(small_model, backend=backend)
    assert "\n" not in str(error.value)


def test_loading_reports_its_progress(small_model: Path, backend: str) -> None:
    seen: list[tuple[int, int]] = []
    rwkv_core.load(small_model, backend=backend, on_progress=lambda *x: seen.append(x))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1] > 0


def test_the_file_may_go_once_it_is_loaded(tmp_path: Path, backend: str) -> None:
    path = tmp_path / "a.pth"
    write_pth(path, random_weights(2, 32, 300, dtype=np.float16))
    model = rwkv_core.load(path, backend=backend)
    expected = logits(model, TOKENS[:5])
    path.write_bytes(b"")
    assert np.array_equal(logits(model, TOKENS[:5]), expected)
