"""The error for a faulty model is one line: what was found, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from later_versions import SIZES, later_weights
from pth_writer import write_pth
from random_model import random_weights
from rwkv_core.architectures.base import Config
from rwkv_core.architectures.rwkv4 import RWKV4
from rwkv_core.checkpoint import check_finite, diagnose, open_checkpoint
from rwkv_core.errors import CheckpointError

DTYPES = [np.float32, np.float16, np.float64, ml_dtypes.bfloat16]


def diagnosis(tmp_path: Path, weights: Mapping[str, np.ndarray]) -> str:
    write_pth(tmp_path / "m.pth", weights)
    with open_checkpoint(tmp_path / "m.pth") as sick, pytest.raises(CheckpointError) as caught:
        diagnose(sick)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'm.pth'}: ") and "\n" not in message
    return message


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sound_model_has_a_shape(tmp_path: Path, dtype: Any) -> None:
    write_pth(tmp_path / "m.pth", random_weights(3, 16, 40, dtype=dtype))
    with open_checkpoint(tmp_path / "m.pth") as checkpoint:
        expected = Config(n_layer=3, n_embd=16, n_ffn=64, n_vocab=40, architecture=RWKV4)
        assert diagnose(checkpoint) == expected


def test_a_counter_beside_the_weights_is_no_harm(tmp_path: Path) -> None:
    weights = random_weights(1, 8, 10) | {"step": np.array(7), "blocks.0.calls": np.array([3])}
    write_pth(tmp_path / "m.pth", weights)
    with open_checkpoint(tmp_path / "m.pth") as checkpoint:
        assert diagnose(checkpoint).n_layer == 1


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("RWKV-5", "blocks.0.att.gate.weight"),
        ("RWKV-5", "blocks.0.att.ln_x.weight"),
        ("RWKV-5", "rwkv.blocks.0.attention.time_faaaa"),
        ("RWKV-6", "blocks.0.att.time_maa_w1"),
        ("RWKV-7", "blocks.0.att.r_k"),
        ("RWKV-7", "blocks.0.att.x_r"),
        ("RWKV-7", "blocks.0.att.w0"),
        ("RWKV-7", "model.layers.0.attn.r_k"),
        ("a transformer", "model.layers.0.self_attn.q_proj.weight"),
        ("a transformer", "transformer.h.0.attn.c_attn.weight"),
        ("a transformer", "gpt_neox.layers.0.attention.query_key_value.weight"),
        ("a Mamba model", "backbone.layers.0.mixer.A_log"),
        ("LoRA weights", "blocks.0.att.key.lora_A"),
        ("no RWKV model", "conv1.weight"),
    ],
)
def test_another_architecture_is_named(tmp_path: Path, kind: str, name: str) -> None:
    message = diagnosis(tmp_path, {name: np.ones((2, 2), np.float32)})
    assert kind in message and name.split(".")[-1] in message and "RWKV" in message


def test_a_later_rwkv_is_not_taken_for_an_earlier_one(tmp_path: Path) -> None:
    vector = np.ones(2, np.float32)
    five = {"blocks.0.att.ln_x.weight": vector, "blocks.0.att.gate.weight": vector}
    six = five | {"blocks.0.att.time_faaaa": vector, "blocks.0.att.time_maa_x": vector}
    seven = five | {"blocks.0.att.r_k": vector}
    assert "RWKV-5" in diagnosis(tmp_path, five)
    assert "RWKV-6" in diagnosis(tmp_path, six)
    assert "RWKV-7" in diagnosis(tmp_path, seven)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    weights = random_weights(2, 8, 10)
    del weights["blocks.1.ffn.time_mix_r"]
    message = diagnosis(tmp_path, weights)
    assert "1 of the 42 tensors" in message and "blocks.1.ffn.time_mix_r" in message


def test_of_many_missing_tensors_a_few_are_named(tmp_path: Path) -> None:
    weights = random_weights(3, 8, 10)
    kept = {name: array for name, array in weights.items() if not name.startswith("blocks.1.")}
    message = diagnosis(tmp_path, kept)
    assert "blocks.1." in message and "..." in message and len(message) < 400


def test_what_a_file_holds_instead_of_the_missing_is_named(tmp_path: Path) -> None:
    weights = random_weights(1, 8, 10)
    weights["blocks.0.att.Key.weight"] = weights.pop("blocks.0.att.key.weight")
    message = diagnosis(tmp_path, weights)
    assert "missing (blocks.0.att.key.weight); it holds blocks.0.att.Key.weight" in message
    assert "download" not in message


def test_a_false_block_number_costs_nothing(tmp_path: Path) -> None:
    name = "blocks.99999999999.att.time_decay"
    message = diagnosis(tmp_path, random_weights(1, 8, 10) | {name: np.ones(8, np.float32)})
    assert name in message


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blocks.1.att.key.weight", (8, 7)),
        ("blocks.0.att.time_decay", (4,)),
        ("blocks.0.ffn.value.weight", (32, 8)),
        ("head.weight", (9, 8)),
        ("ln_out.bias", (1, 8)),
    ],
)
def test_a_misshapen_tensor_is_named(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    weights = random_weights(2, 8, 10)
    expected = list(weights[name].shape)
    message = diagnosis(tmp_path, weights | {name: np.ones(shape, np.float32)})
    assert f"{name} has shape {list(shape)}, expected {expected}" in message


@pytest.mark.parametrize("shape", [(), (80,), (0, 8), (2, 5, 8)])
def test_an_embedding_that_is_no_matrix_is_named(tmp_path: Path, shape: tuple[int, ...]) -> None:
    weights = random_weights(1, 8, 10) | {"emb.weight": np.ones(shape, np.float32)}
    assert "emb.weight has shape" in diagnosis(tmp_path, weights)


def test_weights_of_another_design_are_named(tmp_path: Path) -> None:
    more = {"blocks.0.tiny_q.weight": np.ones((2, 2), np.float32)}
    assert "blocks.0.tiny_q.weight" in diagnosis(tmp_path, random_weights(1, 8, 10) | more)


def test_weights_that_are_whole_numbers_are_named(tmp_path: Path) -> None:
    more = {"blocks.0.att.key.weight": np.ones((8, 8), np.int8)}
    assert "of type int8" in diagnosis(tmp_path, random_weights(1, 8, 10) | more)


@pytest.mark.parametrize("name", ["blocks.0.att.time_decay", "ln_out.bias", "blocks.0.ln0.weight"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_named(tmp_path: Path, name: str, value: float) -> None:
    weights = random_weights(1, 8, 10)
    weights[name][3] = value
    assert f"{name} holds 1 NaN or infinite of 8 values" in diagnosis(tmp_path, weights)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_matrix_is_searched_for_values_that_are_not_finite(dtype: Any) -> None:
    matrix = np.full((3000, 500), 2.0).astype(dtype)
    matrix[5, 5] = -60000.0
    check_finite("emb.weight", matrix)
    check_finite("emb.weight", matrix.T)
    matrix[2999, 499], matrix[0, 0], matrix[1500, 250] = np.nan, np.inf, -np.inf
    for view in (matrix, matrix.T, matrix[::-1]):
        with pytest.raises(CheckpointError, match=r"emb\.weight holds 3 NaN"):
            check_finite("emb.weight", view)


def test_the_smallest_arrays_are_searched() -> None:
    check_finite("x", np.zeros((0, 4), np.float32))
    with pytest.raises(CheckpointError, match="x holds 1 NaN"):
        check_finite("x", np.array(np.nan))


def test_random_weights_are_the_same_for_the_same_seed() -> None:
    one, again, other = (random_weights(1, 8, 10, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(one[name], again[name]) for name in one)
    assert not np.array_equal(one["emb.weight"], other["emb.weight"])
    assert all(np.count_nonzero(array) == array.size for array in one.values())


@pytest.mark.parametrize("n_layer", [1, 2])
def test_what_the_first_layer_does_not_use_is_no_other_design(tmp_path: Path, n_layer: int) -> None:
    sizes = SIZES[0]._replace(n_layer=n_layer)
    write_pth(tmp_path / "m.pth", later_weights("7", sizes))
    with open_checkpoint(tmp_path / "m.pth") as checkpoint:
        assert "blocks.0.att.v0" in checkpoint.tensors
        assert diagnose(checkpoint).architecture.name == "rwkv7"
