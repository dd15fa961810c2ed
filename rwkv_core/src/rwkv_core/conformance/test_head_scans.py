"""The scans of RWKV-5 to 7 against the references' sums over the whole past."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rwkv_core.backends.tensor_ops import TensorOps
from rwkv_core.conformance.closeness import assert_close, call, of_vectors
from rwkv_core.conformance.references import rwkv5, rwkv7
from rwkv_core.conformance.shapes import head_shapes

# Arguments of each scan before its state, in this order; all are [B, T, D], except `bonus` [D].
NAMES = {
    "wkv6": ("r", "w", "k", "v", "bonus"),
    "wkv7": ("r", "w", "k", "v", "kk", "b"),
}
REFERENCES: dict[str, Callable[..., Any]] = {"wkv6": rwkv5.wkv, "wkv7": rwkv7.wkv}
every_scan = pytest.mark.parametrize("name", NAMES)


class Case:
    """Float32 arguments of a scan from the empty state, and the expected results."""

    def __init__(
        self, rng: np.random.Generator, name: str, shape: tuple[int, int, int, int]
    ) -> None:
        n_batch, n_time, n_head, self.head_size = shape
        self.name, self.width = name, n_head * self.head_size
        tokens = (n_batch, n_time, self.width)
        self.arrays = {
            part: rng.standard_normal(tokens, np.float32) for part in NAMES[name] if part != "bonus"
        }
        # From a channel that keeps almost everything to one that keeps almost nothing.
        self.arrays["w"] = np.exp(-np.exp(rng.uniform(-6, 2, tokens))).astype(np.float32)
        if name == "wkv6":
            self.arrays["bonus"] = rng.standard_normal(self.width, np.float32)
        else:
            heads = self.arrays["kk"].reshape(*tokens[:2], n_head, self.head_size)
            heads /= np.linalg.norm(heads, axis=-1, keepdims=True)
            self.arrays["w"] = rng.uniform(0.55, 1, tokens).astype(np.float32)
            self.arrays["b"] = self.arrays["kk"] * rng.uniform(0, 1, tokens).astype(np.float32)

    def expected(self) -> tuple[np.ndarray, np.ndarray]:
        """Return y [B, T, D], and S after the last token in the contract's layout, [B, N, D]."""
        rows = []
        for i in range(len(self.arrays["k"])):
            parts = {part: array.astype(np.float64) for part, array in self.arrays.items()}
            parts["w"] = np.broadcast_to(parts["w"], parts["k"].shape)
            one = [parts[p] if p == "bonus" else parts[p][i] for p in NAMES[self.name]]
            y, s = REFERENCES[self.name](*one, self.head_size)
            rows.append((y, s[-1].transpose(1, 0, 2).reshape(self.head_size, self.width)))
        return np.stack([y for y, _ in rows]), np.stack([s for _, s in rows])

    def vectors(self, ops: TensorOps, start: int = 0, end: int | None = None) -> list[Any]:
        arrays = (self.arrays[part] for part in NAMES[self.name])
        return [ops.vector(one if one.ndim == 1 else one[:, start:end]) for one in arrays]

    def empty(self, ops: TensorOps) -> Any:
        return ops.vector(np.zeros((len(self.arrays["k"]), self.head_size, self.width)))

    def check(self, ops: TensorOps, what: str = "") -> None:
        """Compare the scan of the whole case with the reference."""
        found, s = (
            ops.to_numpy(array)
            for array in call(ops, self.name, *self.vectors(ops), self.empty(ops))
        )
        assert {found.dtype, s.dtype} == {np.dtype(ops.runtime_dtype)}
        y, last = self.expected()
        what = f"{self.name} of {list(y.shape)}, heads of {self.head_size}{what}"
        assert_close(found, y, of_vectors(ops), f"{what}: y")
        assert_close(s, last, of_vectors(ops), f"{what}: S, a row for each value channel")


@every_scan
def test_scan_is_the_references_at_every_shape(
    ops: TensorOps, rng: np.random.Generator, name: str
) -> None:
    for shape in head_shapes(ops):
        Case(rng, name, shape).check(ops)


@every_scan
def test_scan_is_the_defaults(ops: TensorOps, rng: np.random.Generator, name: str) -> None:
    for shape in ((1, 1, 3, 32), (3, 4, 5, 32)):
        case = Case(rng, name, shape)
        arguments = [*case.vectors(ops), case.empty(ops)]
        found = getattr(ops, name)(*arguments)
        default = getattr(TensorOps, name)(ops, *arguments)
        for part, one, other in zip("yS", found, default, strict=True):
            what = f"{name}: {part} beside TensorOps.{name}"
            assert_close(ops.to_numpy(one), ops.to_numpy(other), of_vectors(ops), what)


