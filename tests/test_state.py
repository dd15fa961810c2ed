"""States are saved completely or not at all, and refused by other models."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import rwkv_core
from byte_tokenizer import write_byte_tokenizer
from pth_writer import write_pth
from random_model import random_weights
from rwkv_core import State, StateError
from rwkv_core.state import check_place, load_state, load_transcript, save_state


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


@pytest.mark.needs_backend
def test_a_text_is_kept_with_a_state_and_none_with_a_state_of_before(
    small_model: Path, tmp_path: Path, backend: str
) -> None:
    model = rwkv_core.load(small_model, backend=backend)
    _, state = model.forward([1])
    for transcript in ("", "a talk\n\N{GRINNING FACE}"):
        model.save_state(tmp_path / "a.state", state, transcript)
        assert load_transcript(tmp_path / "a.state") == transcript
        model.load_state(tmp_path / "a.state")
    with pytest.raises(StateError, match="not a state file"):
        load_transcript(small_model)


def test_an_empty_state_and_pending_bytes_are_kept(
    small_model: Path, tmp_path: Path, backend: str
) -> None:
    model = rwkv_core.load(small_model, backend=backend)
    state = State(model.empty_state().array, None, b"\xe2\x82")
    model.save_state(tmp_path / "a.state", state)
    again = model.load_state(tmp_path / "a.state")
    assert (again.logits, again.pending) == (None, b"\xe2\x82")


@pytest.mark.needs_backend
@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("missing-folder/a.state", "cannot be written: No such file"),
        ("a-folder", "no regular file"),
        ("a-pipe", "no regular file"),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line_and_leaves_nothing(
    small_model: Path, tmp_path: Path, backend: str, place: str, message: str
) -> None:
    (tmp_path / "a-folder").mkdir()
    os.mkfifo(tmp_path / "a-pipe")
    model = rwkv_core.load(small_model, backend=backend)
    with pytest.raises(StateError, match=message) as error:
        model.save_state(tmp_path / place, model.forward([1])[1])
    assert "\n" not in str(error.value)
    assert sorted(os.listdir(tmp_path)) == ["a-folder", "a-pipe"]
    with pytest.raises(StateError):
        model.load_state(tmp_path / place)


@pytest.fixture(scope="module")
def plain() -> State:
    return State(np.ones((2, 5, 32), np.float32), model="0" * 16)


@pytest.mark.parametrize("content", [b"PK\x03\x04 a model", b"a text", b"\xff" * 16, b"{}"])
def test_a_file_of_another_kind_is_not_overwritten(
    tmp_path: Path, plain: State, content: bytes
) -> None:
    (tmp_path / "precious").write_bytes(content)
    with pytest.raises(StateError, match="a file of another kind"):
        save_state(tmp_path / "precious", plain)
    assert (tmp_path / "precious").read_bytes() == content
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    with pytest.raises(StateError, match="a file of another kind"):
        save_state(tmp_path / "link", plain)


def test_a_model_is_not_overwritten_a_state_and_an_empty_file_are(
    tmp_path: Path, plain: State
) -> None:
    save_file({"state": plain.array}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(StateError, match="a file of another kind"):
        save_state(tmp_path / "model.safetensors", plain)
    (tmp_path / "a.state").touch()
    save_state(tmp_path / "a.state", plain)
    save_state(tmp_path / "a.state", replace(plain, model="1" * 16))
    assert load_state(tmp_path / "a.state").model == "1" * 16


@pytest.mark.parametrize("name", ["n" * 300, "no/folder/file", ".", "/proc/none/file"])
def test_a_name_that_cannot_be_written_is_refused_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StateError) as error:
        check_place(name)
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []
    check_place("n" * 255)


@pytest.mark.parametrize("tensor", ["state", "logits", "other"])
def test_a_tensor_of_gigabytes_is_not_read(tmp_path: Path, tensor: str) -> None:
    about = {"format": "rwkv-core state 1", "model": "", "pending": ""}
    shape, end = [2**20, 1, 2**10], 2**32
    header = json.dumps(
        {
            "__metadata__": about,
            tensor: {"dtype": "F32", "shape": shape, "data_offsets": [0, end]},
        }
    ).encode()
    path = tmp_path / "a.state"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + end)
    with pytest.raises(StateError, match=r"its (state|logits) takes|it holds a tensor 'other'"):
        load_state(path)


def test_a_file_that_steers_a_terminal_does_not(tmp_path: Path, plain: State) -> None:
    about = {"format": "\x1b[2J\n" + "x" * 100_000}
    save_file({"state": plain.array}, tmp_path / "a.state", about)
    with pytest.raises(StateError) as error:
        load_state(tmp_path / "a.state")
    assert str(error.value).isprintable() and len(str(error.value)) < 500


@pytest.mark.needs_backend
def test_a_link_is_written_through(small_model: Path, tmp_path: Path, backend: str) -> None:
    model = rwkv_core.load(small_model, backend=backend)
    (tmp_path / "link.state").symlink_to(tmp_path / "a.state")
    model.save_state(tmp_path / "link.state", model.forward([1])[1])
    assert (tmp_path / "link.state").is_symlink()
    model.load_state(tmp_path / "a.state")


@pytest.mark.needs_backend
def test_permissions_are_those_of_any_file(small_model: Path, tmp_path: Path, backend: str) -> None:
    model = rwkv_core.load(small_model, backend=backend)
    path, (_, state) = tmp_path / "a.state", model.forward([1])
    (tmp_path / "plain").touch()
    model.save_state(path, state)
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    path.chmod(0o640)
    model.save_state(path, state)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.needs_backend
@pytest.mark.parametrize("path", [None, 5, "", "a\0b"])
def test_what_is_no_path_is_one_line(small_model: Path, backend: str, path: Any) -> None:
    model = rwkv_core.load(small_model, backend=backend)
    with pytest.raises(StateError, match="expected the path"):
        model.save_state(path, model.forward([1])[1])
    with pytest.raises(StateError, match="expected the path"):
        model.load_state(path)


@pytest.mark.needs_backend
def test_many_threads_may_write_one_file(small_model: Path, tmp_path: Path, backend: str) -> None:
    model = rwkv_core.load(small_model, backend=backend)
    _, state = model.forward([1])
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(model.save_state, tmp_path / "a.state", state) for _ in range(100)]
    for job in jobs:
        job.result()
    assert os.listdir(tmp_path) == ["a.state"]


def scan(aa: float = 0.0, bb: float = 1.0, pp: float = 0.0) -> np.ndarray:
    """Return a state in which one number of one layer has these weights; all others have 1."""
    array = np.zeros((2, 5, 32), np.float32)
    array[:, 3] = 1
    array[1, 2:, 7] = aa, bb, pp
    return array


@pytest.mark.parametrize(
    "change",
    [
        {"pending": b"HELLO"},
        {"pending": b"\xff" * 10},
        {"array": np.zeros((2, 5, 32), np.int8)},
        {"array": np.full((2, 5, 32), np.nan, np.float32)},
        {"logits": np.full(262, np.inf, np.float32)},
        {"array": scan(bb=0.0)},
        {"array": scan(bb=-1.0)},
        {"array": scan(aa=1.0, bb=0.0, pp=-1e30)},
    ],
)
def test_values_that_no_model_gives_are_refused(
    small_model: Path, tmp_path: Path, backend: str, change: dict[str, Any]
) -> None:
    model = rwkv_core.load(small_model, backend=backend)
    good = State(scan(), None, b"", model.fingerprint)
    save_state(tmp_path / "good.state", good)
    model.load_state(tmp_path / "good.state")
    save_state(tmp_path / "bad.state", replace(good, **change))
    with pytest.raises(StateError, match="damaged"):
        model.load_state(tmp_path / "bad.state")


@pytest.mark.needs_backend
@pytest.mark.parametrize("content", [b"", b"no state", b"\x10" + b"\0" * 40])
def test_a_damaged_file_is_refused(
    small_model: Path, tmp_path: Path, backend: str, content: bytes
) -> None:
    model = rwkv_core.load(small_model, backend=backend)
    (tmp_path / "a.state").write_bytes(content)
    with pytest.raises(StateError, match="not a state file, or damaged"):
        model.load_state(tmp_path / "a.state")


@pytest.mark.needs_backend
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


@pytest.mark.needs_backend
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
    with pytest.raises(StateError, match=f"one of model {model.fingerprint}"):
        other.forward([1], model.forward([1])[1])


@pytest.mark.needs_backend
def test_weights_that_differ_in_matrices_alone_have_other_fingerprints(
    tmp_path: Path, backend: str
) -> None:
    weights = random_weights(2, 32, 300)
    write_pth(tmp_path / "one.pth", weights)
    weights["blocks.1.att.key.weight"] = weights["blocks.1.att.key.weight"] * np.float32(1.5)
    write_pth(tmp_path / "other.pth", weights)
    one, other = (rwkv_core.load(tmp_path / f"{x}.pth", backend) for x in ("one", "other"))
    assert one.fingerprint != other.fingerprint


def test_a_caller_may_change_the_arrays_it_gets(small_model: Path, backend: str) -> None:
    model = rwkv_core.load(small_model, backend=backend)
    logits, state = model.forward([1, 2])
    array, last = model.to_numpy(state), model.to_numpy(state.logits)
    expected = array.copy(), last.copy()
    model.to_numpy(logits)[:] = 0
    array[:], last[:] = 0, 0
    with suppress(TypeError):  # of a library whose arrays nobody can change
        logits[5] = -float("inf")
    assert np.array_equal(model.to_numpy(state), expected[0])
    assert np.array_equal(model.to_numpy(state.logits), expected[1])


def test_states_that_do_not_fit_are_refused(small_model: Path, backend: str) -> None:
    model = rwkv_core.load(small_model, backend=backend)
    _, single = model.forward([1])
    _, batch = model.forward([[1], [2]])
    with pytest.raises(StateError, match=r"found shape \[2, 5, 32\], expected \[2, 2, 5, 32\]"):
        model.forward([[1], [2]], single)
    with pytest.raises(StateError, match=r"found shape \[2, 2, 5, 32\], expected \[2, 5, 32\]"):
        model.forward([1], batch)
    for foreign in (np.zeros((2, 5, 32)), 3):
        with pytest.raises(StateError, match="expected a State"):
            model.forward([1], foreign)
        with pytest.raises(StateError, match="expected a State"):
            model.unstack_state(foreign)
    with pytest.raises(StateError, match="another backend or dtype"):
        model.forward([1], State(model.to_numpy(single).astype(np.float16)))
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
    for nothing in ([], singles[0], None):
        with pytest.raises(StateError, match="a list of at least one State"):
            model.stack_states(nothing)
    with pytest.raises(StateError, match="found a single one, expected a batch"):
        model.unstack_state(singles[0])
