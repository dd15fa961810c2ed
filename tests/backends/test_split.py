"""torch-split: devices and shares, in one process and in several under torchrun."""

import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import rwkv_core
from conftest import READY
from pth_writer import write_pth
from random_model import random_weights
from rwkv_core.cli import main

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.skipif("torch-split" not in READY, reason="torch-split is not ready here")

SPLITS = [
    ["cpu"],
    ["cpu", "cpu"],
    ["cpu=3", "cpu=1"],
    ["cpu", "cpu=2.5", "cpu=1.5"],
    ["cpu"] * 7,
]
all_splits = pytest.mark.parametrize("devices", SPLITS, ids=",".join)
SECONDS = 120


@pytest.fixture(scope="module")
def odd_model(tmp_path_factory):
    """A model of width 34 with 101 tokens: only 2 of the numbers of devices divides a size."""
    path = tmp_path_factory.mktemp("odd") / "odd.pth"
    write_pth(path, random_weights(3, 34, 101, seed=2))
    return path


def split(path, devices, **options):
    return rwkv_core.load(path, "torch-split", devices=devices, **options)


def run(model, tokens=tuple(range(1, 60)), step=(7,)):
    """A prompt with all logits, a step, and a batch that goes on from there, as float64."""
    prompt, state = model.forward(tokens, all_logits=True)
    step, state = model.forward(step, state)
    batch, states = model.forward([[1, 2], [3, 4]], model.stack_states([state, state]))
    arrays = prompt, step, state, batch, states
    return [model.to_numpy(array).astype(np.float64) for array in arrays]


@all_splits
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("float32", 2e-5), ("float64", 1e-6), ("float16", 1e-2), ("bfloat16", 5e-2)],
)
def test_results_are_torchs_but_for_the_order_of_sums(odd_model, devices, dtype, tolerance):
    expected = run(rwkv_core.load(odd_model, "torch", device="cpu", dtype=dtype))
    for found, array in zip(run(split(odd_model, devices, dtype=dtype)), expected, strict=True):
        assert np.abs(found - array).max() < tolerance * np.sqrt(np.mean(array**2))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_one_device_gives_torchs_bits(odd_model, dtype):
    # In steps of two tokens: for a single one torch puts vectors together, and rounds otherwise.
    expected = run(rwkv_core.load(odd_model, "torch", device="cpu", dtype=dtype), step=(7, 8))
    results = run(split(odd_model, ["cpu"], dtype=dtype), step=(7, 8))
    for found, array in zip(results, expected, strict=True):
        assert np.array_equal(found, array)


def test_a_seed_gives_torchs_text(small_model):
    texts = []
    for backend, options in (("torch", {}), ("torch-split", {"devices": ["cpu=2", "cpu=3"]})):
        rwkv = rwkv_core.RWKV(small_model, backend, **options)
        rwkv.load_context("the cat")
        texts.append(rwkv.generate(60, seed=5).text)
    assert texts[0] == texts[1]


@pytest.mark.parametrize(("shape", "axis"), [((40, 40), 0), ((160, 40), 0), ((40, 160), 1)])
def test_a_device_holds_its_share_of_a_matrix_and_no_more(odd_model, shape, axis):
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    # In float64 torch multiplies with plain tensors, into which one can look.
    parts = split(odd_model, ["cpu=3", "cpu=1"], dtype="float64").ops.matrix(array).parts
    assert [part.shape[axis] * 4 for part in parts] == [shape[axis] * 3, shape[axis]]
    assert [part.untyped_storage().nbytes() for part in parts] == [part.nbytes for part in parts]
    assert np.array_equal(np.concatenate([part.numpy() for part in parts], axis), array)


def test_float16_overflows_in_no_slice(tmp_path):
    """Channel mixing's squares are far beyond 65504, those of one slice more than the other's."""
    weights = random_weights(2, 32, 101)
    for i in range(2):
        weights[f"blocks.{i}.ffn.key.weight"][:64] *= 1000
    write_pth(tmp_path / "large.pth", weights)
    found, expected = (
        run(split(tmp_path / "large.pth", ["cpu", "cpu"], dtype=dtype))[0]
        for dtype in ("float16", "float64")
    )
    assert np.abs(found - expected).max() < 1e-2 * np.sqrt(np.mean(expected**2))


