"""State-tuned files: an initial state of the model's sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import rwkv_core
from byte_tokenizer import write_byte_tokenizer
from later_versions import SIZES, VERSIONS, Sizes, later_weights
from pth_writer import write_pth
from random_model import random_weights
from rwkv_core import CheckpointError, StateError
from rwkv_core.cli import main
from rwkv_core.cli.chat_settings import Settings
from rwkv_core.cli.conversation import Conversation

pytestmark = pytest.mark.needs_backend

SMALL = SIZES[0]


def tuned(sizes: Sizes = SMALL, seed: int = 0) -> dict[str, np.ndarray]:
    n_head, n = sizes.n_embd // sizes.head_size, sizes.head_size
    rng = np.random.default_rng(seed)
    return {
        f"blocks.{i}.att.time_state": rng.normal(0, 0.3, (n_head, n, n)).astype(np.float32)
        for i in range(sizes.n_layer)
    }


@pytest.fixture(scope="module", params=VERSIONS)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> rwkv_core.Model:
    path = tmp_path_factory.mktemp("tuned") / "model.pth"
    write_pth(path, later_weights(request.param, SMALL))
    return rwkv_core.load(path, "numpy")


def test_a_row_of_the_state_is_a_value_channel_of_all_heads(
    model: rwkv_core.Model, tmp_path: Path, backend: str
) -> None:
    write_pth(tmp_path / "tuned.pth", tuned())
    state = model.load_state(tmp_path / "tuned.pth")
    found, n = model.to_numpy(state), SMALL.head_size
    assert found.shape == (SMALL.n_layer, 2 + n, SMALL.n_embd) and not found[:, :2].any()
    for i, matrices in enumerate(tuned().values()):
        for head, matrix in enumerate(matrices):
            np.testing.assert_array_equal(found[i, 2:, head * n : (head + 1) * n], matrix)
    assert state.logits is None
    with_it, without = (model.to_numpy(model.forward([1], s)[0]) for s in (state, None))
    assert np.abs(with_it - without).max() > 0.1


def test_a_converted_one_is_transposed_back(
    model: rwkv_core.Model, tmp_path: Path, backend: str
) -> None:
    """As web-rwkv's converter writes it: safetensors of float16, the matrices transposed."""
    half = {name: array.astype(np.float16) for name, array in tuned().items()}
    turned = {name: array.transpose(0, 2, 1).copy() for name, array in half.items()}
    save_file(turned, tmp_path / "tuned.st", {"format": "pt"})
    write_pth(tmp_path / "tuned.pth", half)
    states = [model.to_numpy(model.load_state(tmp_path / f"tuned.{x}")) for x in ("st", "pth")]
    np.testing.assert_array_equal(*states)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (tuned(SIZES[1]), r"3 layers of \[3, 64, 64\], expected 2 of \[2, 32, 32\]"),
        (tuned(SMALL._replace(n_layer=3)), r"3 layers of \[2, 32, 32\], expected 2 of"),
        (tuned() | {"head.weight": np.ones((5, 64), np.float32)}, "it holds head.weight"),
        (tuned() | {"blocks.1.att.time_state": np.ones((2, 32, 32), np.int8)}, "of type int8"),
        (
            tuned() | {"blocks.1.att.time_state": np.full((2, 32, 32), np.nan, np.float32)},
            "2048 NaN or infinite",
        ),
    ],
)
def test_one_that_does_not_fit_is_refused_in_a_line(
    model: rwkv_core.Model,
    tmp_path: Path,
    backend: str,
    tensors: dict[str, np.ndarray],
    message: str,
) -> None:
    write_pth(tmp_path / "tuned.pth", tensors)
    with pytest.raises(StateError, match=message) as error:
        model.load_state(tmp_path / "tuned.pth")
    assert "\n" not in str(error.value)


def test_rwkv_4_has_none(small_model: Path, tmp_path: Path, backend: str) -> None:
    write_pth(tmp_path / "tuned.pth", tuned())
    model = rwkv_core.load(small_model, backend)
    with pytest.raises(StateError, match="RWKV-4 has no state of this kind"):
        model.load_state(tmp_path / "tuned.pth")


