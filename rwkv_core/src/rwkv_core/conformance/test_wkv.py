"""The WKV scan against the reference's sums over the whole past, gentle and extreme."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rwkv_core.conformance import reference
from rwkv_core.conformance.closeness import assert_close, of_vectors
from rwkv_core.recurrence import EMPTY_PP
from rwkv_core.tensor_ops import TensorOps

N_EMBD = 64
lengths = pytest.mark.parametrize("n_time", [1, 2, 17, 300])
batches = pytest.mark.parametrize("n_batch", [1, 3])


class Case:
    """Arguments of a scan that starts from nothing, and what must come of them."""

    def __init__(self, rng: np.random.Generator, n_batch: int, n_time: int, size: float) -> None:
        # Exponents are multiples of 1/64, so that float32 adds them without rounding and what
        # is left to compare is the scan itself.
        self.k = np.round(rng.normal(size=(n_batch, n_time, N_EMBD)) * 64 * size) / 64
        self.v = rng.normal(size=self.k.shape).astype(np.float32)
        self.decay = -np.round(rng.permutation(np.geomspace(1, 1280, N_EMBD))) / 64
        self.first = np.round(rng.normal(size=N_EMBD) * 64) / 64

    def expected(self) -> tuple[Any, Any, Any]:
        """Means [B, T, D], and mean and log-weight [B, T, D] of the memory after each token."""
        v = self.v.astype(np.float64)
        rows = [
            reference.wkv(k, v, -self.decay, self.first) for k, v in zip(self.k, v, strict=True)
        ]
        means, memories, log_weights = (np.stack(row) for row in zip(*rows, strict=True))
        return means, memories, log_weights

    def vectors(
        self, ops: TensorOps, start: int = 0, end: int | None = None
    ) -> tuple[Any, Any, Any, Any]:
        k, v = ops.vector(self.k[:, start:end]), ops.vector(self.v[:, start:end])
        return k, v, ops.vector(self.decay), ops.vector(self.first)


def empty(ops: TensorOps, n_batch: int) -> tuple[Any, Any, Any]:
    zeros = np.zeros((n_batch, N_EMBD))
    return ops.vector(zeros), ops.vector(zeros), ops.vector(zeros + EMPTY_PP)


@lengths
@batches
@pytest.mark.parametrize("size", [1.0, 100.0, 1e4])
def test_means_and_memory_are_the_references(
    ops: TensorOps, rng: np.random.Generator, n_batch: int, n_time: int, size: float
) -> None:
    case = Case(rng, n_batch, n_time, size)
    means, memories, log_weights = case.expected()
    found, state = ops.wkv(*case.vectors(ops), empty(ops, n_batch))
    assert ops.to_numpy(found).dtype == ops.runtime_dtype
    assert_close(ops.to_numpy(found), means, of_vectors(ops), "means")
    aa, bb, pp = (ops.to_numpy(array) for array in state)
    assert {array.dtype for array in (aa, bb, pp)} == {np.dtype(ops.runtime_dtype)}
    assert_close(aa / bb, memories[:, -1], of_vectors(ops), "aa / bb")
    assert_close(pp + np.log(bb), log_weights[:, -1], of_vectors(ops), "pp + log bb")


@lengths
@batches
def test_scan_is_the_defaults(
    ops: TensorOps, rng: np.random.Generator, n_batch: int, n_time: int
) -> None:
    case = Case(rng, n_batch, n_time, 1.0)
    vectors = case.vectors(ops)
    found, state = ops.wkv(*vectors, empty(ops, n_batch))
    default, default_state = TensorOps.wkv(ops, *vectors, empty(ops, n_batch))
    assert_close(ops.to_numpy(found), ops.to_numpy(default), of_vectors(ops), "means")
    for name, one, other in zip(("aa", "bb", "pp"), state, default_state, strict=True):
        assert_close(ops.to_numpy(one), ops.to_numpy(other), of_vectors(ops), name)


@batches
@pytest.mark.parametrize("cut", [1, 16, 30])
def test_scan_goes_on_from_a_state(
    ops: TensorOps, rng: np.random.Generator, n_batch: int, cut: int
) -> None:
    case = Case(rng, n_batch, 31, 10.0)
    head, state = ops.wkv(*case.vectors(ops, 0, cut), empty(ops, n_batch))
    tail, _ = ops.wkv(*case.vectors(ops, cut, None), state)
    found = np.concatenate([ops.to_numpy(head), ops.to_numpy(tail)], axis=1)
    assert_close(found, case.expected()[0], of_vectors(ops))


@pytest.mark.parametrize("n_time", [1, 17])
def test_scan_leaves_its_arguments_alone(
    ops: TensorOps, rng: np.random.Generator, n_time: int
) -> None:
    case = Case(rng, 1, n_time, 1.0)
    vectors = case.vectors(ops)
    _, state = ops.wkv(*vectors, empty(ops, 1))
    arguments = [*vectors, *state]
    before = [ops.to_numpy(array).copy() for array in arguments]
    ops.wkv(*vectors, state)
    for array, kept in zip(arguments, before, strict=True):
        assert np.array_equal(ops.to_numpy(array), kept)


@pytest.mark.parametrize("key", [-1e4, 0.0, 1e4])
def test_the_first_tokens_mean_is_its_value(ops: TensorOps, key: float) -> None:
    case = Case(np.random.default_rng(0), 2, 1, 1.0)
    case.k[:] = key
    found, _ = ops.wkv(*case.vectors(ops), empty(ops, 2))
    assert_close(ops.to_numpy(found), case.v, of_vectors(ops))


@pytest.mark.parametrize("keys", [(-1e4, 1e4), (1e4, -1e4)], ids=["rising", "falling"])
def test_keys_that_jump_overflow_nothing(
    ops: TensorOps, rng: np.random.Generator, keys: tuple[float, float]
) -> None:
    case = Case(rng, 1, 17, 1.0)
    case.k[:, 0::2] += keys[0]
    case.k[:, 1::2] += keys[1]
    found, _ = ops.wkv(*case.vectors(ops), empty(ops, 1))
    assert_close(ops.to_numpy(found), case.expected()[0], of_vectors(ops))


def test_a_memory_that_hardly_fades_holds_over_thousands_of_tokens(
    ops: TensorOps, rng: np.random.Generator
) -> None:
    case = Case(rng, 1, 2000, 1.0)
    case.decay[:] = -1 / 64
    case.decay[1::2] = -(2.0**-14)
    found, _ = ops.wkv(*case.vectors(ops), empty(ops, 1))
    # Without rescaling exponents are at most 4 here, so that plain sums over the past will do.
    weights, kept = np.exp(case.k[0] + case.first), np.exp(case.decay)
    numerator = denominator = np.zeros(N_EMBD)
    for t in range(2000):
        now = weights[t], weights[t] * case.v[0, t]
        last = (numerator + now[1]) / (denominator + now[0])
        past = np.exp(case.k[0, t])
        numerator, denominator = kept * numerator + past * case.v[0, t], kept * denominator + past
    assert_close(ops.to_numpy(found)[0, -1], last, of_vectors(ops))
