"""A square of 16 rows of a matrix, turned into 16 lines of a panel, for compiled code.

In registers: the rows of a matrix as wide as a power of two lie at addresses that a cache keeps in
the same few places, so that what is read of one row drives out the others before all of it is used.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from rwkv_backend_numpy.numba.llvm_vectors import (
    BYTES,
    F32,
    I16,
    I32,
    I64,
    filled,
    loaded,
    store,
    vector,
)
from rwkv_backend_numpy.numba.panels import LINE, ROWS
from rwkv_backend_numpy.numba.short_floats import FLOAT16_SCALE, rounded, small_floats


@intrinsic
def put_square(context, kind, source, address, row_bytes, out):  # type: ignore[no-untyped-def]
    """16 lines of a panel of `kind` to address `out`, from rows at `address`.

    As many columns as fill a line of the panel: 16 of float32, 32 of bfloat16. The rows are
    `row_bytes` from one to the next, and of what `source` is of; see `packing.as_float32`.
    """

    def generate(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        rows, lines = (b.inttoptr(address, BYTES) for address in (args[2], args[4]))
        words = []
        for i in range(ROWS):
            row = b.gep(rows, [b.mul(args[3], I64(i))])
            words.append(_words(b, kind, source, row))
        for i, line in enumerate(_transposed(b, words)):
            store(b, line, b.gep(lines, [I64(LINE * i)]))
        return context.get_dummy_value()

    return types.none(kind, source, types.int64, types.int64, types.int64), generate


def _words(b: ir.IRBuilder, kind: Any, source: Any, row: Any) -> Any:
    """What a row has in the lines, 32 bits in each: int32 [16]."""
    if kind == types.float32:
        return _float32(b, source, row)
    if source == types.uint16:
        return loaded(b, row, vector(I32, ROWS))
    n_bytes = source.bitwidth // 8 * ROWS
    halves = [_float32(b, source, b.gep(row, [I64(start)])) for start in (0, n_bytes)]
    n = 2 * ROWS
    both = b.shuffle_vector(*halves, ir.Constant(vector(I32, n), list(range(n))))
    return b.bitcast(b.trunc(rounded(b, both), vector(I16, n)), vector(I32, ROWS))


def _float32(b: ir.IRBuilder, source: Any, pointer: Any) -> Any:
    """16 columns as the bits of float32: int32 [16]."""
    if source == types.float32:
        return loaded(b, pointer, vector(I32, ROWS))
    bits = loaded(b, pointer, vector(I16, ROWS))
    if source == types.uint16:
        return b.shl(b.zext(bits, vector(I32, ROWS)), filled(I32, ROWS, 16))
    wide = b.fmul(small_floats(b, bits), filled(F32, ROWS, FLOAT16_SCALE))
    return b.bitcast(wide, vector(I32, ROWS))


def _transposed(b: ir.IRBuilder, rows: list[Any]) -> list[Any]:
    """16 vectors of 16, the i-th made of the others' i-th elements."""
    for step in (1, 2, 4, 8):
        for i in range(ROWS):
            if i & step:
                continue
            # Of each 2 x 2 blocks of this size, the two off the diagonal change places.
            pair = rows[i], rows[i + step]
            upper = [j if not j & step else ROWS + j - step for j in range(ROWS)]
            lower = [j + step if not j & step else ROWS + j for j in range(ROWS)]
            rows[i], rows[i + step] = (
                b.shuffle_vector(*pair, ir.Constant(vector(I32, ROWS), picks))
                for picks in (upper, lower)
            )
    return rows
