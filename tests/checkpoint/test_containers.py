"""A state dict is found among other data that trainers save, which is skipped."""

from __future__ import annotations

import argparse
import datetime
import types
from collections import Counter, defaultdict, deque
from pathlib import Path

import numpy as np
import pytest
from test_pth import read_all

from rwkv_core.errors import CheckpointError


def test_a_trainer_s_plain_containers_are_skipped(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    weights = {"emb.weight": torch.ones(3, 4), "with_attribute": torch.ones(2)}
    weights["with_attribute"].note = "of its own"
    parameter = torch.nn.Parameter(torch.full((2,), 3.0))
    parameter.note = "of its own"
    model = defaultdict(list, {**weights, "parameter": parameter})
    about = {
        "rng_state": torch.get_rng_state(),
        "numpy_rng": np.random.RandomState(0).get_state(),
        "generator": np.random.default_rng(0).bit_generator.state,
        "size": torch.Size([1, 2]),
        "args": argparse.Namespace(lr=1e-3, betas=(0.9, 0.99), path=Path("a/b")),
        "more": types.SimpleNamespace(loss=np.float64(2.5), step=np.int64(7), on=np.bool_(True)),
        "array": np.arange(3),
        "kind": (torch.float16, torch.device("cpu"), np.dtype("float32")),
        "seen": {1, 2},
        "frozen": frozenset("ab"),
        "counted": Counter("hello"),
        "last": deque([1, 2], maxlen=2),
        "when": datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC),
        "bytes": (b"ab", bytearray(b"cd"), 1 + 2j),
        "complex": torch.ones(2, dtype=torch.complex64),
        "float8": (torch.ones(2).to(torch.float8_e5m2), torch.float8_e4m3fn),
        "unsigned": torch.ones(2, dtype=torch.uint16),
        "sparse": torch.eye(3).to_sparse(),
        "meta": torch.empty(2, device="meta"),
        "numpy_generator": np.random.default_rng(0),
        "large": 2**300,
        "losses": [i / 7 for i in range(200_000)],
    }
    content = {**about, "epoch": {"ema": {"emb.weight": torch.zeros(3, 4)}, "model": model}}
    for protocol in (2, 4, 5):
        torch.save(content, tmp_path / "m.pth", pickle_protocol=protocol)
        found = read_all(tmp_path / "m.pth")
        assert found.keys() == model.keys()
        assert (found["emb.weight"] == 1).all() and (found["parameter"] == 3).all()


def test_a_model_comes_before_its_moving_average(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    one, other = {"x": torch.ones(3)}, {"x": torch.zeros(3)}
    torch.save({"ema": other, "state_dict": one}, tmp_path / "m.pth")
    np.testing.assert_array_equal(read_all(tmp_path / "m.pth")["x"], np.ones(3))


def test_usual_names_come_before_more_tensors(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = {"emb.weight": torch.ones(3)}
    moments = {f"emb.weight.exp_avg{i}": torch.zeros(3) for i in range(2)}
    torch.save({"optimizer": moments, "model": model}, tmp_path / "m.pth")
    assert list(read_all(tmp_path / "m.pth")) == ["emb.weight"]


def test_of_several_equal_dictionaries_none_is_guessed(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    parts = {key: {"emb.weight": torch.ones(3)} for key in ("gradients", "net")}
    torch.save(parts, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"2 state dicts of 1 tensors \('gradients', 'net'\)"):
        read_all(tmp_path / "m.pth")


def test_a_tensor_that_stands_for_its_negative_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"emb.weight": torch._neg_view(torch.ones(3))}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="torch's bit for neg"):
        read_all(tmp_path / "m.pth")


def test_a_long_pickle_is_not_called_damaged(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"emb.weight": torch.ones(3), "note": "a" * 2**23}, tmp_path / "m.pth")
    with pytest.raises(
        CheckpointError, match=r"bytes, at most .* are read; re-save the state dict"
    ):
        read_all(tmp_path / "m.pth")
