"""A matrix in the form that the GPU kernels read. The kernels need Triton."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor


class Weights(NamedTuple):
    """A matrix [out, in]: values of a float type, or codes with a scale and offset per group."""

    codes: Tensor
    scales: Tensor | None
    offsets: Tensor | None
    shape: tuple[int, int]
    bits: int  # 8 and 4 are codes
    group_size: int


def plain_weights(matrix: Tensor) -> Weights | None:
    """Return a matrix of a float type as Weights; None for float64, which has no kernel."""
    if matrix.dtype == torch.float64:
        return None
    return Weights(matrix, None, None, tuple(matrix.shape), 8 * matrix.itemsize, 1)


def has_kernels(device: torch.device) -> bool:
    """Return whether Triton's kernels run on this device: on CUDA, or in Triton's interpreter."""
    runs = device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
    return runs and find_spec("triton") is not None
