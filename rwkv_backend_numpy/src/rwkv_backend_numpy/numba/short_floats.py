"""float16 and bfloat16 by their bits, as not every processor converts them.

In LLVM's terms, for single numbers and vectors alike, and for compiled code as two functions.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from rwkv_backend_numpy.numba.llvm_vectors import F32, I32, filled, vector

FLOAT16_SCALE = 2.0**112
"""What `small_floats` are to be multiplied with."""


def small_floats(b: ir.IRBuilder, halves: Any) -> Any:
    """float16, given as int16, times 2**-112 as float32."""
    # The sign's copies are left out again but for the first.
    bits = b.shl(b.sext(halves, _like(halves, I32)), _number(halves, I32, 13))
    bits = b.and_(bits, _number(halves, I32, 0x8FFFFFFF))
    return b.bitcast(bits, _like(halves, F32))


def rounded(b: ir.IRBuilder, bits: Any) -> Any:
    """float32, given as int32, to the nearest bfloat16 in the lower half; halfway to the even one.

    Not for NaN, which rounding may carry over.
    """
    upper = b.lshr(bits, _number(bits, I32, 16))
    odd = b.and_(upper, _number(bits, I32, 1))
    bits = b.add(bits, b.add(odd, _number(bits, I32, 0x7FFF)))
    return b.lshr(bits, _number(bits, I32, 16))


@intrinsic
def float16_to_float32(context, half):  # type: ignore[no-untyped-def]
    """A float16, given as int16, as float32."""

    def generate(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return b.fmul(small_floats(b, args[0]), F32(FLOAT16_SCALE))

    return types.float32(types.int16), generate


@intrinsic
def float32_to_bfloat16(context, bits):  # type: ignore[no-untyped-def]
    """See `rounded`: uint32 to uint32, since a loop of one width vectorizes best."""

    def generate(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return rounded(b, args[0])

    return types.uint32(types.uint32), generate


def _like(value: Any, kind: ir.Type) -> ir.Type:
    """`kind`, or a vector of as many as `value` is."""
    return vector(kind, value.type.count) if isinstance(value.type, ir.VectorType) else kind


def _number(value: Any, kind: ir.Type, number: float) -> ir.Constant:
    return (
        filled(kind, value.type.count, number)
        if isinstance(value.type, ir.VectorType)
        else ir.Constant(kind, number)
    )