@every_scan
@pytest.mark.parametrize(("cut", "end"), [(1, 5), (4, 5), (4, 68)])
def test_scan_goes_on_from_a_state(
    ops: TensorOps, rng: np.random.Generator, name: str, cut: int, end: int
) -> None:
    case = Case(rng, name, (3, end, 2, 32))
    head, s = getattr(ops, name)(*case.vectors(ops, 0, cut), case.empty(ops))
    tail, s = call(ops, name, *case.vectors(ops, cut), s)
    found = np.concatenate([ops.to_numpy(head), ops.to_numpy(tail)], axis=1)
    y, last = case.expected()
    what = f"{name} of {end - cut} tokens after {cut}"
    assert_close(found, y, of_vectors(ops), f"{what}: y")
    assert_close(ops.to_numpy(s), last, of_vectors(ops), f"{what}: S")


@pytest.mark.parametrize("n_time", [1, 16])
@pytest.mark.parametrize("of_tokens", [True, False], ids=["[B, T, D]", "[D]"])
def test_decays_of_0_and_of_1(
    ops: TensorOps, rng: np.random.Generator, of_tokens: bool, n_time: int
) -> None:
    """A decay exp(-exp(.)) may round to 0 and 1, so a scan must not divide by a decay."""
    case = Case(rng, "wkv6", (2, n_time, 3, 32))
    if not of_tokens:
        case.arrays["w"] = case.arrays["w"][0, 0]
    case.arrays["w"][..., 0::4] = 0
    case.arrays["w"][..., 1::4] = 1
    case.check(ops, ", decays of 0 and 1")


@pytest.mark.parametrize("n_time", [1, 16])
def test_one_channels_decay_is_not_anothers(
    ops: TensorOps, rng: np.random.Generator, n_time: int
) -> None:
    """One key channel has decay 1 and keeps everything. The others have decay 0 and forget."""
    case = Case(rng, "wkv6", (1, n_time + 1, 2, 32))
    case.arrays["w"][:] = 0
    case.arrays["w"][..., 5] = 1
    case.check(ops, ", where a channel alone keeps what it has")


def test_the_fastest_decay_of_rwkv7(ops: TensorOps, rng: np.random.Generator) -> None:
    """The product of 256 tokens' decays is 1e-68.

    Float32 rounds this product to 0, so a scan must not divide by it.
    """
    case = Case(rng, "wkv7", (1, 256, 1, 32))
    case.arrays["w"][:] = np.exp(-np.exp(-0.5))
    case.arrays["w"][..., 0::4] = 1
    case.check(ops, ", the fastest decay and none")


def test_a_key_of_zeros_takes_nothing_out(ops: TensorOps, rng: np.random.Generator) -> None:
    case = Case(rng, "wkv7", (1, 4, 3, 32))
    for part in ("kk", "b"):
        case.arrays[part][:, 2, 32:64] = 0
    case.check(ops, ", a `kk` of zeros")


def test_a_key_taken_out_whole_is_forgotten(ops: TensorOps, rng: np.random.Generator) -> None:
    """Without decay and with b = kk, the key kk reads only the last value stored under it."""
    case = Case(rng, "wkv7", (1, 4, 2, 32))
    case.arrays["w"][:] = 1
    case.arrays["b"] = case.arrays["r"] = case.arrays["k"] = case.arrays["kk"]
    case.check(ops, ", all of a key taken out")
    y, _ = case.expected()
    np.testing.assert_allclose(y, case.arrays["v"], atol=1e-5)


@every_scan
def test_results_outlive_the_next_call(ops: TensorOps, rng: np.random.Generator, name: str) -> None:
    one, other = Case(rng, name, (3, 4, 5, 32)), Case(rng, name, (3, 4, 5, 32))
    found = getattr(ops, name)(*one.vectors(ops), one.empty(ops))
    before = [ops.to_numpy(array).copy() for array in found]
    for _ in range(3):
        getattr(ops, name)(*other.vectors(ops), other.empty(ops))
    for array, kept in zip(found, before, strict=True):
        message = f"{name}: a result changes with the next call"
        assert np.array_equal(ops.to_numpy(array), kept), message


@every_scan
def test_nan_stays_in_its_head(ops: TensorOps, rng: np.random.Generator, name: str) -> None:
    for part in NAMES[name]:
        case = Case(rng, name, (1, 4, 3, 32))
        array = case.arrays[part]
        array[(0, 1, 37) if array.ndim == 3 else (37,)] = np.nan
        y, _ = getattr(ops, name)(*case.vectors(ops), case.empty(ops))
        nan = np.isnan(ops.to_numpy(y)[0]).reshape(4, 3, 32)
        # RWKV-6's decay shows with the next token.
        t = 2 if part == "w" else 1
        message = f"{name}: NaN went in as `{part}` of head 1"
        assert nan[t, 1, 37 - 32], f"{message}, a number came out as y"
        assert not nan[:, [0, 2]].any(), f"{message}, and came out in another head too"
