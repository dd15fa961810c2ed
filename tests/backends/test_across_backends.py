"""A state of one backend continues on another; the same seed gives the same text on all."""

from functools import cache
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

import rwkv_core
from float32_backends import FLOAT32

PAIRS = list(permutations(FLOAT32, 2))
pytestmark = pytest.mark.skipif(not PAIRS, reason="needs two backends")
PROMPT = "The old man looked at the sea and"


@cache
def load(path: str | Path, backend: str) -> rwkv_core.Model:
    return rwkv_core.load(path, backend=backend, dtype="float32")


@cache
def generated(backend: str) -> str:
    rwkv = rwkv_core.RWKV(load("prose", backend))
    rwkv.load_context(PROMPT)
    return rwkv.generate(120, temperature=0.9, top_p=0.9, seed=42).text


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_saved_state_continues_on_the_other(
    small_model: Path, tmp_path: Path, first: str, second: str
) -> None:
    one, other = load(small_model, first), load(small_model, second)
    tokens = [i * 7 % one.n_vocab for i in range(40)]
    _, state = one.forward(tokens[:25])
    one.save_state(tmp_path / "s.state", state)
    found, _ = other.forward(tokens[25:], other.load_state(tmp_path / "s.state"))
    expected, _ = one.forward(tokens)
    np.testing.assert_allclose(other.to_numpy(found), one.to_numpy(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_state_in_memory_is_refused_where_arrays_are_of_another_library(
    small_model: Path, first: str, second: str
) -> None:
    _, state = load(small_model, first).forward([1])
    other = load(small_model, second)
    if type(state.array) is type(other.empty_state().array):
        pytest.skip("both have arrays of one library")
    with pytest.raises(rwkv_core.StateError, match="save it there and load it here"):
        other.forward([1], state)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_seed_gives_the_same_text(first: str, second: str) -> None:
    assert generated(first) == generated(second)
    assert len(generated(first)) > 100


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_session_saved_in_the_middle_goes_on_alike(
    tmp_path: Path, first: str, second: str
) -> None:
    one, other = (rwkv_core.RWKV(load("prose", name)) for name in (first, second))
    one.load_context("Pierre said nothing, but")
    one.save_state(tmp_path / "s.state")
    other.load_state(tmp_path / "s.state")
    assert one.generate(20, temperature=0).text == other.generate(20, temperature=0).text
