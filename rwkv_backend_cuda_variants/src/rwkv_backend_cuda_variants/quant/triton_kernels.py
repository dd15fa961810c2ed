"""The quantized matrix on a GPU: one Triton kernel for decoding, torch's product for prompts.

The tests run the kernel in Triton's interpreter; on a GPU the conformance suite runs it.
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
        "torch-quant on CUDA needs Triton, which torch for CUDA brings: pip install triton"
    ) from error

# Beyond, the matrix is restored once for all rows and multiplied with on the tensor cores.
_MAX_ROWS = 8
_MAX_GROUP_SIZE = 256
_BLOCK_OUT, _BLOCK_IN = 16, 256


@triton.jit
def _product(
    x, codes, scales, offsets, y, n_out, n_in, n_groups, group_size,
    PACKED: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    """Row `program_id(1)` of x [rows, in] with BLOCK_OUT rows of the matrix: y [rows, out].

    PACKED: two codes a byte, of one group, the even column's in the low half. BLOCK_IN counts
    bytes of codes. Sums are float32.
    """
    per_byte: tl.constexpr = 2 if PACKED else 1
    row = tl.program_id(1).to(tl.int64)
    out = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    out_ok = out < n_out
    # In 64 bits: a matrix of 50277 x 65536 codes is beyond 32.
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
    """Scales, offsets and codes on the device as the portable format has them."""

    def __init__(self, matrix: QuantizedMatrix, device: torch.device | str = "cpu") -> None:
        self._shape, self._group_size = matrix.shape, matrix.group_size
        self._packed = _is_packed(matrix.bits, matrix.group_size)
        codes = matrix.codes if self._packed else matrix.unpacked()
        self.tensors = tuple(
            as_tensor(part).to(device, copy=True) for part in (matrix.scales, matrix.offsets, codes)
        )

    @staticmethod
    def n_bytes(shape: tuple[int, int], bits: int, group_size: int) -> int:
        """Bytes of the tensors of a matrix [out, in], with scales and offsets in float16."""
        rows, width = shape
        per_byte = 2 if _is_packed(bits, group_size) else 1
        scales = 2 * rows * (width // group_size)
        return aligned_bytes([scales, scales, rows * width // per_byte])

    def product(self, x: Tensor) -> Tensor:
        """`x` [rows, in], of any float type, times the matrix, transposed: float32 [rows, out]."""
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
        """For the kernel of several products at once; None for groups that it does not know."""
        scales, offsets, codes = self.tensors
        size = self._group_size
        if size & (size - 1) or not 16 <= size <= _MAX_GROUP_SIZE:
            return None
        bits = 4 if self._packed else 8
        return Weights(codes, scales, offsets, self._shape, bits, size)

    def restored(self, dtype: torch.dtype) -> Tensor:
        """The matrix [out, in] in `dtype`: what a product of many rows multiplies with."""
        scales, offsets, codes = self.tensors
        if self._packed:
            codes = torch.stack([codes & 15, codes >> 4], dim=-1)
        grouped = codes.view(*scales.shape, self._group_size)
        # The product and the sum are float32, and only then rounded.
        scales, offsets = scales.float()[..., None], offsets.float()[..., None]
        return torch.addcmul(offsets, grouped, scales).to(dtype).view(self._shape)


def _is_packed(bits: int, group_size: int) -> bool:
    """Whether codes stand two a byte: the two share a group."""
    return bits == 4 and group_size % 2 == 0
