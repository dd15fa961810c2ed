"""Arena: memory for matrices, in pieces that are large enough for the system's huge pages.

NumPy requests huge pages (2 MB instead of 4 kB) for arrays of 4 MB and more, but most matrices of a
small model are smaller. The system allocates memory in huge pages several times faster than in
pages of 4 kB. Products read it about a fifth faster, since the processor prefetches only within a
page.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from rwkv_core.util.aligned import ALIGNMENT, aligned_empty

_N_BYTES = 2**26


class Arena:
    """Allocates arrays in few large slabs. A slab is freed when no array in it is used any more."""

    def __init__(self) -> None:
        self._slab = np.empty(0, np.uint8)
        self._used = 0

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return an uninitialized array, aligned for cache lines and the widest vectors."""
        n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        if self._used + n_bytes > self._slab.size:
            # The unused end of the last slab is never written, and so uses no memory.
            self._slab = aligned_empty((max(_N_BYTES - ALIGNMENT, n_bytes),), np.uint8)
            self._used = 0
        piece = self._slab[self._used : self._used + n_bytes]
        self._used += n_bytes + -n_bytes % ALIGNMENT
        return piece.view(dtype).reshape(shape)