def test_shares_on_the_command_line(small_model, capsys):
    command = ["generate", "a", "-n", "3", "-m", str(small_model), "-b", "torch-split"]
    assert main([*command, "-o", "devices=cpu=3, cpu"]) == 0
    assert "torch-split on cpu, cpu\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ([], "found an empty list"),
        ("", "found an empty list"),
        (["cpu", "gpu7"], "'gpu7' is not available here"),
        (["cpu=0", "cpu"], "found 'cpu=0', .* a share is above 0"),
        (["cpu=-1", "cpu"], "found 'cpu=-1'"),
        (["cpu=nan"], "found 'cpu=nan'"),
        (["cpu=inf", "cpu"], "found 'cpu=inf'"),
        (["cpu=1e308", "cpu"], "found 'cpu=1e308'"),
        (["meta", "cpu"], "'meta' is not available here"),
        (["cpu=much", "cpu"], "found 'cpu=much'"),
        (["cpu=", "cpu"], "found 'cpu='"),
        (["=2", "cpu"], "found '=2'"),
        ([("cpu", 2)], r"found \('cpu', 2\) in the list"),
        (["cpu"] * 35, "gets none of the 34 channels"),
        (["cpu=1000", "cpu"], "device 2 of 2, with a share of 1 in 1001, gets none"),
    ],
)
def test_bad_devices_are_one_line(odd_model, devices, message):
    with pytest.raises(rwkv_core.RWKVError, match=message) as error:
        split(odd_model, devices)
    assert str(error.value).startswith("option devices: ")
    assert "\n" not in str(error.value)


def held_by_tensors():
    gc.collect()
    tensors = [o for o in gc.get_objects() if type(o) is torch.Tensor]
    # A tensor in oneDNN's layout does not tell its storage.
    return sum(t.nbytes if t.is_mkldnn else t.untyped_storage().nbytes() for t in tensors)


def test_a_load_that_fails_in_the_middle_frees_what_it_took(tmp_path):
    weights = random_weights(2, 32, 101)
    weights["ln_out.bias"][3] = np.nan
    write_pth(tmp_path / "nan.pth", weights)
    before = held_by_tensors()
    with pytest.raises(rwkv_core.CheckpointError):
        split(tmp_path / "nan.pth", ["cpu", "cpu"])
    assert held_by_tensors() == before


# --- several processes ---------------------------------------------------------------------------


def free_port():
    with closing(socket.socket()) as listening:
        listening.bind(("127.0.0.1", 0))
        return str(listening.getsockname()[1])


def torchrun(*arguments, **variables):
    """Run a program as two processes. Return its status, stdout and stderr."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "--master-port", free_port(), *map(str, arguments)],
        capture_output=True, text=True, timeout=SECONDS,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


IN_EVERY_PROCESS = """
import os, sys
import numpy as np
import rwkv_core
from test_split import run

odd, small, folder = sys.argv[1:]
model = rwkv_core.load(odd, "torch-split")
uneven = rwkv_core.load(odd, "torch-split", devices=["cpu=3", "cpu=1"], dtype="bfloat16")
rwkv = rwkv_core.RWKV(small, "torch-split")
rwkv.load_context("the cat")
rwkv.save_state(folder + "/a.state")
arrays = {
    **{f"even{i}": array for i, array in enumerate(run(model))},
    **{f"uneven{i}": array for i, array in enumerate(run(uneven))},
    "seeded": rwkv.generate(20, seed=3).tokens,
    "unseeded": rwkv.generate(20).tokens,
    "elements": sum(p.shape.numel() for p in model.ops.matrix(np.ones((80, 40))).parts),
}
np.savez(f"{folder}/{os.environ['RANK']}.npz", **arrays)
"""


@pytest.fixture(scope="module")
def two_processes(odd_model, small_model, tmp_path_factory):
    """The results of each of two processes, and the folder with their saved state."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "program.py").write_text(IN_EVERY_PROCESS)
    arguments = folder / "program.py", odd_model, small_model, folder
    here = Path(__file__).parent
    path = os.pathsep.join(map(str, (here, here.parent)))
    status, _, errors = torchrun(*arguments, PYTHONPATH=path)
    assert status == 0, errors
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(2)], folder


def test_processes_find_what_one_process_finds(two_processes, odd_model):
    first, second = two_processes[0]
    for name, devices, options in (
        ("even", ["cpu", "cpu"], {}),
        ("uneven", ["cpu=3", "cpu=1"], {"dtype": "bfloat16"}),
    ):
        for i, expected in enumerate(run(split(odd_model, devices, **options))):
            np.testing.assert_allclose(first[f"{name}{i}"], expected, rtol=1e-5, atol=1e-5)
            assert np.array_equal(first[f"{name}{i}"], second[f"{name}{i}"])


