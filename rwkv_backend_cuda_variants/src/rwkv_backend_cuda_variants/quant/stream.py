"""torch-quant with the option `target`, the GB of weights on the device.

Quantized matrices that do not fit on the device stay in host memory. Each of them is copied to the
device just before its use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from rwkv_backend_cuda_variants.quant.cpu_kernels import tensor_kernel
from rwkv_backend_cuda_variants.quant.kernel_protocol import ALIGNMENT, TensorKernel
from rwkv_backend_cuda_variants.quant.ops import QuantOps
from rwkv_backend_cuda_variants.stream.matrix_store import MatrixStore, Placed
from rwkv_core.backends.offload_plan import model_bytes
from rwkv_core.backends.tensor_ops import TensorOps
from rwkv_core.quantization import QuantizedMatrix
from rwkv_core.weights import Weight

# A matrix is divided at multiples of so many rows: the tile of the CPU's 4-bit kernel.
_ROWS = 16


class StreamedMatrix:
    """A matrix stored as bytes in a MatrixStore, and a kernel for each of its parts."""

    def __init__(self, store: MatrixStore, placed: Placed, kernels: Sequence[TensorKernel]) -> None:
        self._store, self._placed, self._kernels = store, placed, kernels

    @property
    def nbytes(self) -> int:
        return self._placed.nbytes

    def product(self, x: Tensor) -> Tensor:
        """Return `x`, float32 [rows, in], times the transposed matrix: float32 [rows, out]."""
        kernels = iter(self._kernels)
        return self._store.product(self._placed, lambda data: next(kernels).over(data).product(x))


class StreamedQuantOps(QuantOps):
    """QuantOps with matrices in a MatrixStore; `store` tells where they are."""

    def __init__(self, options: Mapping[str, Any], target: float, pin_memory: bool | None) -> None:
        super().__init__(**options)
        self.records = False
        self.store = MatrixStore(self._device, target, pin_memory)
        self._weights: Sequence[Weight] = ()

    # The defaults keep the table in host memory: a token needs only one row of it.
    embedding = TensorOps.embedding
    embed = TensorOps.embed

    def prepare(self, weights: Sequence[Weight]) -> None:
        # The plan is made when the first matrix comes: a prequantized file has its own dtype and
        # group size.
        self._weights = weights

    def matrix(self, array: NDArray[Any]) -> StreamedMatrix:
        self._plan(self._bits, self._group_size_for)
        return super().matrix(array)

    def quantized_matrix(self, matrix: QuantizedMatrix) -> StreamedMatrix:
        self.dtype = matrix.dtype
        self._plan(matrix.bits, lambda width: matrix.group_size)
        kernel = self._kernel(matrix.bits, matrix.group_size)
        kernels: list[TensorKernel] = []

        def to_bytes(rows: slice) -> Tensor:
            codes, scales, offsets = (
                part[rows] for part in (matrix.codes, matrix.scales, matrix.offsets)
            )
            packed = kernel(QuantizedMatrix(matrix.bits, codes, scales, offsets))
            kernels.append(packed.emptied())
            return packed.to_bytes()

        def split(whole: Tensor, most: int) -> list[Tensor]:
            if len(whole) <= most:
                return [whole]
            # Leave room for the padding of each tensor in a part.
            most -= ALIGNMENT * len(kernels[0].tensors)
            kernels.clear()
            n_rows = matrix.shape[0]
            step = max(0, most) * n_rows // len(whole) // _ROWS * _ROWS
            return [to_bytes(slice(i, i + step)) for i in range(0, n_rows, step)] if step else []

        placed = self.store.place(to_bytes(slice(None)), torch.uint8, split)
        return StreamedMatrix(self.store, placed, kernels)

    def _plan(self, bits: int, group_size_for: Callable[[int], int]) -> None:
        """Make the offload plan of the model that is being loaded, unless it exists already."""
        if not self._weights:
            return
        sizes = [
            self._kernel(bits, group_size).n_bytes(shape, bits, group_size)
            for shape in [one.shape for one in self._weights if one.role == "matrix"]
            for group_size in [group_size_for(shape[1])]
        ]
        _, vectors = model_bytes(self._weights, "float32", self.runtime_dtype)
        self._weights = ()
        self.store.prepare(sizes, vectors)

    def _kernel(self, bits: int, group_size: int) -> Any:
        if self._device.type == "cuda":
            from rwkv_backend_cuda_variants.quant.triton_kernels import TritonMatrix

            return TritonMatrix
        return tensor_kernel(bits, group_size)
