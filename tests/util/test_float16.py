"""Widening float16 by its bits gives what NumPy gives."""

import ml_dtypes
import numpy as np
import pytest

from rwkv_core.util.float16 import assign

EVERY = np.arange(2**16, dtype=np.uint16).view(np.float16)
FINITE = EVERY[np.isfinite(EVERY)]
ALL = np.concatenate([FINITE, np.array([np.inf, -np.inf, np.nan], np.float16)])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize(
    "numbers", [FINITE, ALL, np.tile(FINITE, 3)], ids=["finite", "all", "many"]
)
def test_every_number_keeps_its_value(numbers, dtype):
    out = np.empty(numbers.shape, dtype)
    assign(out, numbers)
    expected = numbers.astype(np.float32).astype(dtype)
    assert np.array_equal(out.astype(float), expected.astype(float), equal_nan=True)
    # Zeros have a sign, too.
    assert np.array_equal(np.signbit(out), np.signbit(expected))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_arrays_that_are_not_contiguous_and_other_types(dtype):
    numbers = np.random.default_rng(0).normal(size=(6, 8)).astype(dtype)
    for array in (numbers, numbers.T, numbers[:, ::2], numbers[:0]):
        out = np.empty(array.shape, np.float32)
        assign(out, array)
        assert np.array_equal(out, array.astype(np.float32))