def test_processes_hold_half_of_a_matrix_each(two_processes):
    assert [found["elements"] for found in two_processes[0]] == [1600, 1600]


def test_processes_choose_the_same_tokens(two_processes, small_model):
    first, second = two_processes[0]
    rwkv = rwkv_core.RWKV(small_model, "torch-split", devices=["cpu", "cpu"])
    rwkv.load_context("the cat")
    assert first["seeded"].tolist() == second["seeded"].tolist() == rwkv.generate(20, seed=3).tokens
    assert first["unseeded"].tolist() == second["unseeded"].tolist()


def test_a_state_that_processes_saved_goes_on_in_one(two_processes, small_model):
    rwkv = rwkv_core.RWKV(small_model, "torch-split", devices=["cpu", "cpu"])
    rwkv.load_state(two_processes[1] / "a.state")
    assert rwkv.generate(20, seed=3).tokens == two_processes[0][0]["seeded"].tolist()


def test_torchrun_prints_the_text_once(small_model, capfd):
    command = ["generate", "the cat", "-n", "12", "-m", str(small_model), "-b", "torch-split"]
    status, text, errors = torchrun("-m", "rwkv_core", *command, "--json")
    assert status == 0, errors
    assert text.count("\n") == 1
    assert "cpu (process 1 of 2)" in errors and "cpu (process 2 of 2)" in errors
    (seed,) = re.findall(r'"seed": (\d+)', text)
    assert main([*command, "--json", "--seed", seed]) == 0
    tokens = re.compile(r'"tokens": (\[.*?\])')
    assert tokens.findall(text) == tokens.findall(capfd.readouterr().out) != []


# What each of two processes does, the second one something else, and how all of them end.
THAT_DIFFER = """
import json, os, signal, sys
import rwkv_core

first = os.environ["RANK"] == "0"
odd, other = sys.argv[1:]

def attempt(path=odd, tokens=(1, 2, 3), **options):
    try:
        model, state = rwkv_core.load(path, "torch-split", **options), None
        for token in tokens:
            if token is None:
                os.kill(os.getpid(), signal.SIGKILL)
            _, state = model.forward([token], state)
        print(json.dumps("it ran"), flush=True)
    except rwkv_core.RWKVError as error:
        print(json.dumps(str(error)), flush=True)

attempt(dtype="float32" if first else "bfloat16")
attempt(devices=["cpu", "cpu"] if first else ["cpu=2", "cpu"])
attempt(devices=["cpu", "cpu", "cpu"])
attempt(odd if first else other)
attempt(tokens=[1, 2, 3] if first else [1, 2, 4])
attempt()
attempt(tokens=[1, 2, 3] if first else [1, 2, None])
"""
ENDS = {
    "dtype": r"process {other} has another dtype or runtime_dtype \({dtype}, float32\) than",
    "shares": r"process {other} has another kind of device or shares \(cpu, \({share}, 1.0\)\)",
    "number of devices": "^option devices: found 3, expected one for each of the 2 processes$",
    "model": "process {other} has another model, or other tokens to read, than process {this}",
    "tokens": "process {other} has another model, or other tokens to read, than process {this}",
    "nothing": "^it ran$",
    "one dies": "^torch-split: the exchange with the other processes failed; one of them has ended",
}


@pytest.fixture(scope="module")
def that_differ(odd_model, tmp_path_factory):
    """The status and the messages of each of two processes, started without torchrun."""
    other = tmp_path_factory.mktemp("other") / "other.pth"
    write_pth(other, random_weights(3, 34, 101, seed=3))
    together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", THAT_DIFFER, str(odd_model), str(other)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **together, "OMP_NUM_THREADS": "1", "RANK": str(rank)},
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=SECONDS)[0] for process in processes]
    messages = [[json.loads(line) for line in output.splitlines()] for output in outputs]
    return [process.returncode for process in processes], messages


@pytest.mark.parametrize("what", ENDS)
def test_processes_that_differ_say_so_and_end(that_differ, what):
    statuses, messages = that_differ
    assert statuses == [0, -signal.SIGKILL]
    i = list(ENDS).index(what)
    for rank, found in enumerate(messages):
        if what == "one dies" and rank == 1:
            continue
        mine = {"dtype": ["float32", "bfloat16"][rank], "share": ["1.0", "2.0"][rank]}
        assert re.search(ENDS[what].format(this=rank + 1, other=2 - rank, **mine), found[i])
