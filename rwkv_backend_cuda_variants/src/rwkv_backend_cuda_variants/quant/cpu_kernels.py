"""Quantized matrices on a CPU, with torch's packed kernels.

The kernels were chosen by measurement: one thread, on a CPU with AVX2, multiplied a matrix of 2048
x 2048 with one token's activations. The products took these times in ms: FBGEMM with 8 bits 0.28
(this module passes it each activation as two numbers of 7 bits), `_weight_int8pack_mm` 0.6,
`_weight_int4pack_mm_for_cpu` 0.6, a float16 product 0.8, a bfloat16 product 1.1. For 256 tokens,
FBGEMM takes as long as a float32 product, so matrices are never dequantized.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rwkv_backend_cuda_variants.quant.kernel_protocol import TensorKernel, aligned_bytes, rounded_up
from rwkv_core.quantization import QuantizedMatrix

# Rows that are repacked per step, so that a large matrix needs little extra memory; a multiple of
# every kernel's tile.
_ROWS = 2048
# Without VNNI, FBGEMM adds pairs of products in int16, which cannot overflow with activations of at
# most 7 bits. Two of them, `128 * high + low`, make one activation of 14 bits.
_HIGH, _LOW_RANGE = 63, 128
_LEVELS = _HIGH * _LOW_RANGE
_ZERO_POINT = 64
# `_weight_int8pack_mm` needs a width that is a multiple of 16: with AVX-512, other widths give
# wrong results or crash.
_INT8_WIDTH = 16


class Int8Rows:
    """Matrix [out, in] for FBGEMM, with 8 bits per weight and a scale and an offset per row.

    A group is the weights that share a scale and an offset. If each row is one group, the matrix is
    converted exactly. If a row has several groups, every weight is rounded once more, to one of 256
    levels of its row.
    """

    def __init__(self, matrix: QuantizedMatrix) -> None:
        codes, scales, offsets = _by_rows(matrix)
        # FBGEMM's codes are signed.
        signed = (codes ^ 128).view(np.int8)
        scale = torch.from_numpy(scales)
        self._center = torch.from_numpy(offsets + 128 * scales)
        zero_points = torch.zeros(len(scales), dtype=torch.int64, device="cpu")
        # Besides the codes, four numbers per row: scale, zero point, FBGEMM's sum of codes, center.
        self.nbytes = codes.nbytes + 16 * len(scales)
        with _fbgemm():
            weight = torch._make_per_channel_quantized_tensor(
                torch.from_numpy(signed), scale.double(), zero_points, 0
            )
            self._packed = torch.ops.quantized.linear_prepack(weight, None)

    def product(self, x: Tensor) -> Tensor:
        """Return `x`, float32 [rows, in], times the transposed matrix: float32 [rows, out]."""
        rows = x.shape[0]
        unit = torch.linalg.vector_norm(x, float("inf"), -1, keepdim=True)
        unit = unit.clamp_(min=1e-30).div_(_LEVELS)
        levels = x / unit
        high = (levels / _LOW_RANGE).round_()
        low = levels.sub_(high, alpha=_LOW_RANGE)
        # One call, so that the weights are read once.
        both = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
            torch.cat([high, low]), 1.0, _ZERO_POINT, self._packed
        )
        y = torch.add(both[rows:], both[:rows], alpha=_LOW_RANGE).mul_(unit)
        return y.addcmul_(x.sum(-1, keepdim=True), self._center)


class Int8RowsInBfloat16(TensorKernel):
    """Like Int8Rows, with activations and scales in bfloat16.

    Used on CPUs that FBGEMM does not support, and for streamed matrices: only tensors can be
    streamed, and FBGEMM's packed matrices are not tensors.
    """

    def __init__(self, matrix: QuantizedMatrix) -> None:
        codes, scales, offsets = _by_rows(matrix)
        self._width = codes.shape[1]
        padded = np.zeros((len(codes), rounded_up(self._width, _INT8_WIDTH)), np.int8)
        padded[:, : self._width] = (codes ^ 128).view(np.int8)
        self.tensors = (
            torch.from_numpy(offsets + 128 * scales),
            torch.from_numpy(scales).bfloat16(),
            torch.from_numpy(padded),
        )

    @staticmethod
    def n_bytes(shape: tuple[int, int], bits: int, group_size: int) -> int:
        """Return the bytes of a matrix [out, in], which do not depend on bits and group size."""
        rows, width = shape
        return aligned_bytes([4 * rows, 2 * rows, rows * rounded_up(width, _INT8_WIDTH)])

    def product(self, x: Tensor) -> Tensor:
        center, scales, codes = self.tensors
        padded = F.pad(x.bfloat16(), (0, codes.shape[1] - self._width))
        y = torch._weight_int8pack_mm(padded, codes, scales).float()
        return y.addcmul_(x.sum(-1, keepdim=True), center)


class Int4Groups(TensorKernel):
    """Matrix [out, in] with 4 bits per weight.

    A group of adjacent weights in a row shares a scale and an offset, both bfloat16.

    Activations are bfloat16; sums are float32.
    """

    def __init__(self, matrix: QuantizedMatrix) -> None:
        self._rows, width = matrix.shape
        self._group_size = _int4_group_size(matrix.group_size)
        padded = _padded(self._rows)
        repeats = matrix.group_size // self._group_size
        all_packed = torch.empty(padded, width // 2, dtype=torch.uint8, device="cpu")
        # A weight is (code - 8) * scale + zero.
        scales = np.repeat(matrix.scales.astype(np.float32), repeats, axis=1)
        zeros = np.repeat(matrix.offsets.astype(np.float32), repeats, axis=1) + 8 * scales
        shape = (width // self._group_size, padded, 2)
        both = torch.zeros(shape, dtype=torch.bfloat16, device="cpu")
        both[:, : self._rows, 0] = torch.from_numpy(scales.T)
        both[:, : self._rows, 1] = torch.from_numpy(zeros.T)
        self.tensors = (both, all_packed)
        for start in range(0, padded, _ROWS):
            packed = all_packed[start : start + _ROWS]
            some = matrix.codes[start : start + _ROWS]
            codes = torch.zeros(len(packed), width, dtype=torch.int32, device="cpu")
            codes[: len(some), ::2] = torch.from_numpy(some & 15)
            codes[: len(some), 1::2] = torch.from_numpy(some >> 4)
            packed.copy_(torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1))

    @staticmethod
    def n_bytes(shape: tuple[int, int], bits: int, group_size: int) -> int:
        """Return the bytes of a matrix [out, in] with groups of `group_size` weights."""
        rows, width = shape
        padded, groups = _padded(rows), width // _int4_group_size(group_size)
        return aligned_bytes([4 * padded * groups, padded * width // 2])

    def product(self, x: Tensor) -> Tensor:
        scales_and_zeros, packed = self.tensors
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x.bfloat16(), packed, self._group_size, scales_and_zeros
        )
        return y[:, : self._rows].float()


def kernel_for(matrix: QuantizedMatrix) -> Int8Rows | Int8RowsInBfloat16 | Int4Groups:
    """Return a copy of the matrix, packed for the kernel that suits it and this CPU."""
    in_tensors = tensor_kernel(matrix.bits, matrix.group_size)
    fbgemm = "fbgemm" in torch.backends.quantized.supported_engines
    return Int8Rows(matrix) if in_tensors is Int8RowsInBfloat16 and fbgemm else in_tensors(matrix)


def tensor_kernel(bits: int, group_size: int) -> type[Int8RowsInBfloat16] | type[Int4Groups]:
    """Return the kernel with plain tensors for matrices of `bits` and `group_size`."""
    return Int4Groups if bits == 4 and _int4_group_size(group_size) else Int8RowsInBfloat16


def _int4_group_size(group_size: int) -> int:
    """Return the kernel's largest group size that divides `group_size`, or 0."""
    return next((size for size in (256, 128, 64, 32) if group_size % size == 0), 0)


