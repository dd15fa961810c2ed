"""The protocol of `cpu_kernels` and `triton_kernels`, and a kernel's tensors as bytes."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Protocol, Self

import torch
from torch import Tensor


class Kernel(Protocol):
    """A quantized matrix [out, in]."""

    def product(self, x: Tensor) -> Tensor:
        """float32 [rows, in] times the matrix, transposed: float32 [rows, out]."""


# Bytes at whose multiples tensors begin: torch's kernels for AVX-512 crash on fewer than 16.
ALIGNMENT = 64


class TensorKernel:
    """A Kernel that reads nothing but `tensors`, which are contiguous."""

    tensors: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    def to_bytes(self) -> Tensor:
        """The tensors, one after the other, each aligned: uint8 [bytes]."""
        size = aligned_bytes(tensor.nbytes for tensor in self.tensors)
        data = torch.zeros(size, dtype=torch.uint8, device=self.tensors[0].device)
        for part, tensor in zip(self.over(data).tensors, self.tensors, strict=True):
            part.copy_(tensor)
        return data

    def emptied(self) -> Self:
        """This kernel without its memory: of use to be put over bytes."""
        return self._with(tensor.to("meta") for tensor in self.tensors)

    def over(self, data: Tensor) -> Self:
        """This kernel with the tensors that `data`, such as `to_bytes` gives, holds; no copy."""
        parts = data.split([aligned_bytes([tensor.nbytes]) for tensor in self.tensors])
        return self._with(
            part[: like.nbytes].view(like.dtype).view(like.shape)
            for part, like in zip(parts, self.tensors, strict=True)
        )

    def _with(self, tensors: Iterable[Tensor]) -> Self:
        twin = copy.copy(self)
        twin.tensors = tuple(tensors)
        return twin


def aligned_bytes(sizes: Iterable[int]) -> int:
    """Bytes that tensors of these sizes take in all, one after the other and each aligned."""
    return sum(rounded_up(size, ALIGNMENT) for size in sizes)


def rounded_up(number: int, step: int) -> int:
    """The least multiple of `step` that is not below `number`."""
    return -(-number // step) * step
