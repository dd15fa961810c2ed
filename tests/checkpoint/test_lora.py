"""LoRA weights in RWKV-LM-LoRA's format: merged at load, or refused in one line."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import rwkv_core
from byte_tokenizer import write_byte_tokenizer
from pth_writer import write_pth
from random_model import random_weights
from rwkv_core import Lora
from rwkv_core.checkpoint import open_checkpoint
from rwkv_core.cli import main
from rwkv_core.errors import (
    CheckpointError,
    DownloadError,
    OptionError,
    RWKVError,
    StateError,
)
from rwkv_core.model_file import open_model

RANK, ALPHA = 4, 32.0
N_VOCAB = 262
KEY = "blocks.0.att.key"
ADAPTED = (KEY, "blocks.0.att.value", "blocks.1.ffn.key", "blocks.1.ffn.value")
TRAINED_WHOLE = ("ln_out.weight", "blocks.0.att.time_mix_k", "blocks.1.att.time_decay")


def factors(weights: dict[str, np.ndarray], seed: int = 7) -> dict[str, np.ndarray]:
    """lora_A and lora_B for each of ADAPTED, felt in the logits but not drowning them.

    Of multiples of 1/64, so that their product and its sum with a float16 are exact in float32.
    """
    rng = np.random.default_rng(seed)
    lora = {}
    for name in ADAPTED:
        rows, columns = weights[f"{name}.weight"].shape
        lora[f"{name}.lora_A"] = rng.integers(-8, 9, (RANK, columns)).astype(np.float32) / 64
        lora[f"{name}.lora_B"] = rng.integers(-8, 9, (rows, RANK)).astype(np.float32) / 64
    return lora


def merged(weights: dict[str, np.ndarray], lora: dict[str, np.ndarray], alpha: float = ALPHA):
    """Return merge_lora.py's result, in float64 and rounded to float32 at the end."""
    result = {name: array for name, array in (weights | lora).items() if "lora_" not in name}
    for name in ADAPTED:
        a, b = (lora[f"{name}.lora_{part}"].astype(np.float64) for part in "AB")
        result[f"{name}.weight"] = result[f"{name}.weight"].astype(np.float64) + b @ a * (
            alpha / RANK
        )
    return {name: array.astype(np.float32) for name, array in result.items()}


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return random_weights(2, 32, N_VOCAB, seed=1, dtype=np.float16)


@pytest.fixture(scope="module")
def lora(weights) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(8)
    whole = {
        name: (weights[name] + rng.normal(0, 0.1, weights[name].shape)).astype(np.float32)
        for name in TRAINED_WHOLE
    }
    return factors(weights) | whole


@pytest.fixture(scope="module")
def folder(tmp_path_factory, weights, lora) -> Path:
    """The base in float16, the LoRA, the two in one file, and the merged model in float32."""
    folder = tmp_path_factory.mktemp("lora")
    assert write_byte_tokenizer(folder / "tokenizer.json") == N_VOCAB
    write_pth(folder / "base.pth", weights)
    write_pth(folder / "lora.pth", lora)
    write_pth(folder / "combined.pth", weights | lora)
    write_pth(folder / "merged.pth", merged(weights, lora))
    return folder


def logits(model: rwkv_core.Model) -> np.ndarray:
    return model.to_numpy(model.forward([1, 2, 3, 4, 5], all_logits=True)[0])


@pytest.mark.needs_backend
def test_a_merged_model_is_that_of_merge_lora(folder, backend):
    expected = rwkv_core.load(folder / "merged.pth", backend)
    found = rwkv_core.load(folder / "base.pth", backend, lora=Lora(folder / "lora.pth", ALPHA))
    np.testing.assert_allclose(logits(found), logits(expected), atol=1e-5)


