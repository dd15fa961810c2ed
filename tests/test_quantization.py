"""The portable quantized matrix: its precision, its size, and the errors it raises."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_core.dtypes import BYTES_PER_WEIGHT
from rwkv_core.errors import OptionError
from rwkv_core.evaluation.precision_comparison import Precisions
from rwkv_core.quantization import QuantizedMatrix, group_size_for, quantize

all_bits = pytest.mark.parametrize("bits", [8, 4])


def normal(rows: int, width: int, size: float = 0.02, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, size, (rows, width)).astype(np.float32)


def spans(array: np.ndarray, group_size: int) -> np.ndarray:
    """Return the range of each weight's group, from the lowest weight to the highest."""
    groups = array.astype(np.float64).reshape(len(array), -1, group_size)
    return np.repeat(np.ptp(groups, axis=-1), group_size, axis=1)


def squared_error(matrix: QuantizedMatrix, array: np.ndarray) -> float:
    return float(((matrix.dequantize().astype(np.float64) - array) ** 2).sum())


@pytest.mark.parametrize("group_size", [16, 64, 256])
def test_at_8_bits_no_weight_is_off_by_more_than_half_a_step(group_size: int) -> None:
    # 700 rows: more than are quantized at a time.
    array = normal(700, 256)
    error = abs(quantize(array, 8, group_size).dequantize() - array)
    assert (error <= spans(array, group_size) / 255 * 0.505).all()


@pytest.mark.parametrize("tails", [2, 5, 100])
def test_4_bits_come_closer_than_rounding_between_the_extremes(tails: int) -> None:
    array = np.random.default_rng(0).standard_t(tails, (256, 256)).astype(np.float32)
    groups = array.reshape(256, -1, 64)
    low = groups.min(axis=-1, keepdims=True)
    steps = (groups.max(axis=-1, keepdims=True) - low) / 15
    rounded = np.rint((groups - low) / steps) * steps + low
    assert squared_error(quantize(array, 4), array) < 0.95 * ((rounded - groups) ** 2).sum()


@all_bits
def test_layout_and_size(bits: int) -> None:
    matrix = quantize(normal(6, 256), bits)
    assert matrix.shape == (6, 256) and matrix.group_size == 64
    assert matrix.codes.dtype == np.uint8 and matrix.codes.shape == (6, 256 * bits // 8)
    assert matrix.scales.dtype == matrix.offsets.dtype == np.float16
    assert matrix.scales.shape == matrix.offsets.shape == (6, 4)
    assert matrix.n_bytes == 6 * 256 * BYTES_PER_WEIGHT[f"int{bits}"]
    assert matrix.unpacked().shape == (6, 256) and matrix.unpacked().max() == 2**bits - 1


def test_two_weights_a_byte_the_even_column_low() -> None:
    matrix = quantize(np.arange(16.0)[None], 4, 16)
    assert matrix.codes.tolist() == [[0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]]
    assert np.array_equal(matrix.dequantize(), np.arange(16.0)[None])


@all_bits
@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_any_float_type_in_any_order_of_memory(bits: int, dtype: type) -> None:
    array = normal(64, 128).astype(dtype)
    expected = quantize(array.astype(np.float32), bits)
    for same in (array, np.asfortranarray(array), np.repeat(array, 2, axis=1)[:, ::2]):
        found = quantize(same, bits)
        assert np.array_equal(found.codes, expected.codes)
        assert np.array_equal(found.dequantize(), expected.dequantize())


@all_bits
def test_zeros_stay_zeros(bits: int) -> None:
    matrix = quantize(np.zeros((4, 64), np.float16), bits)
    assert np.array_equal(matrix.dequantize(), np.zeros((4, 64)))
    assert matrix.scales.dtype == np.float16


@all_bits
@pytest.mark.parametrize("value", [1.0, 0.1, -0.3, 1e-20, 7e4, -1e29])
def test_a_constant_matrix_keeps_its_value(bits: int, value: float) -> None:
    found = quantize(np.full((2, 64), value), bits).dequantize()
    np.testing.assert_allclose(found, value, rtol=2e-5)


@all_bits
def test_groups_far_from_zero_keep_their_differences(bits: int) -> None:
    array = 1 + normal(8, 64, size=1e-2)
    error = abs(quantize(array, bits).dequantize() - array)
    assert (error <= spans(array, 64) / (2**bits - 1) * 1.2).all()


@all_bits
@settings(deadline=None, max_examples=60)
@given(exponent=st.floats(-36, 29), seed=st.integers(0, 9))
def test_weights_of_any_size_are_as_close(bits: int, exponent: float, seed: int) -> None:
    size = float(np.float32(10.0**exponent))
    array = np.clip(normal(4, 128, 1.0, seed), -3, 3) * np.float32(size)
    error = abs(quantize(array, bits).dequantize() - array)
    # The search may cut a group's ends off by a few steps, for a smaller error in all.
    assert error.max() <= 6 * size / (2**bits - 1) * (0.52 if bits == 8 else 1.5)


@all_bits
def test_one_row_of_tiny_weights_leaves_the_others_in_float16(bits: int) -> None:
    array = normal(64, 128)
    array[3] *= 1e-6
    matrix = quantize(array, bits)
    assert matrix.scales.dtype == np.float16
    assert abs(matrix.dequantize() - array)[3].max() < 1e-6


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e31, 1e300])
def test_weights_that_are_no_weights_are_refused(value: float) -> None:
    array = normal(4, 64).astype(np.float64)
    array[2, 5] = value
    with pytest.raises(OptionError, match=r"weights: found .* expected finite ones"):
        quantize(array, 8)