def _padded(rows: int) -> int:
    """Return the number of rows, rounded up for the 4-bit kernel."""
    return rounded_up(rows, 16)


def _by_rows(
    matrix: QuantizedMatrix,
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """Return the matrix with one group per row: codes [out, in], scales and offsets [out]."""
    rows, groups = matrix.scales.shape
    if groups == 1 and matrix.bits == 8:
        scales, offsets = (
            part[:, 0].astype(np.float32) for part in (matrix.scales, matrix.offsets)
        )
        return matrix.codes, scales, offsets
    codes = np.empty(matrix.shape, np.uint8)
    scales, offsets = np.empty(rows, np.float32), np.empty(rows, np.float32)
    for start in range(0, rows, _ROWS):
        part = slice(start, start + _ROWS)
        some = QuantizedMatrix(
            matrix.bits, matrix.codes[part], matrix.scales[part], matrix.offsets[part]
        ).dequantize()
        low, high = some.min(axis=1), some.max(axis=1)
        offsets[part], scales[part] = low, (high - low) / 255
        some -= low[:, None]
        some /= np.where(high > low, scales[part], 1)[:, None]
        codes[part] = np.rint(some, out=some)
    return codes, scales, offsets


@contextmanager
def _fbgemm() -> Iterator[None]:
    """Make torch pack for FBGEMM: its own choice may be an engine without this product."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings():
            # torch plans to remove quantized tensors, but FBGEMM has no other interface yet.
            warnings.filterwarnings("ignore", ".*quantized tensor creation functions.*deprecated")
            yield
    finally:
        torch.backends.quantized.engine = before