@pytest.mark.parametrize("files", [("base.pth", "lora.pth"), ("combined.pth", None)])
def test_tensors_are_told_as_they_are_read(folder, weights, lora, files):
    base, beside = files
    expected = merged(weights, lora)
    with open_model(folder / base, lora=Lora(beside and folder / beside, ALPHA)) as model:
        assert list(model.tensors) == list(weights)
        for name, info in model.tensors.items():
            array = model.read(name)
            assert (array.shape, array.dtype) == (info.shape, info.dtype)
            assert not array.flags.writeable
            np.testing.assert_array_equal(array.astype(np.float32), expected[name])
        assert model.tensors[f"{KEY}.weight"].dtype == np.float32
        assert model.tensors["blocks.0.att.output.weight"].dtype == np.float16


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float64])
def test_a_base_of_another_type_is_not_rounded(tmp_path, dtype):
    weights = random_weights(2, 32, N_VOCAB, dtype=dtype)
    lora = {name: array.astype(dtype) for name, array in factors(weights).items()}
    write_pth(tmp_path / "base.pth", weights)
    write_pth(tmp_path / "lora.pth", lora)
    with open_model(tmp_path / "base.pth", lora=Lora(tmp_path / "lora.pth", 8)) as model:
        found = model.read(f"{KEY}.weight")
        assert found.dtype == (np.float64 if dtype == np.float64 else np.float32)
        a, b = (lora[f"{KEY}.lora_{part}"].astype(np.float64) for part in "AB")
        expected = weights[f"{KEY}.weight"].astype(np.float64) + b @ a * (8 / RANK)
        np.testing.assert_allclose(found, expected, atol=1e-12 if dtype == np.float64 else 1e-6)


def test_names_of_transformers_and_with_a_weight_at_their_end(tmp_path, folder, weights, lora):
    renamed = {
        "rwkv." + name.replace(".att.", ".attention.") + (".weight" if "lora_" in name else ""): a
        for name, a in factors(weights).items()
        if ".ffn." not in name
    }
    write_pth(tmp_path / "lora.pth", renamed)
    with open_model(folder / "base.pth", lora=Lora(tmp_path / "lora.pth", ALPHA)) as model:
        found = model.read(f"{KEY}.weight")
        np.testing.assert_array_equal(found, merged(weights, lora)[f"{KEY}.weight"])


@pytest.mark.needs_backend
def test_states_of_the_base_and_of_another_alpha_are_refused(folder):
    load = rwkv_core.load
    base = load(folder / "base.pth")
    with_lora = load(folder / "base.pth", lora=Lora(folder / "lora.pth", ALPHA))
    combined = load(folder / "combined.pth", lora=Lora(alpha=ALPHA))
    stronger = load(folder / "base.pth", lora=Lora(folder / "lora.pth", 2 * ALPHA))
    state = with_lora.empty_state()
    combined.check_state(state)
    for other in (base, stronger):
        with pytest.raises(StateError, match="this model is"):
            other.check_state(state)


@pytest.mark.needs_backend
def test_another_lora_of_the_same_tensors_is_another_model(tmp_path, folder, weights):
    prints = set()
    for seed in (1, 2):
        write_pth(tmp_path / f"{seed}.pth", factors(weights, seed))
        model = rwkv_core.load(folder / "base.pth", lora=Lora(tmp_path / f"{seed}.pth", 1))
        prints.add(model.fingerprint)
    assert len(prints) == 2


def refusal(folder: Path, lora: dict[str, np.ndarray], alpha: object = ALPHA) -> str:
    """Return the one-line error of loading base.pth with this LoRA."""
    write_pth(folder / "refused.pth", lora)
    return refusal_of(folder, folder / "refused.pth", alpha)


def refusal_of(folder: Path, path: Path, alpha: object = None) -> str:
    """Return the one-line error for a LoRA file."""
    with (
        pytest.raises(RWKVError) as caught,
        open_model(folder / "base.pth", lora=Lora(path, alpha)) as model,
    ):
        for name in model.tensors:
            model.read(name)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_file_that_is_no_lora_is_refused(folder, weights):
    assert "is no LoRA (it holds emb.weight, " in refusal(folder, weights)


def test_a_lora_of_another_width_is_refused(folder):
    message = refusal(folder, factors(random_weights(2, 48, N_VOCAB)))
    assert "lora_A has shape [48, 48]" in message and "a LoRA of another model" in message