@pytest.mark.parametrize(
    ("bits", "group_size", "message"),
    [
        (3, 64, "bits: found 3, expected 8 or 4"),
        (8.0, 32, "bits: found 8.0, expected 8 or 4"),
        (8, 0, "group size: found 0"),
        (8, True, "group size: found True"),
        (8, 64.0, "group size: found 64.0"),
        (4, 64, "found 64, expected a divisor of the matrix's width 96, such as 32 or 16"),
    ],
)
def test_groups_and_bits_that_there_are_not(bits: int, group_size: int, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        quantize(normal(4, 96), bits, group_size)


def test_rows_that_cannot_be_packed() -> None:
    with pytest.raises(OptionError, match="found 4 for a matrix 99 wide"):
        quantize(normal(4, 99), 4, 33)
    assert quantize(normal(4, 99), 8, 33).shape == (4, 99)


def test_chunks_of_a_row_make_a_group_size() -> None:
    assert [group_size_for(768, chunks) for chunks in (1, 4, 12)] == [768, 192, 64]
    for chunks in (0, 5, True, 2.0):
        with pytest.raises(OptionError, match=r"chunksize: found .* width 768"):
            group_size_for(768, chunks)


# The beginning of Dickens's A Tale of Two Cities, which the shipped model has not read.
TEXT = """\
It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of \
foolishness, it was the epoch of belief, it was the epoch of incredulity, it was the season of \
Light, it was the season of Darkness, it was the spring of hope, it was the winter of despair, we \
had everything before us, we had nothing before us, we were all going direct to Heaven, we were \
all going direct the other way--in short, the period was so far like the present period, that some \
of its noisiest authorities insisted on its being received, for good or for evil, in the \
superlative degree of comparison only.

There were a king with a large jaw and a queen with a plain face, on the throne of England; there \
were a king with a large jaw and a queen with a fair face, on the throne of France. In both \
countries it was clearer than crystal to the lords of the State preserves of loaves and fishes, \
that things in general were settled for ever.
"""


@pytest.mark.needs_backend
def test_the_shipped_model_hardly_reads_worse() -> None:
    precisions = Precisions("prose", [("text", TEXT)])
    exact, int8, int4 = (precisions.compare(name) for name in ("float32", "int8", "int4"))
    assert abs(int8.score.perplexity / exact.score.perplexity - 1) < 0.001
    assert abs(int4.score.perplexity / exact.score.perplexity - 1) < 0.03
    # Over the text that the model itself expects, exp(divergence) is what perplexity grows by.
    assert 0 < int8.divergence < 0.0002 and int8.divergence < int4.divergence < 0.02
