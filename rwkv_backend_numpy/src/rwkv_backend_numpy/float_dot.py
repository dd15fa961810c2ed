"""The product of a row in float32 or bfloat16 with a vector, for compiled code.

In LLVM's vectors, for four sums beside each other: of a plain loop LLVM makes as many or fewer by
the processor, and reads memory some 10% slower.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from rwkv_backend_numpy.llvm_vectors import (
    F32,
    I16,
    I32,
    I64,
    add_product,
    filled,
    loaded,
    summed,
)

# Two or four registers each, of which four add up beside each other.
_LANES, _SUMS = 16, 4


@intrinsic
def row_dot(context, matrix, row, x):  # type: ignore[no-untyped-def]
    """matrix[row] . x, for matrix [out, in], float32, or uint16 as bfloat16's bits; x [in]."""
    bits = matrix.dtype.bitwidth

    def generate(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        arrays = [context.make_array(sig.args[i])(context, b, args[i]) for i in (0, 2)]
        width = b.extract_value(arrays[1].shape, 0)
        weights = b.gep(arrays[0].data, [b.mul(args[1], width)])
        x = arrays[1].data
        totals = [cgutils.alloca_once_value(b, filled(F32, _LANES, 0.0)) for _ in range(_SUMS)]
        step = _LANES * _SUMS
        whole = b.and_(width, I64(-step))
        with cgutils.for_range_slice(b, I64(0), whole, I64(step), I64) as (start, _):
            here = b.gep(weights, [start])
            for i, total in enumerate(totals):
                some = b.gep(here, [I64(i * _LANES)])
                values = b.gep(x, [b.add(start, I64(i * _LANES))])
                factor = loaded(b, values, ir.VectorType(F32, _LANES))
                add_product(b, total, _floats(b, some, bits, _LANES), factor)
        rest = cgutils.alloca_once_value(b, F32(0.0))
        with cgutils.for_range_slice(b, whole, width, I64(1), I64) as (at, _):
            weight = b.extract_element(_floats(b, b.gep(weights, [at]), bits, 1), I32(0))
            add_product(b, rest, weight, b.load(b.gep(x, [at])))
        total = b.load(totals[0])
        for other in totals[1:]:
            total = b.fadd(total, b.load(other), flags=("reassoc",))
        return b.fadd(summed(b, total), b.load(rest))

    return types.float32(matrix, row, x), generate


def _floats(b: ir.IRBuilder, pointer: Any, bits: int, lanes: int) -> Any:
    if bits == 32:
        return loaded(b, pointer, ir.VectorType(F32, lanes))
    halves = loaded(b, pointer, ir.VectorType(I16, lanes))
    wide = b.shl(b.zext(halves, ir.VectorType(I32, lanes)), filled(I32, lanes, 16))
    return b.bitcast(wide, ir.VectorType(F32, lanes))
