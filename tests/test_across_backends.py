"""What one backend writes, another continues; the same seed gives the same text on all."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

import rwkv_core
from conftest import READY

PAIRS = list(permutations(READY, 2))
pytestmark = pytest.mark.skipif(not PAIRS, reason="needs two backends")


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_saved_state_continues_on_the_other(
    small_model: Path, tmp_path: Path, first: str, second: str
) -> None:
    one = rwkv_core.load(small_model, backend=first)
    other = rwkv_core.load(small_model, backend=second)
    tokens = [i * 7 % one.n_vocab for i in range(40)]
    _, state = one.forward(tokens[:25])
    one.save_state(tmp_path / "s.state", state)
    found, _ = other.forward(tokens[25:], other.load_state(tmp_path / "s.state"))
    expected, _ = one.forward(tokens)
    np.testing.assert_allclose(other.to_numpy(found), one.to_numpy(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_state_in_memory_is_refused_by_the_other(
    small_model: Path, first: str, second: str
) -> None:
    _, state = rwkv_core.load(small_model, backend=first).forward([1])
    with pytest.raises(rwkv_core.StateError, match="save it there and load it here"):
        rwkv_core.load(small_model, backend=second).forward([1], state)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_seed_gives_the_same_text(first: str, second: str) -> None:
    texts = []
    for backend in (first, second):
        rwkv = rwkv_core.RWKV("prose", backend=backend)
        rwkv.load_context("The old man looked at the sea and")
        texts.append(rwkv.generate(120, temperature=0.9, top_p=0.9, seed=42).text)
    assert texts[0] == texts[1]
    assert len(texts[0]) > 100


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_session_saved_in_the_middle_goes_on_alike(
    tmp_path: Path, first: str, second: str
) -> None:
    one, other = (rwkv_core.RWKV("prose", backend=name) for name in (first, second))
    one.load_context("Pierre said nothing, but")
    one.save_state(tmp_path / "s.state")
    other.load_state(tmp_path / "s.state")
    assert one.generate(40, temperature=0).text == other.generate(40, temperature=0).text