def test_a_model_s_and_a_lora_s_place_refuse_one(
    model: rwkv_core.Model, tmp_path: Path, backend: str
) -> None:
    both = later_weights("7", SMALL) | tuned()
    for name, tensors in (("tuned", tuned()), ("both", both)):
        write_pth(tmp_path / f"{name}.pth", tensors)
    with pytest.raises(CheckpointError, match="is a state-tuned file without its model"):
        rwkv_core.load(tmp_path / "tuned.pth", backend)
    with pytest.raises(CheckpointError, match="is a model with a tuned state in it"):
        rwkv_core.load(tmp_path / "both.pth", backend)
    with pytest.raises(CheckpointError, match=r"holds a tuned state .* give it to the model"):
        lora = rwkv_core.Lora(tmp_path / "tuned.pth", alpha=1.0)
        rwkv_core.load(model.path, backend, lora=lora)


def test_a_truncated_one_is_refused(model: rwkv_core.Model, tmp_path: Path, backend: str) -> None:
    write_pth(tmp_path / "tuned.pth", tuned())
    data = (tmp_path / "tuned.pth").read_bytes()
    (tmp_path / "tuned.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(StateError, match="truncated or damaged"):
        model.load_state(tmp_path / "tuned.pth")


def test_generate_begins_from_one(
    tmp_path: Path, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = SMALL._replace(n_vocab=write_byte_tokenizer(tmp_path / "tokenizer.json"))
    write_pth(tmp_path / "model.pth", later_weights("7", sizes))
    write_pth(tmp_path / "tuned.pth", tuned())
    arguments = ["generate", "a", "-n", "9", "--temperature", "0", "-b", backend]
    arguments += ["-m", str(tmp_path / "model.pth")]
    assert main([*arguments, "--state", str(tmp_path / "tuned.pth")]) == 0
    found = capsys.readouterr().out
    rwkv = rwkv_core.RWKV(tmp_path / "model.pth", backend)
    rwkv.load_state(tmp_path / "tuned.pth")
    rwkv.load_context("a")
    assert found == rwkv.generate(9, temperature=0).text + "\n"
    assert main(arguments) == 0 and capsys.readouterr().out != found
    assert main([*arguments, "--state", str(tmp_path / "model.pth")]) == 2
    assert "it holds emb.weight, expected one that save_state wrote" in capsys.readouterr().err


def test_a_saved_state_says_its_version(tmp_path: Path, backend: str) -> None:
    write_pth(tmp_path / "7.pth", later_weights("7", SMALL))
    write_pth(tmp_path / "4.pth", random_weights(2, 64, SMALL.n_vocab))
    model, other = (rwkv_core.load(tmp_path / f"{x}.pth", backend) for x in "74")
    path = tmp_path / "a.state"
    model.save_state(path, model.forward([1])[1])
    with pytest.raises(StateError, match="of a model of rwkv7, the model loaded here is rwkv4"):
        other.load_state(path)
    tensors = load_file(path)
    about = {"format": "rwkv-core state 1", "model": model.fingerprint, "pending": ""}
    save_file(tensors, path, about)  # as it was before the version was written
    np.testing.assert_array_equal(model.to_numpy(model.load_state(path)), tensors["state"])


def test_a_conversation_begins_from_one(tmp_path: Path, backend: str) -> None:
    sizes = SMALL._replace(n_vocab=write_byte_tokenizer(tmp_path / "tokenizer.json"))
    write_pth(tmp_path / "model.pth", later_weights("7", sizes))
    write_pth(tmp_path / "tuned.pth", tuned())
    rwkv = rwkv_core.RWKV(tmp_path / "model.pth", backend)
    conversation = Conversation(
        rwkv, "User", "Bot", "", Settings(5, {"stop_strings": []}, 1, False)
    )
    assert conversation.load(tmp_path / "tuned.pth") is None
    expected = rwkv.model.load_state(tmp_path / "tuned.pth")
    found = rwkv.model.to_numpy(rwkv.get_state())
    np.testing.assert_array_equal(found, rwkv.model.to_numpy(expected))
