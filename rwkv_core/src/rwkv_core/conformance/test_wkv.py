"""The WKV scan against the reference's sums over the whole past, for usual and extreme values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rwkv_core.architectures.rwkv4 import EMPTY_PP
from rwkv_core.backends.tensor_ops import TensorOps, WKVState
from rwkv_core.conformance.closeness import assert_close, call, of_vectors
from rwkv_core.conformance.references import rwkv4 as reference
from rwkv_core.conformance.shapes import vector_shapes

Scan = tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]


class Case:
    """Arguments of a scan from the empty state, and the expected results."""

    def __init__(
        self,
        rng: np.random.Generator,
        shape: tuple[int, int, int],
        key_size: float = 1.0,
        first_size: float = 1.0,
    ) -> None:
        # Exponents are multiples of 1/64, so that float32 adds them without rounding, and only the
        # scan is compared.
        self.shape, n_embd = shape, shape[2]
        self.k = np.round(rng.normal(size=shape) * 64 * key_size) / 64
        self.v = rng.normal(size=shape).astype(np.float32)
        self.decay = -np.round(rng.permutation(np.geomspace(1, 1280, n_embd))) / 64
        self.first = np.round(rng.normal(size=n_embd) * 64 * first_size) / 64

    def expected(self) -> Any:
        """Return means, and the memory's mean and log-weight, after each token; each [B, T, D]."""
        rows = [
            reference.wkv(k, v, -self.decay, self.first)
            for k, v in zip(self.k, self.v.astype(np.float64), strict=True)
        ]
        return tuple(np.stack(row) for row in zip(*rows, strict=True))

    def vectors(
        self, ops: TensorOps, start: int = 0, end: int | None = None
    ) -> tuple[Any, Any, Any, Any]:
        k, v = ops.vector(self.k[:, start:end]), ops.vector(self.v[:, start:end])
        return k, v, ops.vector(self.decay), ops.vector(self.first)

    def empty(self, ops: TensorOps) -> WKVState:
        zeros = np.zeros((self.shape[0], self.shape[2]))
        return ops.vector(zeros), ops.vector(zeros), ops.vector(zeros + EMPTY_PP)

    def scan(self, ops: TensorOps) -> Scan:
        means, state = call(ops, "wkv", *self.vectors(ops), self.empty(ops))
        aa, bb, pp = (ops.to_numpy(array) for array in state)
        found = ops.to_numpy(means)
        assert {array.dtype for array in (found, aa, bb, pp)} == {np.dtype(ops.runtime_dtype)}
        return found, (aa, bb, pp)

    def check(self, ops: TensorOps, what: str = "") -> None:
        """Compare the scan of the whole case with the reference."""
        what = f"wkv of {list(self.shape)} {what}"
        found, (aa, bb, pp) = self.scan(ops)
        means, memories, log_weights = self.expected()
        assert_close(found, means, of_vectors(ops), f"{what}: means")
        assert_close(aa / bb, memories[:, -1], of_vectors(ops), f"{what}: state, aa / bb")
        log_weight = pp + np.log(bb)
        assert_close(log_weight, log_weights[:, -1], of_vectors(ops), f"{what}: pp + log bb")


def test_means_and_memory_are_the_references_at_every_shape(
    ops: TensorOps, rng: np.random.Generator
) -> None:
    for shape in vector_shapes(ops):
        Case(rng, shape).check(ops)


@pytest.mark.parametrize("n_time", [1, 16, 64])
@pytest.mark.parametrize(
    ("key_size", "first_size"), [(100.0, 1.0), (1e4, 1.0), (100.0, 100.0), (1.0, 1000.0)]
)
def test_large_keys_and_bonuses(
    ops: TensorOps, rng: np.random.Generator, n_time: int, key_size: float, first_size: float
) -> None:
    """The maximum that prevents overflow must include `first` and `decay`."""
    case = Case(rng, (3, n_time, 64), key_size, first_size)
    case.check(ops, f"with keys of {key_size:g} and `first` of {first_size:g}")


@pytest.mark.parametrize("n_time", [1, 16, 64])
def test_channels_that_forget_at_once(
    ops: TensorOps, rng: np.random.Generator, n_time: int
) -> None:
    """A model's time_decay is limited to 40, so -exp(40) is added to an exponent."""
    case = Case(rng, (2, n_time, 64))
    case.decay[::2] = -np.exp(40.0)
    found, (aa, bb, _) = case.scan(ops)
    what = f"wkv of {n_time} tokens with decays of -exp(40)"
    # Besides the current token, only the one before it counts.
    before, now = np.exp(case.k[:, :-1]), np.exp(case.k[:, 1:] + case.first)
    v = case.v.astype(np.float64)
    means = (before * v[:, :-1] + now * v[:, 1:]) / (before + now)
    means = np.concatenate([v[:, :1], means], axis=1)[:, :, ::2]
    assert_close(found[:, :, ::2], means, of_vectors(ops), f"{what}: means")
    assert_close((aa / bb)[:, ::2], v[:, -1, ::2], of_vectors(ops), f"{what}: state, aa / bb")


