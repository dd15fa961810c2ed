"""States: saved whole or not at all, refused where they do not belong."""

import os
from pathlib import Path

import numpy as np
import pytest

import rwkv_core
from byte_tokenizer import write_byte_tokenizer
from pth_writer import write_pth
from random_model import random_weights
from rwkv_core import State, StateError


def test_a_state_goes_on_where_it_was_saved(
    small_model: Path, tmp_path: Path, backend: str
) -> None:
    model = rwkv_core.load(small_model, backend=backend)
    _, state = model.forward([1, 2, 3])
    model.save_state(tmp_path / "a.state", state)
    again = rwkv_core.load(small_model, backend=backend).load_state(tmp_path / "a.state")
    assert np.array_equal(model.to_numpy(again), model.to_numpy(state))
    assert np.array_equal(model.to_numpy(again.logits), model.to_numpy(state.logits))
    expected, found = model.forward([4], state)[0], model.forward([4], again)[0]
    assert np.array_equal(model.to_numpy(found), model.to_numpy(expected))


def test_an_empty_state_and_pending_bytes_are_kept(
    small_model: Path, tmp_path: Path, backend: str
) -> None:
    model = rwkv_core.load(small_model, backend=backend)
    state = State(model.empty_state().array, None, b"\xe2\x82")
    model.save_state(tmp_path / "a.state", state)
    again = model.load_state(tmp_path / "a.state")
    assert (again.logits, again.pending) == (None, b"\xe2\x82")


@pytest.mark.parametrize("place", ["missing-folder/a.state", "a-folder"])
def test_a_place_that_cannot_be_written_is_one_line_and_leaves_nothing(
    small_model: Path, tmp_path: Path, backend: str, place: str
) -> None:
    (tmp_path / "a-folder").mkdir()
    model = rwkv_core.load(small_model, backend=backend)
    with pytest.raises(StateError, match="cannot be written") as error:
        model.save_state(tmp_path / place, model.forward([1])[1])
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["a-folder"]


@pytest.mark.parametrize("content", [b"", b"no state", b"\x10" + b"\0" * 40])
def test_a_damaged_file_is_refused(
    small_model: Path, tmp_path: Path, backend: str, content: bytes
) -> None:
    model = rwkv_core.load(small_model, backend=backend)
    (tmp_path / "a.state").write_bytes(content)
    with pytest.raises(StateError, match="not a state file, or damaged"):
        model.load_state(tmp_path / "a.state")


def test_a_state_cut_short_anywhere_is_refused(
    small_model: Path, tmp_path: Path, backend: str
) -> None:
    model = rwkv_core.load(small_model, backend=backend)
    model.save_state(tmp_path / "a.state", model.forward([1])[1])
    data = (tmp_path / "a.state").read_bytes()
    for length in (1, 7, 8, 60, len(data) // 2, len(data) - 1):
        (tmp_path / "a.state").write_bytes(data[:length])
        with pytest.raises(StateError):
            model.load_state(tmp_path / "a.state")


def test_a_missing_file_and_a_folder_are_one_line(
    small_model: Path, tmp_path: Path, backend: str
) -> None:
    model = rwkv_core.load(small_model, backend=backend)
    for place in (tmp_path / "missing.state", tmp_path):
        with pytest.raises(StateError):
            model.load_state(place)


def test_a_state_of_other_weights_is_refused(
    small_model: Path, tmp_path: Path, backend: str
) -> None:
    n_vocab = write_byte_tokenizer(tmp_path / "tokenizer.json")
    write_pth(tmp_path / "other.pth", random_weights(2, 32, n_vocab, seed=2))
    model, other = (
        rwkv_core.load(path, backend=backend) for path in (small_model, tmp_path / "other.pth")
    )
    model.save_state(tmp_path / "a.state", model.forward([1])[1])
    with pytest.raises(StateError, match=f"of model {model.fingerprint}"):
        other.load_state(tmp_path / "a.state")


def test_states_that_do_not_fit_are_refused(small_model: Path, backend: str) -> None:
    model = rwkv_core.load(small_model, backend=backend)
    _, single = model.forward([1])
    _, batch = model.forward([[1], [2]])
    with pytest.raises(StateError, match=r"found shape \[2, 5, 32\], expected \[2, 2, 5, 32\]"):
        model.forward([[1], [2]], single)
    with pytest.raises(StateError, match=r"found shape \[2, 2, 5, 32\], expected \[2, 5, 32\]"):
        model.forward([1], batch)
    with pytest.raises(StateError, match="found a ndarray"):
        model.forward([1], np.zeros((2, 5, 32)))
    with pytest.raises(StateError, match="logits of 7 tokens"):
        model.forward([1], State(single.array, single.logits[:7]))


def test_states_are_joined_and_parted(small_model: Path, backend: str) -> None:
    model = rwkv_core.load(small_model, backend=backend)
    singles = [model.forward([token])[1] for token in (1, 2, 3)]
    batch = model.stack_states(singles)
    together, _ = model.forward([[4], [5], [6]], batch)
    for i, (single, parted) in enumerate(zip(singles, model.unstack_state(batch), strict=True)):
        assert np.array_equal(model.to_numpy(parted), model.to_numpy(single))
        alone, _ = model.forward([4 + i], single)
        np.testing.assert_allclose(
            model.to_numpy(together[i]), model.to_numpy(alone), rtol=1e-5, atol=1e-5
        )
    with pytest.raises(StateError, match="no states"):
        model.stack_states([])
