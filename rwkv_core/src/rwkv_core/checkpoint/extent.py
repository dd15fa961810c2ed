"""Place of a tensor in a file: its offset, shape and strides."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np


class Extent(NamedTuple):
    """Place of a tensor in its file. Offset and strides are in bytes."""

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def n_bytes(self) -> int:
        """Number of bytes from the first element's first to the last element's last."""
        if 0 in self.shape:
            return 0
        steps = sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        return steps + self.dtype.itemsize


def row_major(offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Extent:
    """Return the extent of a contiguous tensor; `offset` in bytes."""
    strides = tuple(prod(shape[axis + 1 :]) * dtype.itemsize for axis in range(len(shape)))
    return Extent(offset, shape, strides, dtype)
