"""A tile of a product of float32 matrices, kept in registers from the first column to the last.

Both factors are read along their rows, as they are stored, so that nothing is packed first. In
LLVM's vectors, as the speed hangs on how many sums are held in registers.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from rwkv_backend_numpy.llvm_vectors import F32, I64, add_product, filled, loaded, summed

# A tile's rows of x and of the matrix.
X_ROWS, MATRIX_ROWS = 4, 6
# Columns are taken in such numbers.
COLUMNS = 16


@intrinsic
def tile(context, x, x_row, matrix, row, out, column):  # type: ignore[no-untyped-def]
    """out[x_row + a, column + b] = x[x_row + a] . matrix[row + b], for a < X_ROWS, b < MATRIX_ROWS.

    Arguments are float32 arrays in C order, x [rows, in], matrix [out, in] and out [rows, out], and
    int64; `in` is a multiple of COLUMNS.
    """

    def generate(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        x, matrix, out = (context.make_array(sig.args[i])(context, b, args[i]) for i in (0, 2, 4))
        width, n_out = (b.extract_value(array.shape, 1) for array in (x, out))
        # 24 sums at once need the 32 registers that come with vectors of 16 lanes, 12 need 16.
        wide = "+avx512f" in context.codegen().magic_tuple()[2]
        lanes, at_once = (16, MATRIX_ROWS) if wide else (8, MATRIX_ROWS // 2)
        x_rows = [_row(b, x.data, args[1], i, width) for i in range(X_ROWS)]
        for first in range(0, MATRIX_ROWS, at_once):
            some = range(first, first + at_once)
            rows = [_row(b, matrix.data, args[3], j, width) for j in some]
            for i, sums in enumerate(_products(b, lanes, x_rows, rows, width)):
                to = b.gep(_row(b, out.data, args[1], i, n_out), [args[5]])
                for j, total in zip(some, sums, strict=True):
                    b.store(total, b.gep(to, [I64(j)]))
        return context.get_dummy_value()

    return types.none(x, x_row, matrix, row, out, column), generate


def _products(
    b: ir.IRBuilder, lanes: int, x_rows: list[Any], rows: list[Any], width: Any
) -> list[list[Any]]:
    """Of each of `x_rows` with each of `rows`."""
    kind = ir.VectorType(F32, lanes)
    none = filled(F32, lanes, 0.0)
    sums = [[cgutils.alloca_once_value(b, none) for _ in rows] for _ in x_rows]
    with cgutils.for_range_slice(b, I64(0), width, I64(lanes), I64) as (start, _):
        columns = [loaded(b, b.gep(pointer, [start]), kind) for pointer in x_rows]
        for j, pointer in enumerate(rows):
            weights = loaded(b, b.gep(pointer, [start]), kind)
            for i, values in enumerate(columns):
                add_product(b, sums[i][j], values, weights)
    return [[summed(b, b.load(total)) for total in row] for row in sums]


def _row(b: ir.IRBuilder, data: Any, start: Any, index: int, width: Any) -> Any:
    return b.gep(data, [b.mul(b.add(start, I64(index)), width)])
