"""The memory of models, in the library and in `rwkv-core vram`."""

import json

import pytest

from random_model import random_weights
from rwkv_core.architectures.base import Config
from rwkv_core.architectures.rwkv4 import RWKV4
from rwkv_core.backends.offload_plan import model_bytes, plan_offload
from rwkv_core.cli import main
from rwkv_core.dtypes import BYTES_PER_WEIGHT
from rwkv_core.evaluation import memory_estimate

# Millions of parameters, as their publisher counts them.
PUBLISHED = {
    **{"169M": 169, "430M": 430, "1.5B": 1515, "3B": 2985, "7B": 7393, "14B": 14148},
    **{"rwkv5.2:0.4B": 462, "rwkv5.2:1.5B": 1578, "rwkv5.2:3B": 3063, "rwkv5.2:7B": 7518},
    **{"rwkv6:1.6B": 1600, "rwkv6:3B": 3100, "rwkv6:7B": 7636, "rwkv6:14B": 14069},
    **{"rwkv7:0.1B": 191, "rwkv7:0.4B": 451, "rwkv7:1.5B": 1527, "rwkv7:2.9B": 2948},
}


def test_counts_are_those_of_a_real_model():
    weights = random_weights(3, 32, 101)
    counts = Config(3, 32, 128, 101, RWKV4).count_parameters()
    assert counts.total == sum(array.size for array in weights.values())
    assert counts.embedding == counts.head == 101 * 32
    assert counts.vectors == sum(
        array.size for array in weights.values() if max(array.shape) == array.size
    )


def test_the_known_sizes_have_the_parameters_in_their_names():
    millions = {row.name: row.parameters / 1e6 for row in memory_estimate.memory_of_known_models()}
    assert millions == pytest.approx(PUBLISHED, rel=0.005)


def test_weights_are_matrices_vectors_and_embedding():
    shape = Config(2, 64, 256, 100, RWKV4)
    counts = shape.count_parameters()
    fixed = 2 * counts.embedding + 4 * counts.vectors
    found = memory_estimate.memory("m", shape).weights
    assert found["float32"] == 4 * counts.matrices + fixed
    assert found["float16"] == found["bfloat16"] == 2 * counts.matrices + fixed
    assert found["int8"] == counts.matrices * 68 // 64 + fixed
    assert found["int4"] == counts.matrices * 36 // 64 + fixed
    wider = memory_estimate.memory("m", shape, embedding_bytes=4).weights
    assert wider["float32"] - found["float32"] == 2 * counts.embedding


@pytest.mark.needs_backend
def test_the_state_is_that_of_a_model(small_model):
    import rwkv_core

    model = rwkv_core.load(small_model)
    state = model.forward([1])[1]
    arrays = model.to_numpy(state.array), model.to_numpy(state.logits)
    assert memory_estimate.memory_of_file(small_model).state == sum(
        array.nbytes for array in arrays
    )


def test_vram_lists_the_known_sizes(capsys):
    assert main(["vram"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["model", "parameters", "float32"]
    assert [line.split()[0] for line in lines[1:]] == list(PUBLISHED)


def test_vram_of_a_file_as_json_is_in_bytes(small_model, capsys):
    assert main(["vram", "-m", str(small_model), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["model"], row["n_layer"], row["n_embd"], row["n_ffn"]) == (
        str(small_model), 2, 32, 128,
    )  # fmt: skip
    assert set(row["weights"]) == set(BYTES_PER_WEIGHT)
    # The file is of float32, the embedding in it too.
    assert row["weights"]["float32"] == 4 * row["parameters"]


def test_vram_with_a_target_shows_what_stays(small_model, capsys):
    arguments = ["vram", "-m", str(small_model), "--target", "0.00006", "-o", "dtype=float16"]
    assert main([*arguments, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    config = memory_estimate.memory_of_file(small_model).config
    chosen = plan_offload(*model_bytes(config.weights().values(), "float16", "float32"), 60_000)
    assert 0 < row["resident_matrices"] < row["matrices"] == 15
    assert {key: row[key] for key in ("dtype", "target", "fits")} == {
        "dtype": "float16", "target": 60_000, "fits": True,
    }  # fmt: skip
    for key in ("resident", "slot", "streamed", "total"):
        assert row[key] == getattr(chosen, key)
    assert row["least_target"] <= row["total"] <= 60_000


def test_vram_with_a_target_lists_the_known_sizes(capsys):
    assert main(["vram", "--target", "0.5", "-o", "dtype=float16"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:3] == ["model", "matrices", "resident"]
    assert lines[1][:4] == ["169M", "85", "of", "85"]
    # 7B and 14B need more than that.
    large = [line for line in lines if line[0] in ("7B", "14B")]
    assert [line[1] for line in large] == ["-", "-"]
    assert all(float(line[-1]) > 0.5 for line in large)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "0.00001"], "expected at least 0.0000"),
        (["--target", "nan"], "found nan, expected GB"),
        (["--target", "-1"], "found -1.0, expected GB"),
        (["--target", "1", "-o", "dtype=int3"], "found 'int3', expected one of: float64"),
        (["--target", "1", "-o", "device=cpu"], "vram has only the option dtype"),
        (["-o", "dtype=int8"], "goes with --target"),
    ],
)
def test_vram_refuses_in_one_line(small_model, capsys, arguments, message):
    assert main(["vram", "-m", str(small_model), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