def test_scan_is_the_defaults(ops: TensorOps, rng: np.random.Generator) -> None:
    for shape in ((1, 1, 64), (3, 16, 64)):
        case = Case(rng, shape)
        found, state = case.scan(ops)
        default, default_state = TensorOps.wkv(ops, *case.vectors(ops), case.empty(ops))
        what = "beside TensorOps.wkv"
        assert_close(found, ops.to_numpy(default), of_vectors(ops), f"means {what}")
        for name, one, other in zip(("aa", "bb", "pp"), state, default_state, strict=True):
            assert_close(one, ops.to_numpy(other), of_vectors(ops), f"{name} {what}")


@pytest.mark.parametrize("cut", [1, 4, 16])
@pytest.mark.parametrize("n_batch", [1, 3])
def test_scan_goes_on_from_a_state(
    ops: TensorOps, rng: np.random.Generator, n_batch: int, cut: int
) -> None:
    case = Case(rng, (n_batch, cut + 16, 64), 10.0)
    head, state = ops.wkv(*case.vectors(ops, 0, cut), case.empty(ops))
    tail, _ = call(ops, "wkv", *case.vectors(ops, cut, None), state)
    found = np.concatenate([ops.to_numpy(head), ops.to_numpy(tail)], axis=1)
    what = f"wkv of 16 tokens after {cut}"
    assert_close(found, case.expected()[0], of_vectors(ops), what)


@pytest.mark.parametrize("n_time", [1, 16])
def test_results_of_a_scan_outlive_the_next_call(
    ops: TensorOps, rng: np.random.Generator, n_time: int
) -> None:
    one, other = Case(rng, (2, n_time, 64)), Case(rng, (2, n_time, 64))
    means, state = ops.wkv(*one.vectors(ops), one.empty(ops))
    before = [ops.to_numpy(array).copy() for array in (means, *state)]
    for _ in range(3):
        ops.wkv(*other.vectors(ops), other.empty(ops))
    for array, kept in zip((means, *state), before, strict=True):
        assert np.array_equal(ops.to_numpy(array), kept), "wkv: a result changes with the next call"


def test_nan_stays_nan(ops: TensorOps, rng: np.random.Generator) -> None:
    for name in "kv":
        case = Case(rng, (1, 16, 64))
        getattr(case, name)[0, 3, 5] = np.nan
        found, _ = case.scan(ops)
        message = f"wkv: NaN went in as `{name}`, {found[0, 3, 5]} came out as a mean"
        assert np.isnan(found[0, 3, 5]), message


@pytest.mark.parametrize("key", [-1e4, 0.0, 1e4])
def test_the_first_tokens_mean_is_its_value(
    ops: TensorOps, rng: np.random.Generator, key: float
) -> None:
    case = Case(rng, (2, 1, 64))
    case.k[:] = key
    assert_close(case.scan(ops)[0], case.v, of_vectors(ops), f"wkv of one token, key {key:g}")


@pytest.mark.parametrize("keys", [(-1e4, 1e4), (1e4, -1e4)], ids=["rising", "falling"])
def test_keys_that_jump_overflow_nothing(
    ops: TensorOps, rng: np.random.Generator, keys: tuple[float, float]
) -> None:
    case = Case(rng, (1, 16, 64))
    case.k[:, 0::2] += keys[0]
    case.k[:, 1::2] += keys[1]
    case.check(ops, f"with keys about {keys[0]:g} and {keys[1]:g} by turns")


def test_a_memory_that_hardly_fades_holds_over_thousands_of_tokens(
    ops: TensorOps, rng: np.random.Generator
) -> None:
    case = Case(rng, (1, 2048, 64))
    case.decay[:] = -1 / 64
    case.decay[1::2] = -(2.0**-14)
    state = case.empty(ops)
    for start in range(0, 2048, 512):
        means, state = ops.wkv(*case.vectors(ops, start, start + 512), state)
    # Exponents are at most 4 here without rescaling, so plain sums over the past suffice.
    age = np.arange(2047)[::-1, None]
    past, now = np.exp(case.k[0, :-1] + age * case.decay), np.exp(case.k[0, -1] + case.first)
    v = case.v[0].astype(np.float64)
    expected = ((past * v[:-1]).sum(axis=0) + now * v[-1]) / (past.sum(axis=0) + now)
    what = "wkv of the last of 2048 tokens, read 512 per call"
    assert_close(ops.to_numpy(means)[0, -1], expected, of_vectors(ops), what)
