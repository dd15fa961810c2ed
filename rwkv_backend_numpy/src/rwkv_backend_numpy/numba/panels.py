"""Layout of matrices for the compiled kernels: micro-panels of 16 rows.

A line of 64 bytes holds 32 bits for each of the 16 rows of a panel. So a vector of 16 numbers
accumulates the results of the 16 rows, and no numbers inside a vector are added to each other.
Lines are in the order in which they are read. Depending on the kind of the matrix, a panel holds

    float32   a line for each column
    bfloat16  a line for each two columns, the first in the low half of a row's 32 bits
    int8      first a line with a float32 for each row, the row's unit; then, for each group of
              columns, a line with the rows' scales and offsets (float16, to be multiplied with the
              row's unit), and a line for each four columns
    int4      the same with a line for each eight columns, the first in the lowest bits

The number of columns is padded to a multiple of DEPTH, and the number of rows to a multiple of 16.
The padding is zeros.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ROWS, LINE, DEPTH = 16, 64, 8
# Kinds of matrices. A kernel is compiled for each kind, since each number has a type of its own.
FLOAT32, BFLOAT16, INT8, INT4 = np.float32(0), np.uint16(0), np.uint8(0), np.int8(0)
Kind = np.float32 | np.uint16 | np.uint8 | np.int8


class Matrix(NamedTuple):
    """A matrix [out, in].

    Attributes:
        panels: uint8 [panels, bytes].
        kind: FLOAT32, BFLOAT16, INT8 or INT4.
        n_out: number of rows.
        depth: number of columns, including the padding.
        n_groups: number of groups in a row; 1 for floats.
    """

    panels: NDArray[np.uint8]
    kind: Kind
    n_out: int
    depth: int
    n_groups: int = 1
