"""Transposes 16 rows of a matrix into 16 lines of a panel, for compiled code.

The values are transposed in registers. If a matrix's width is a power of two, its rows share the
same few sets of a cache. Reading one value of each row at a time would then evict the other rows
before all their values are used.
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
from rwkv_backend_numpy.numba.panels import ROWS
from rwkv_backend_numpy.numba.short_floats import FLOAT16_SCALE, rounded, small_floats


@intrinsic
def put_square(  # type: ignore[no-untyped-def]
    context, kind, source, address, row_bytes, out, line_bytes
):
    """Write 16 lines of a panel of `kind` to address `out`, from 16 rows at `address`.

    The 16 lines hold 16 columns of a float32 panel, or 32 columns of a bfloat16 panel. The rows are
    `row_bytes` apart, and have the type of `source`; see `packing.as_float32`. The lines are
    `line_bytes` apart.
    """

    def generate(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        rows, lines = (b.inttoptr(address, BYTES) for address in (args[2], args[4]))
        words = []
        for i in range(ROWS):
            row = b.gep(rows, [b.mul(args[3], I64(i))])
            words.append(_words(b, kind, source, row))
        for i, line in enumerate(_transposed(b, words)):
            store(b, line, b.gep(lines, [b.mul(args[5], I64(i))]))
        return context.get_dummy_value()

    return types.none(kind, source, *[types.int64] * 4), generate


def _words(b: ir.IRBuilder, kind: Any, source: Any, row: Any) -> Any:
    """Return a row's bits in the lines, 32 in each: int32 [16]."""
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
    """Return 16 columns as the bits of float32: int32 [16]."""
    if source == types.float32:
        return loaded(b, pointer, vector(I32, ROWS))
    bits = loaded(b, pointer, vector(I16, ROWS))
    if source == types.uint16:
        return b.shl(b.zext(bits, vector(I32, ROWS)), filled(I32, ROWS, 16))
    wide = b.fmul(small_floats(b, bits), filled(F32, ROWS, FLOAT16_SCALE))
    return b.bitcast(wide, vector(I32, ROWS))


def _transposed(b: ir.IRBuilder, rows: list[Any]) -> list[Any]:
    """Return the transpose of 16 vectors of 16 elements."""
    for step in (1, 2, 4, 8):
        for i in range(ROWS):
            if i & step:
                continue
            # In each square of 2 x 2 blocks of this size, the two off the diagonal are swapped.
            pair = rows[i], rows[i + step]
            upper = [j if not j & step else ROWS + j - step for j in range(ROWS)]
            lower = [j + step if not j & step else ROWS + j for j in range(ROWS)]
            rows[i], rows[i + step] = (
                b.shuffle_vector(*pair, ir.Constant(vector(I32, ROWS), picks))
                for picks in (upper, lower)
            )
    return rows