def test_a_lora_of_a_deeper_model_is_refused(folder, lora):
    deeper = {name.replace("blocks.1", "blocks.9"): array for name, array in lora.items()}
    message = refusal(folder, deeper)
    assert "changes blocks.9." in message and "a LoRA of another model" in message


def test_a_whole_tensor_of_another_shape_is_refused(folder, lora):
    message = refusal(folder, lora | {"ln_out.weight": np.ones(48, np.float32)})
    assert "ln_out.weight has shape [48]" in message


def test_factors_of_different_rank_are_refused(folder, lora):
    message = refusal(folder, lora | {f"{KEY}.lora_A": np.ones((RANK + 1, 32), np.float32)})
    assert "differ in rank" in message and "[5, 32]" in message and "[32, 4]" in message


@pytest.mark.parametrize(("kept", "missing"), [("A", "B"), ("B", "A")])
def test_one_factor_without_the_other_is_refused(folder, lora, kept, missing):
    one = {name: array for name, array in lora.items() if name != f"{KEY}.lora_{missing}"}
    assert f"holds {KEY}.lora_{kept} without its lora_{missing}" in refusal(folder, one)


@pytest.mark.parametrize("part", ["A", "B"])
@pytest.mark.parametrize("bad", [np.ones((0, 0), np.float32), np.ones(4, np.float32)])
def test_a_factor_that_is_no_matrix_is_refused(folder, lora, part, bad):
    assert "expected a matrix of" in refusal(folder, lora | {f"{KEY}.lora_{part}": bad})


def test_a_factor_of_whole_numbers_is_refused(folder, lora):
    quantized = lora | {f"{KEY}.lora_A": np.ones((RANK, 32), np.int8)}
    assert "int8" in refusal(folder, quantized)


@pytest.mark.parametrize("name", [f"{KEY}.lora_B", "ln_out.weight"])
def test_nan_in_the_lora_is_told_of_the_lora(folder, lora, name):
    array = lora[name].copy()
    array.flat[3] = np.nan
    message = refusal(folder, lora | {name: array})
    assert message.startswith(f"{folder / 'refused.pth'}: {name} holds 1 NaN")


@pytest.mark.needs_backend
def test_a_sum_that_overflows_is_refused(tmp_path, folder, weights):
    large = {name: array * np.float32(1e20) for name, array in factors(weights).items()}
    write_pth(tmp_path / "large.pth", large)
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        rwkv_core.load(folder / "base.pth", lora=Lora(tmp_path / "large.pth", 32))


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), 1e39, "32", True])
def test_an_alpha_that_is_no_number_is_refused(folder, lora, alpha):
    assert "LoRA alpha: found" in refusal(folder, lora, alpha)


def test_a_lora_without_its_alpha_is_refused(folder, lora):
    assert "LoRA alpha: not given" in refusal(folder, lora, None)


def test_an_alpha_without_lora_is_refused(folder):
    with (
        pytest.raises(OptionError, match="given without the path of a LoRA"),
        open_model(folder / "base.pth", lora=Lora(alpha=32)),
    ):
        pass


def test_lora_weights_in_the_base_and_beside_it_are_refused(folder):
    with (
        pytest.raises(CheckpointError, match="of its own"),
        open_model(folder / "combined.pth", lora=Lora(folder / "lora.pth", 32)),
    ):
        pass


def test_a_combined_file_asks_for_its_alpha(folder, capsys):
    assert main(["generate", "a", "-n", "1", "-m", str(folder / "combined.pth")]) == 2
    assert "not merged yet" in (error := capsys.readouterr().err) and "--lora-alpha" in error


def test_a_missing_lora_file_is_named(folder):
    with (
        pytest.raises(CheckpointError, match=r"nowhere\.pth: no such file"),
        open_model(folder / "base.pth", lora=Lora(folder / "nowhere.pth", 1)),
    ):
        pass


