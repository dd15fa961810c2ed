"""Matrix products on an x86 CPU, in the layouts and dtypes in which torch is fastest.

One thread of an EPYC with AVX-512 and its bfloat16 instructions multiplied a matrix of 4096 x 1024
with rows of activations. The table shows GB/s of weights for one row | GFLOP/s for 16 rows |
GFLOP/s for 256 rows. "Widened by blocks" converts the matrix to float32, block by block.

    float32     plain 15 | 46 | 94      in oneDNN's layout 20 | 92 | 112
    bfloat16    plain 10 | 101 | 205    in oneDNN's layout 20 | 170 | 220
    float16     plain 20 | 19 | 21      widened by blocks   - | 51 | 95

FBGEMM's layout for float16 reaches 28 | 87 | 102. It is not used, since packing a matrix takes 12
ns per weight: more than ten seconds for a billion weights.
"""

from __future__ import annotations

import platform

import torch
import torch.nn.functional as F
from torch import Tensor

# Number of rows of x for which oneDNN chooses the layout; from 16 rows on it is the same.
_ROWS = 64
# A single row of x is repeated so often: oneDNN is faster with several independent sums.
_REPEATS = 4
# Matrix rows that are widened per step, so that the product finds them in the cache.
_BLOCK = 1024
# For so few rows of x, torch's 16-bit product is faster than widening.
_MAX_ROWS_16_BIT = 2

# `.default` skips the choice among overloads, which takes longer than the rest of the call.
_linear_pointwise = torch.ops.mkldnn._linear_pointwise.default
_X86 = platform.machine() in ("x86_64", "AMD64")
# torch's capability respects ATEN_CPU_CAPABILITY. With only AVX2, oneDNN is no faster than MKL for
# one row.
_ONEDNN = (
    torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    and torch.backends.mkldnn.is_available()
)


class PackedMatrix:
    """A matrix of `shape` [out, in] in oneDNN's layout, without a plain copy."""

    def __init__(self, matrix: Tensor) -> None:
        self.shape, self.nbytes = matrix.shape, matrix.nbytes
        self._packed = torch.ops.mkldnn._reorder_linear_weight(matrix, _ROWS)

    def product(self, x: Tensor) -> Tensor:
        """Return `x` [B, T, in] times the transposed matrix: [B, T, out] in `x`'s dtype."""
        dtype = self._packed.dtype
        if x.shape[0] * x.shape[1] == 1:
            rows = x.new_empty((1, _REPEATS, x.shape[2]), dtype=dtype).copy_(x)
            return _onednn(rows, self._packed)[:, :1].to(x.dtype)
        return _onednn(x.to(dtype), self._packed).to(x.dtype)


def packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether matrices of this device and dtype are faster as PackedMatrix."""
    if device.type != "cpu" or not _ONEDNN:
        return False
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported()
    )


def widens(matrix: Tensor, x: Tensor) -> bool:
    """Return whether `widened_product` is faster here: for 16-bit matrices and several rows."""
    many = x.shape[0] * x.shape[1] > _MAX_ROWS_16_BIT
    return _X86 and many and matrix.itemsize == 2 and matrix.device.type == "cpu"


def widened_product(matrix: Tensor, x: Tensor) -> Tensor:
    """Return `x` [B, T, in] times the transposed `matrix` [out, in]: [B, T, out].

    The product is computed in `x`'s dtype, to which `matrix` is converted in blocks of rows.
    """
    linear = _onednn if _ONEDNN and x.dtype == torch.float32 else F.linear
    blocks = [linear(x, rows.to(x.dtype)) for rows in matrix.split(_BLOCK)]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=-1)


def _onednn(x: Tensor, matrix: Tensor) -> Tensor:
    return _linear_pointwise(x, matrix, None, "none", [], "")
