"""torch with a target: matrices that do not fit are copied from host memory before their use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rwkv_backend_cuda_variants.stream.matrix_store import MatrixStore, Placed
from rwkv_backend_torch.ops import TorchOps, as_tensor
from rwkv_core.backends.offload_plan import model_bytes
from rwkv_core.weights import Weight


class StreamOps(TorchOps):
    """TorchOps with matrices in a MatrixStore; `store` tells where they are."""

    def __init__(
        self,
        dtype: str,
        runtime_dtype: str | None,
        device: str | None,
        threads: int | None,
        target: float | None,
        pin_memory: bool | None,
    ) -> None:
        super().__init__(dtype, runtime_dtype, device, threads)
        self.records = False
        self.store = MatrixStore(self._device, target, pin_memory)
        # On a CPU without a target, nothing is streamed or counted.
        self._as_torch = self._device.type == "cpu" and target is None

    def prepare(self, weights: Sequence[Weight]) -> None:
        self.store.prepare(*model_bytes(weights, self.dtype, self.runtime_dtype))

    def matrix(self, array: NDArray[Any]) -> Any:
        if self._as_torch:
            return super().matrix(array)
        return self.store.place(as_tensor(array), getattr(torch, self.dtype))

    def low_rank_matrix(self, array: NDArray[Any]) -> Any:
        return super().low_rank_matrix(array)  # resident, as vectors are

    def matmul(self, matrix: Any, x: Tensor) -> Tensor:
        if not isinstance(matrix, Placed):
            return super().matmul(matrix, x)
        product = super().matmul
        # On a CPU for which torch packs matrices, pack for each product. Streaming on a CPU is only
        # for tests, which expect exactly torch's results.
        return self.store.product(matrix, lambda on_device: product(self.packed(on_device), x))

    def embedding(self, array: NDArray[Any]) -> Tensor:
        # In host memory: a token needs only one row of it.
        return as_tensor(array).clone()

    def embed(self, table: Tensor, tokens: NDArray[np.int64]) -> Tensor:
        rows = table[torch.from_numpy(tokens)]
        return rows.to(self._device).to(getattr(torch, self.runtime_dtype))
