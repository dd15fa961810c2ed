"""Products on an x86 CPU: the layouts and detours with which torch's own are fastest.

One thread of an EPYC with AVX-512 and its bfloat16 instructions, a matrix of 4096 x 1024, GB/s of
weights for one row | GFLOP/s for 16 | for 256:

    float32     plain 15 | 46 | 94      in oneDNN's layout 20 | 92 | 112
    bfloat16    plain 10 | 101 | 205    in oneDNN's layout 20 | 170 | 220
    float16     plain 20 | 19 | 21      widened by blocks   - | 51 | 95

FBGEMM's layout for float16 reaches 28 | 87 | 102, but takes 12 ns a weight to make: ten seconds for
a model of a billion.
"""

from __future__ import annotations

import platform

import torch
import torch.nn.functional as F
from torch import Tensor

# For which oneDNN chooses its layout; that is the same from 16 rows on.
_ROWS = 64
# A single row is multiplied with as often as keeps enough sums under way: faster than once.
_REPEATS = 4
# Rows of a matrix that are widened at a time: they are multiplied with while in a cache.
_BLOCK = 1024
# Up to as many rows of x, torch's own product in 16 bits is faster than to widen.
_MAX_ROWS_16_BIT = 2

# Without the choice among overloads, which takes longer than the operation's own overhead.
_linear_pointwise = torch.ops.mkldnn._linear_pointwise.default
_X86 = platform.machine() in ("x86_64", "AMD64")
# Told from torch's own choice, which ATEN_CPU_CAPABILITY limits. With AVX2 alone, oneDNN is no
# faster than MKL at one row.
_ONEDNN = (
    torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    and torch.backends.mkldnn.is_available()
)


class PackedMatrix:
    """A matrix of `shape` [out, in] in oneDNN's layout, without a plain copy beside it."""

    def __init__(self, matrix: Tensor) -> None:
        self.shape, self.nbytes = matrix.shape, matrix.nbytes
        self._packed = torch.ops.mkldnn._reorder_linear_weight(matrix, _ROWS)

    def product(self, x: Tensor) -> Tensor:
        """`x` [B, T, in] times the matrix, transposed: [B, T, out] in `x`'s dtype."""
        dtype = self._packed.dtype
        if x.shape[0] * x.shape[1] == 1:
            rows = x.new_empty((1, _REPEATS, x.shape[2]), dtype=dtype).copy_(x)
            return _onednn(rows, self._packed)[:, :1].to(x.dtype)
        return _onednn(x.to(dtype), self._packed).to(x.dtype)


def packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether matrices on this device and of this type are faster as PackedMatrix."""
    if device.type != "cpu" or not _ONEDNN:
        return False
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported()
    )


def widens(matrix: Tensor, x: Tensor) -> bool:
    """Whether this product is faster as `widened_product`: that of many rows in 16 bits."""
    many = x.shape[0] * x.shape[1] > _MAX_ROWS_16_BIT
    return _X86 and many and matrix.itemsize == 2 and matrix.device.type == "cpu"


def widened_product(matrix: Tensor, x: Tensor) -> Tensor:
    """`x` [B, T, in] times `matrix` [out, in], transposed, in `x`'s dtype: [B, T, out]."""
    linear = _onednn if _ONEDNN and x.dtype == torch.float32 else F.linear
    blocks = [linear(x, rows.to(x.dtype)) for rows in matrix.split(_BLOCK)]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=-1)


def _onednn(x: Tensor, matrix: Tensor) -> Tensor:
    return _linear_pointwise(x, matrix, None, "none", [], "")