def test_a_quantized_model_takes_no_lora(tmp_path, folder):
    output = ["--output", str(tmp_path / "base.pqth")]
    assert main(["prequantize", str(folder / "base.pth"), "--group-size", "32", *output]) == 0
    with (
        pytest.raises(CheckpointError, match="is quantized, and a LoRA cannot be merged"),
        open_model(tmp_path / "base.pqth", lora=Lora(folder / "lora.pth", ALPHA)),
    ):
        pass


def test_prequantize_merges(tmp_path, folder, capsys):
    quantized = [str(tmp_path / name) for name in ("with_lora.pqth", "merged.pqth")]
    options = ["--group-size", "32", "--output"]
    lora = ["--lora", str(folder / "lora.pth"), "--lora-alpha", str(ALPHA)]
    assert main(["prequantize", str(folder / "base.pth"), *lora, *options, quantized[0]]) == 0
    assert main(["prequantize", str(folder / "merged.pth"), *options, quantized[1]]) == 0
    with open_checkpoint(quantized[0]) as found, open_checkpoint(quantized[1]) as expected:
        for name in (f"{KEY}.weight", "ln_out.weight", "head.weight"):
            np.testing.assert_array_equal(found.read(name), expected.read(name))
    assert main(["prequantize", str(folder / "base.pth"), *lora[:2]]) == 2
    assert "LoRA alpha: not given" in capsys.readouterr().err


@pytest.mark.needs_backend
def test_a_lora_may_be_an_address(folder):
    with pytest.raises(DownloadError, match=r"ftp://host/lora\.pth: expected a path"):
        rwkv_core.load(folder / "base.pth", lora=Lora("ftp://host/lora.pth", 1))


def test_both_files_are_closed_after_a_refusal(folder):
    with open_checkpoint(folder / "base.pth") as base:
        pass
    with pytest.raises(CheckpointError, match="closed"):
        base.read("emb.weight")
    with (
        pytest.raises(RuntimeError),
        open_model(folder / "base.pth", lora=Lora(folder / "lora.pth", 1)) as model,
    ):
        raise RuntimeError
    for name in (f"{KEY}.weight", "ln_out.weight", "emb.weight"):
        with pytest.raises(CheckpointError, match="closed"):
            model.read(name)


@pytest.mark.needs_backend
def test_the_command_line_merges(folder, capsys):
    def text(*arguments: str) -> str:
        assert main(["generate", "A", "-n", "20", "--temperature", "0", "-m", *arguments]) == 0
        return capsys.readouterr().out

    lora = ["--lora", str(folder / "lora.pth"), "--lora-alpha", str(ALPHA)]
    assert text(str(folder / "base.pth"), *lora) == text(str(folder / "merged.pth"))


@pytest.mark.needs_backend
def test_the_command_line_refuses_in_one_line(folder, capsys):
    base = ["generate", "a", "-m", str(folder / "base.pth")]
    for arguments, message in (
        (["--lora", str(folder / "lora.pth")], "LoRA alpha: not given"),
        (["--lora-alpha", "32"], "given without the path of a LoRA"),
        (["--lora", str(folder / "base.pth"), "--lora-alpha", "32"], "is no LoRA"),
        (["--lora-alpha", "much"], "invalid float value"),
        (["-o", "lora=x.pth"], "--lora"),
    ):
        assert main([*base, *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1


@pytest.mark.needs_backend
def test_an_rwkv_takes_a_lora(folder):
    files = {"lora": Lora(folder / "lora.pth", ALPHA)}
    rwkv = rwkv_core.RWKV(folder / "base.pth", **files)
    assert rwkv.model.fingerprint == rwkv_core.load(folder / "base.pth", **files).fingerprint
    assert rwkv.model.fingerprint != rwkv_core.load(folder / "base.pth").fingerprint


def test_a_path_stands_for_a_lora_whose_alpha_is_beside_it(folder):
    with (
        pytest.raises(OptionError, match="LoRA alpha: not given"),
        open_model(folder / "base.pth", lora=str(folder / "lora.pth")),
    ):
        pass
    with pytest.raises(CheckpointError, match="path: found a int, expected"):
        rwkv_core.load(folder / "base.pth", lora=3)
