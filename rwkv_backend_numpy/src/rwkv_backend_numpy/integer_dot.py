"""Products of rows of 8- or 4-bit codes with int16, for compiled code.

Written as LLVM's vectors, as from plain loops LLVM adds up each group's vector before scaling it,
at half the speed. Codes are loaded as 16-bit words, whose parts (two codes of 8 bits, four of 4)
are shifted and masked out, so that none is widened by itself. Products and sums of neighbours
become one instruction where the processor has such (vpmaddwd, vpdpwssd); nothing here asks for one.

A quantized matrix is an array [out, bytes] of 8-bit integers, whose memory holds first the codes of
all rows, then for each row the scales of its groups, their offsets, both as float16, and as float32
the row's unit, which both are to be multiplied with.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from rwkv_backend_numpy.llvm_vectors import (
    F32,
    I8,
    I16,
    I32,
    I64,
    add_product,
    filled,
    loaded,
    prefetch,
    spread,
    summed,
)

# Codes taken at once, of which the groups' size is a multiple, and whether it is just that.
KINDS = ((64, True), (64, False), (32, True), (8, False))
# Groups between which nothing waits for the other's result.
_UNROLLED = 4
# Bytes ahead of its use that memory is asked for: with rows as short as codes make them processors
# by themselves are up to 20% slower. (Those of `float_dot` it slows down.)
_AHEAD = 2048


@cache
def row_dot(bits: int, step: int, single: bool) -> Callable[..., Any]:
    """A function for compiled code: (matrix, row, x, sums, unit) -> float32.

    Over the groups g of a row, the sum of scale[g] * (codes[g] . x[g]) + offset[g] * sums[g], times
    `unit` and the row's own.

    Arguments:
        x: int16 [in]. Each `step` of it in the order in which it is met: first what belongs to
            the words' lowest bits, then to the next.
        sums: float32 [groups], of the x of each group, whose size is a multiple of `step`, and
            that itself if `single`.
        unit: float32.
    """

    @intrinsic
    def dot(context, matrix, row, x, sums, unit):  # type: ignore[no-untyped-def]
        def generate(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
            arrays = [context.make_array(sig.args[i])(context, b, args[i]) for i in (0, 2, 3)]
            codes, x, sums = (array.data for array in arrays)
            n_rows = b.extract_value(arrays[0].shape, 0)
            width, n_groups = (b.extract_value(array.shape, 0) for array in arrays[1:])
            codes = b.bitcast(codes, I8.as_pointer())
            given = [codes, args[1], n_rows, x, width, sums, n_groups, args[4]]
            return b.call(_function(b.module, bits, step, single), given)

        return types.float32(matrix, row, x, sums, unit), generate

    return dot


def _function(module: ir.Module, bits: int, step: int, single: bool) -> ir.Function:
    """The product on bare pointers. By itself, so that it is compiled once for all its callers."""
    name = f"rwkv_row_dot_{bits}_{step}_{single}"
    if name in module.globals:
        return module.globals[name]
    kinds = [
        I8.as_pointer(), I64, I64, I16.as_pointer(), I64, F32.as_pointer(), I64, F32,
    ]  # fmt: skip
    function = ir.Function(module, ir.FunctionType(F32, kinds), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    b = ir.IRBuilder(function.append_basic_block())
    codes, row, n_rows, x, width, sums, n_groups, unit = function.args
    code_bytes = b.udiv(width, I64(8 // bits))
    float_bytes = b.add(b.mul(n_groups, I64(4)), I64(4))
    floats = b.gep(codes, [b.add(b.mul(n_rows, code_bytes), b.mul(row, float_bytes))])
    floats = b.bitcast(floats, I16.as_pointer())
    offsets = b.gep(floats, [n_groups])
    own = b.bitcast(b.gep(offsets, [n_groups]), F32.as_pointer())
    codes = b.gep(codes, [b.mul(row, code_bytes)])
    size = I64(step) if single else b.udiv(width, n_groups)
    lanes = step * bits // 32
    totals = [cgutils.alloca_once_value(b, filled(F32, lanes, 0.0)) for _ in range(_UNROLLED)]

    def add_group(group: Any, total: Any) -> None:
        product = _of_group(b, bits, step, codes, x, b.mul(group, size), None if single else size)
        scale = spread(b, _small_float(b, floats, group), lanes)
        add_product(b, total, b.sitofp(product, scale.type), scale)

    unrolled = b.and_(n_groups, I64(-_UNROLLED))
    with cgutils.for_range_slice(b, I64(0), unrolled, I64(_UNROLLED), I64) as (group, _):
        for i, total in enumerate(totals):
            add_group(b.add(group, I64(i)), total)
    with cgutils.for_range_slice(b, unrolled, n_groups, I64(1), I64) as (group, _):
        add_group(group, totals[0])
    shift = cgutils.alloca_once_value(b, F32(0.0))
    with cgutils.for_range(b, n_groups) as groups:
        factor = b.load(b.gep(sums, [groups.index]))
        add_product(b, shift, _small_float(b, offsets, groups.index), factor)
    total = b.load(totals[0])
    for other in totals[1:]:
        total = b.fadd(total, b.load(other), flags=("reassoc",))
    y = b.fmul(b.fadd(summed(b, total), b.load(shift)), F32(2.0**112))
    b.ret(b.fmul(y, b.fmul(loaded(b, own, F32), unit)))
    return function


def _of_group(
    b: ir.IRBuilder, bits: int, step: int, codes: Any, x: Any, start: Any, size: Any | None
) -> Any:
    """codes . x over a group, as int32 in half as many lanes as there are words in a step.

    Without a size it is one step long.
    """
    per_word = 16 // bits
    lanes = step // per_word
    kind = ir.VectorType(I16, lanes)

    def of_step(at: Any, total: Any) -> Any:
        here = b.gep(codes, [b.udiv(at, I64(8 // bits))])
        prefetch(b, here, _AHEAD)
        words = loaded(b, here, kind)
        for i in range(per_word):
            part = b.lshr(words, filled(I16, lanes, i * bits))
            part = b.and_(part, filled(I16, lanes, 2**bits - 1))
            factor = loaded(b, b.gep(x, [b.add(at, I64(i * lanes))]), kind)
            total = b.add(total, _pairs(b, lanes, part, factor))
        return total

    none = filled(I32, lanes // 2, 0)
    if size is None:
        return of_step(start, none)
    sums = cgutils.alloca_once_value(b, none)
    with cgutils.for_range_slice(b, start, b.add(start, size), I64(step), I64) as (at, _):
        b.store(of_step(at, b.load(sums)), sums)
    return b.load(sums)


def _pairs(b: ir.IRBuilder, lanes: int, one: Any, other: Any) -> Any:
    """Products of two vectors of int16, neighbours added: half as many int32."""
    wide = ir.VectorType(I32, lanes)
    products = b.mul(b.sext(one, wide), b.sext(other, wide), flags=("nsw",))
    picks = [ir.Constant(ir.VectorType(I32, lanes // 2), list(range(i, lanes, 2))) for i in (0, 1)]
    even, odd = (b.shuffle_vector(products, ir.Constant(wide, ir.Undefined), p) for p in picks)
    return b.add(even, odd, flags=("nsw",))


def _small_float(b: ir.IRBuilder, floats: Any, index: Any) -> Any:
    """A float16, times 2**-112, as float32: not every processor converts them, but every one
    shifts their bits, and the factor is made good once a row."""
    half = loaded(b, b.gep(floats, [index]), I16)
    # The sign's copies are left out again but for the first.
    bits = b.and_(b.shl(b.sext(half, I32), I32(13)), I32(0x8FFFFFFF))
    return b.bitcast(bits, F32)
