"""Quantized matrices on a GPU: a Triton kernel for decoding, torch's product for prefill.

The tests run the kernel in Triton's interpreter; the conformance suite runs it on a GPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkv_backend_cuda_variants.quant.kernel_protocol import TensorKernel, aligned_bytes
from rwkv_backend_torch.cuda.weights import Weights
from rwkv_backend_torch.ops import as_tensor
from rwkv_core.errors import BackendError
from rwkv_core.quantization import QuantizedMatrix

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise BackendError(
        "torch-quant on CUDA needs Triton, which is part of torch for CUDA: pip install triton"
    ) from error

# For more rows of x, the matrix is dequantized once and multiplied on the tensor cores.
_MAX_ROWS = 8
_MAX_GROUP_SIZE = 256
_BLOCK_OUT, _BLOCK_IN = 16, 256


@triton.jit
def _product(
    x, codes, scales, offsets, y, n_out, n_in, n_groups, group_size,
    PACKED: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """Multiply row `program_id(1)` of x [rows, in] with BLOCK_OUT rows of the matrix.

    Writes y [rows, out]. If PACKED is True, a byte holds the codes of two columns of the same
    group, the even column's code in the low half. BLOCK_IN is a number of bytes of codes. Sums are
    float32.
    """
    per_byte: tl.constexpr = 2 if PACKED else 1
    row = tl.program_id(1).to(tl.int64)
    out = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    out_ok = out < n_out
    # In 64 bits: the indices of a matrix of 50277 x 65536 codes exceed 32 bits.
    matrix_row = out.to(tl.int64)
    n_bytes = n_in // per_byte
    total = tl.zeros((BLOCK_OUT, BLOCK_IN), tl.float32)
    for start in range(0, n_bytes, BLOCK_IN):
        byte = start + tl.arange(0, BLOCK_IN)
        byte_ok = byte < n_bytes
        ok = out_ok[:, None] & byte_ok[None, :]
        code = tl.load(codes + matrix_row[:, None] * n_bytes + byte[None, :], mask=ok, other=0)
        group = (byte * per_byte) // group_size
        where = matrix_row[:, None] * n_groups + group[None, :]
        scale = tl.load(scales + where, mask=ok, other=0).to(tl.float32)
        offset = tl.load(offsets + where, mask=ok, other=0).to(tl.float32)
        column = x + row * n_in + byte * per_byte
        first = tl.load(column, mask=byte_ok, other=0).to(tl.float32)[None, :]
        if PACKED:
            second = tl.load(column + 1, mask=byte_ok, other=0).to(tl.float32)[None, :]
            low, high = (code & 15).to(tl.float32), (code >> 4).to(tl.float32)
            total += scale * (low * first + high * second) + offset * (first + second)
        else:
            total += (code.to(tl.float32) * scale + offset) * first
    tl.store(y + row * n_out + out, tl.sum(total, axis=1), mask=out_ok)


class TritonMatrix(TensorKernel):
    """Scales, offsets and codes on the device, in the layout of `QuantizedMatrix`."""

    def __init__(self, matrix: QuantizedMatrix, device: torch.device | str = "cpu") -> None:
        self._shape, self._group_size = matrix.shape, matrix.group_size
        self._packed = _is_packed(matrix.bits, matrix.group_size)
        codes = matrix.codes if self._packed else matrix.unpacked()
        self.tensors = tuple(
            as_tensor(part).to(device, copy=True) for part in (matrix.scales, matrix.offsets, codes)
        )

    @staticmethod
    def n_bytes(shape: tuple[int, int], bits: int, group_size: int) -> int:
        """Return the bytes of a matrix [out, in], with scales and offsets in float16."""
        rows, width = shape
        per_byte = 2 if _is_packed(bits, group_size) else 1
        scales = 2 * rows * (width // group_size)
        return aligned_bytes([scales, scales, rows * width // per_byte])

    def product(self, x: Tensor) -> Tensor:
        """Return `x` [rows, in], of any float type, times the transpose: float32 [rows, out]."""
        if x.shape[0] > _MAX_ROWS:
            return F.linear(x.bfloat16(), self.restored(torch.bfloat16)).float()
        n_out, n_in = self._shape
        scales, offsets, codes = self.tensors
        x = x.contiguous()
        y = x.new_empty(x.shape[0], n_out, dtype=torch.float32)
        _product[(triton.cdiv(n_out, _BLOCK_OUT), x.shape[0])](
            x, codes, scales, offsets, y, n_out, n_in, scales.shape[1],
            self._group_size, PACKED=self._packed, BLOCK_OUT=_BLOCK_OUT, BLOCK_IN=_BLOCK_IN,
        )  # fmt: skip
        return y

    def weights(self) -> Weights | None:
        """Return the matrix for `products_of_a_row`; None if that kernel lacks the group size."""
        scales, offsets, codes = self.tensors
        size = self._group_size
        if size & (size - 1) or not 16 <= size <= _MAX_GROUP_SIZE:
            return None
        bits = 4 if self._packed else 8
        return Weights(codes, scales, offsets, self._shape, bits, size)

    def restored(self, dtype: torch.dtype) -> Tensor:
        """Return the matrix [out, in], dequantized to `dtype`, for a product of many rows."""
        scales, offsets, codes = self.tensors
        if self._packed:
            codes = torch.stack([codes & 15, codes >> 4], dim=-1)
        grouped = codes.view(*scales.shape, self._group_size)
        # Product and sum are computed in float32, and then rounded.
        scales, offsets = scales.float()[..., None], offsets.float()[..., None]
        return torch.addcmul(offsets, grouped, scales).to(dtype).view(self._shape)


def _is_packed(bits: int, group_size: int) -> bool:
    """Return whether two codes in a byte always share a group."""
    return bits == 4 and group_size % 2 == 0
