"""torch with matrices in 8 or 4 bits, which are never dequantized to decode a token.

The device decides the kernels: torch's packed kernels on a CPU (`cpu_kernels`), a Triton kernel on
CUDA (`triton_kernels`). Activations and results are float32. Inside a kernel, they may be narrower.
"""

from __future__ import annotations

import math
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from rwkv_backend_cuda_variants.quant.cpu_kernels import kernel_for
from rwkv_backend_cuda_variants.quant.kernel_protocol import Kernel
from rwkv_backend_torch.cuda.weights import Weights
from rwkv_backend_torch.ops import TorchOps
from rwkv_core.dtypes import GROUP_SIZE, QUANTIZED_BITS
from rwkv_core.errors import BackendError, OptionError
from rwkv_core.quantization import QuantizedMatrix, group_size_for, quantize


class QuantOps(TorchOps):
    """TorchOps with quantized matrices, each a Kernel."""

    def __init__(
        self,
        dtype: str,
        group_size: int | None,
        chunksize: int | None,
        runtime_dtype: str | None,
        device: str | None,
        threads: int | None,
    ) -> None:
        super().__init__("float32", runtime_dtype, device, threads)
        if self._device.type not in ("cpu", "cuda"):
            raise BackendError(
                f"option device: found {self.device}, torch-quant has kernels only for cpu and cuda"
            )
        if group_size is not None and chunksize is not None:
            raise OptionError(
                "options group_size and chunksize: found both, expected one; chunksize is the "
                "number of groups in a row"
            )
        for name, value in (("group_size", group_size), ("chunksize", chunksize)):
            if value is not None and value < 1:
                raise OptionError(f"option {name}: found {value}, expected at least 1")
        self.dtype = dtype
        self._bits, self._group_size, self._chunks = QUANTIZED_BITS[dtype], group_size, chunksize

    def matrix(self, array: NDArray[Any]) -> Kernel:
        group_size = self._group_size_for(array.shape[1])
        return self.quantized_matrix(quantize(array, self._bits, group_size))

    def _group_size_for(self, width: int) -> int:
        if self._chunks is not None:
            return group_size_for(width, self._chunks)
        if self._group_size is not None:
            if width % self._group_size:
                raise OptionError(
                    f"option group_size: found {self._group_size}, expected a divisor of the "
                    f"matrix's width {width}, such as {math.gcd(width, GROUP_SIZE)}"
                )
            return self._group_size
        # The 8-bit kernel of a CPU is exact only for one group per row.
        if self._bits == 8 and self._device.type == "cpu":
            return width
        return math.gcd(width, GROUP_SIZE)

    def quantized_matrix(self, matrix: QuantizedMatrix) -> Kernel:
        # A prequantized matrix keeps its dtype; the option applies to matrices quantized here.
        self.dtype = matrix.dtype
        if self._device.type == "cuda":
            from rwkv_backend_cuda_variants.quant.triton_kernels import TritonMatrix

            return TritonMatrix(matrix, self._device)
        return kernel_for(matrix)

    def low_rank_matrix(self, array: NDArray[Any]) -> Tensor:
        # float32 is fastest on a CPU, which widens 16 bits before each product.
        return self._place(array, "float32" if self._device.type == "cpu" else "bfloat16")

    def weights(self, matrix: Kernel) -> Weights | None:
        read = getattr(matrix, "weights", None)
        return None if read is None else read()

    def matmul(self, matrix: Kernel | Tensor, x: Tensor) -> Tensor:
        if isinstance(matrix, Tensor):
            return super().matmul(matrix, x)
        y = matrix.product(x.reshape(-1, x.shape[-1]).float())
        return y.to(x.dtype).view(*x.shape[:-1], -1)
