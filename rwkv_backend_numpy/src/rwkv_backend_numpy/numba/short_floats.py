"""Converts float16 and bfloat16 by their bits, as not every processor has instructions for it.

The functions build LLVM IR for single numbers and for vectors. `float16_to_float32` and
`float32_to_bfloat16` can be called in functions that Numba compiles.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from rwkv_backend_numpy.numba.llvm_vectors import F32, I32, filled, vector

FLOAT16_SCALE = 2.0**112
"""Factor for the results of `small_floats`."""


def small_floats(b: ir.IRBuilder, halves: Any) -> Any:
    """Return float16, given as int16, times 2**-112 as float32."""
    # Only the first of the sign's copies is kept.
    bits = b.shl(b.sext(halves, _like(halves, I32)), _number(halves, I32, 13))
    bits = b.and_(bits, _number(halves, I32, 0x8FFFFFFF))
    return b.bitcast(bits, _like(halves, F32))


def rounded(b: ir.IRBuilder, bits: Any) -> Any:
    """Round `bits`, a float32 as int32, to the nearest bfloat16, ties to even.

    The lower half of the result holds the bfloat16. NaN must not be passed: rounding may turn it
    into another value.
    """
    upper = b.lshr(bits, _number(bits, I32, 16))
    odd = b.and_(upper, _number(bits, I32, 1))
    bits = b.add(bits, b.add(odd, _number(bits, I32, 0x7FFF)))
    return b.lshr(bits, _number(bits, I32, 16))


@intrinsic
def float16_to_float32(context, half):  # type: ignore[no-untyped-def]
    """Return a float16, given as int16, as float32."""

    def generate(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return b.fmul(small_floats(b, args[0]), F32(FLOAT16_SCALE))

    return types.float32(types.int16), generate


@intrinsic
def float32_to_bfloat16(context, bits):  # type: ignore[no-untyped-def]
    """Round a float32, given as its bits, to the nearest bfloat16, ties to even. Not for NaN.

    Argument and result are both uint32, since a loop vectorizes best if all its values are equally
    wide. The lower half of the result holds the bfloat16.
    """

    def generate(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return rounded(b, args[0])

    return types.uint32(types.uint32), generate


def _like(value: Any, kind: ir.Type) -> ir.Type:
    """Return `kind`, or a vector of `kind` as long as `value`."""
    return vector(kind, value.type.count) if isinstance(value.type, ir.VectorType) else kind


def _number(value: Any, kind: ir.Type, number: float) -> ir.Constant:
    return (
        filled(kind, value.type.count, number)
        if isinstance(value.type, ir.VectorType)
        else ir.Constant(kind, number)
    )
