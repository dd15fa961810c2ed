"""Widens float16 arrays by their bits, several times as fast as NumPy's scalar conversion."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Numbers per chunk, so that a chunk stays in a cache.
_CHUNK_SIZE = 2**16
_INFINITY = 0x7C00
# A sign-extended float16 shifted left by 13 bits: masks of the sign's four copies, and of the rest.
_KEPT = np.int32(-0x70002000)


def assign(out: NDArray[Any], array: NDArray[Any]) -> None:
    """Assign `out[...] = array`, for two arrays of the same shape and any float types."""
    contiguous = array.flags.c_contiguous and out.flags.c_contiguous
    if array.dtype != np.float16 or out.dtype == np.float16 or not contiguous:
        out[...] = array
        return
    numbers, to = array.reshape(-1), out.reshape(-1)
    for start in range(0, numbers.size, _CHUNK_SIZE):
        part = slice(start, start + _CHUNK_SIZE)
        to[part] = _widened(numbers[part])


def _widened(numbers: NDArray[np.float16]) -> NDArray[np.float32]:
    bits = numbers.view(np.int16)
    if bits.max() >= _INFINITY or bits.view(np.uint16).max() >= 0x8000 | _INFINITY:
        return numbers.astype(np.float32)
    wide = bits.astype(np.int32)
    wide <<= 13
    wide &= _KEPT
    # Read as float32, the exponent's bits give 2**-112 of the float16's value.
    widened = wide.view(np.float32)
    widened *= np.float32(2.0**112)
    return widened
