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
        """Return `x`, float32 [rows, in], times the transposed matrix: float32 [rows, out]."""


# Alignment of tensors in bytes: torch's kernels for AVX-512 crash below 16.
ALIGNMENT = 64


class TensorKernel:
    """A Kernel whose only data are the contiguous `tensors`."""

    tensors: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    def to_bytes(self) -> Tensor:
        """Return a copy of the tensors, one after the other, each aligned: uint8 [bytes]."""
        size = aligned_bytes(tensor.nbytes for tensor in self.tensors)
        data = torch.zeros(size, dtype=torch.uint8, device=self.tensors[0].device)
        for part, tensor in zip(self.over(data).tensors, self.tensors, strict=True):
            part.copy_(tensor)
        return data

    def emptied(self) -> Self:
        """Return this kernel with tensors on the meta device, which uses no memory; see `over`."""
        return self._with(tensor.to("meta") for tensor in self.tensors)

    def over(self, data: Tensor) -> Self:
        """Return this kernel with tensors that are views of `data`, which `to_bytes` made."""
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
    """Return the total bytes of tensors of these sizes, one after the other, each aligned."""
    return sum(rounded_up(size, ALIGNMENT) for size in sizes)


def rounded_up(number: int, step: int) -> int:
    """Return the smallest multiple of `step` that is at least `number`."""
    return -(-number // step) * step
