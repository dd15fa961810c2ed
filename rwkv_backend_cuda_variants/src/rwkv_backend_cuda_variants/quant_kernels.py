"""What a kernel for quantized matrices is, and how the tensors of one travel as bytes."""

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


class TensorKernel:
    """A Kernel that reads nothing but `tensors`: contiguous, those of the widest type first.

    In that order they stand one right after the other, each at a multiple of its type's size.
    """

    tensors: tuple[Tensor, ...]

    def to_bytes(self) -> Tensor:
        """The tensors, one after the other: uint8 [bytes]."""
        return torch.cat([tensor.view(-1).view(torch.uint8) for tensor in self.tensors])

    def emptied(self) -> Self:
        """This kernel without its memory: of use to be put over bytes."""
        return self._with(tensor.to("meta") for tensor in self.tensors)

    def over(self, data: Tensor) -> Self:
        """This kernel with the tensors that `data`, such as `to_bytes` gives, holds; no copy."""
        parts = data.split([tensor.nbytes for tensor in self.tensors])
        return self._with(
            part.view(like.dtype).view(like.shape)
            for part, like in zip(parts, self.tensors, strict=True)
        )

    def _with(self, tensors: Iterable[Tensor]) -> Self:
        twin = copy.copy(self)
        twin.tensors = tuple(tensors)
        return twin
