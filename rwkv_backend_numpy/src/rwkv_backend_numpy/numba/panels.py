"""Matrices as the compiled kernels read them: in panels of 16 rows.

A line of 64 bytes has something for each row of a panel, so that a product keeps the rows' sums
beside each other in one vector, with nothing to add up across it at the end. Lines lie in the order
in which they are read. By the kind of the matrix a panel is

    float32   a line for each column
    bfloat16  a line for each two columns, the first in the low half of a row's 32 bits
    int8      the rows' units in float32; then for each group a line with their scales and their
              offsets in float16, in those units, and lines of four columns
    int4      the same with lines of eight columns, the first in the lowest bits

There are DEPTH columns at a time; what the matrix lacks in rows and columns is zeros.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ROWS, LINE, DEPTH = 16, 64, 8
# The kernels are compiled for a kind of matrix, which they tell from the type of such a number.
FLOAT32, BFLOAT16, INT8, INT4 = np.float32(0), np.uint16(0), np.uint8(0), np.int8(0)
Kind = np.float32 | np.uint16 | np.uint8 | np.int8


class Matrix(NamedTuple):
    """A matrix [out, in].

    Attributes:
        panels: uint8 [panels, bytes].
        kind: of the numbers above.
        n_out: rows.
        depth: columns, those of zeros included.
        n_groups: in a row; 1 of floats.
    """

    panels: NDArray[np.uint8]
    kind: Kind
    n_out: int
    depth: int
    n_groups: int = 1
