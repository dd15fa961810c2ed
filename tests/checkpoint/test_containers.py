"""A state dict is found among what trainers save with it, all of which is skipped."""

from __future__ import annotations

import argparse
import datetime
import types
from collections import Counter, defaultdict, deque
from pathlib import Path

import numpy as np
import pytest
from test_pth import read_all


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
