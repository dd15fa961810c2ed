"""The page for authors of backends lists exactly what the core asks of `xp` and of an array."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import rwkv_core
from later_versions import SIZES, VERSIONS, later_weights
from pth_writer import write_pth
from random_model import random_weights
from rwkv_core import plugins
from rwkv_core.backends.tensor_ops import TensorOps

PAGE = Path(__file__).parents[2] / "rwkv_core" / "docs" / "writing-a-backend.md"


class Recorded:
    """An array that records which of its attributes are used, and passes operators on."""

    def __init__(self, array: Any, seen: set[str]) -> None:
        self._array, self._seen = array, seen

    def __getattr__(self, name: str) -> Any:
        self._seen.add(f".{name}")
        value = getattr(self._array, name)
        return Recorded(value, self._seen) if isinstance(value, np.ndarray) else value


def operator(name: str) -> Callable[..., Any]:
    def apply(self: Recorded, *others: Any) -> Any:
        return wrap(getattr(self._array, name)(*map(plain, others)), self._seen)

    return apply


# The arithmetic and the indexing of the standard.
for name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "neg", "getitem"):
    setattr(Recorded, f"__{name}__", operator(f"__{name}__"))


def plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    return value._array if isinstance(value, Recorded) else value


def wrap(value: Any, seen: set[str]) -> Any:
    return Recorded(value, seen) if isinstance(value, np.ndarray) else value


class RecordingXp:
    def __init__(self, seen: set[str]) -> None:
        self._seen = seen

    def __getattr__(self, name: str) -> Any:
        self._seen.add(name)
        found = getattr(np, name)
        if not callable(found) or isinstance(found, type):
            return found

        def call(*arguments: Any, **named: Any) -> Any:
            named = {key: plain(value) for key, value in named.items()}
            return wrap(found(*map(plain, arguments), **named), self._seen)

        return call


class RecordingOps(TensorOps):
    """Only what a backend must have; its matrices are of another dtype than its vectors."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self.xp = RecordingXp(self.seen)

    def vector(self, array: Any) -> Any:
        return Recorded(array.astype("float32"), self.seen)

    def matrix(self, array: Any) -> Any:
        return Recorded(array.astype("float64"), self.seen)

    def to_numpy(self, array: Any) -> Any:
        return array._array


def test_the_page_lists_what_the_core_calls(tmp_path: Path, monkeypatch: Any) -> None:
    ops = RecordingOps()
    monkeypatch.setattr(plugins, "start_backend", lambda *_: ("recording", ops))
    write_pth(tmp_path / "m.pth", random_weights(2, 32, 50, seed=1))
    for version in VERSIONS:
        write_pth(tmp_path / f"{version}.pth", later_weights(version, SIZES[0]))
        rwkv_core.load(tmp_path / f"{version}.pth").forward([1, 2])
    model = rwkv_core.load(tmp_path / "m.pth")
    _, state = model.forward([1] * 600)
    model.forward([1] * 600, state, all_logits=True)
    model.save_state(tmp_path / "s.state", state)
    batch = model.stack_states([state, model.load_state(tmp_path / "s.state")])
    model.forward([[2], [3]], batch)
    model.unstack_state(batch)
    text = PAGE.read_text()
    listed = re.search(r"<!-- functions -->\n(.*?)<!-- end of functions -->", text, re.S)
    assert listed is not None
    # `device` is for people to read, and asked for only where an array has it.
    assert set(re.findall(r"`([.\w]+)`", listed[1])) == ops.seen - {".device"}
