"""Layout of matrices for the compiled kernels: micro-panels of 16 rows.

A line of 64 bytes holds 32 bits for each row of a panel. So the rows' sums are side by side in one
vector, and nothing has to be added across it at the end. Lines are in the order in which they are
read. Depending on the kind of the matrix, a panel holds

    float32   a line for each column
    bfloat16  a line for each two columns, the first in the low half of a row's 32 bits
    int8      a line with a factor in float32 for each row, the row's unit; then, for each group, a
              line with scales and offsets, which are float16 multiples of the unit, and a line for
              each four columns
    int4      the same with a line for each eight columns, the first in the lowest bits

Columns come in steps of DEPTH; missing rows and columns are zeros.
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
        kind: one of the numbers above.
        n_out: number of rows.
        depth: number of columns, with those of zeros.
        n_groups: number of groups in a row; 1 for floats.
    """

    panels: NDArray[np.uint8]
    kind: Kind
    n_out: int
    depth: int
    n_groups: int = 1
