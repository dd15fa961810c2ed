"""Multiplies a panel with sixteen rows of activations at once, by the tiles of Intel's AMX.

A panel is 16 rows of a matrix, stored in lines of 64 bytes; see `panels`. A tile is a register of
16 lines of 64 bytes. One instruction multiplies a tile that holds 16 rows of activations with 16
lines of a panel, and adds the products to a tile of 16 x 16 sums.

With int8 and int4 matrices, a 16-bit activation is stored as two bytes, 256 * high + low. The codes
are multiplied with the high bytes and with the low bytes, so the sums are exactly those of
`panel_kernels`. `activations` converts activations to these forms:

    bfloat16    bfloat16
    int8, int4  the high bytes of all columns, then the low ones
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from rwkv_backend_numpy.numba.llvm_vectors import (
    BYTES,
    F32,
    I8,
    I32,
    I64,
    call,
    filled,
    fused,
    loaded,
    prefetch,
    spread,
    store,
    vector,
)
from rwkv_backend_numpy.numba.panel_kernels import AHEAD, pointer, scaled, small_floats_at
from rwkv_backend_numpy.numba.panels import LINE, ROWS
from rwkv_backend_numpy.numba.short_floats import FLOAT16_SCALE, rounded

TILE = ROWS * LINE
"""Bytes in a tile."""


def _bfloat16_product(n_blocks: int) -> Callable[..., None]:
    """Return a function for compiled code: it multiplies a panel with `n_blocks` blocks of 16 rows.

    Its arguments are int64: (panel, depth, x, x_bytes, out, out_bytes). They are the same as in
    `panel_kernels._product_with`. The depth is a multiple of 32.
    """

    @intrinsic
    def product(context, panel, depth, x, x_bytes, out, out_bytes):  # type: ignore[no-untyped-def]
        def generate(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
            panel, depth, x, x_bytes, out, out_bytes = args
            starts = [b.mul(I64(ROWS * i), x_bytes) for i in range(n_blocks)]
            totals, weights, block = range(n_blocks), n_blocks, n_blocks + 1
            _begin(b)
            for total in totals:
                _tile(b, "zero", total)
            with cgutils.for_range(b, b.udiv(depth, I64(LINE // 2))) as step:
                lines = b.add(panel, b.mul(step.index, I64(TILE)))
                for i in range(ROWS):
                    prefetch(b, pointer(b, lines, I64(LINE * i)), AHEAD)
                _tile(b, "loadd64", weights, pointer(b, lines), I64(LINE))
                here = b.add(x, b.mul(step.index, I64(LINE)))
                for total, start in zip(totals, starts, strict=True):
                    _tile(b, "loadd64", block, pointer(b, here, start), x_bytes)
                    _add(b, "bf16ps", total, block, weights)
            for total in totals:
                to = pointer(b, out, b.mul(I64(ROWS * total), out_bytes))
                _tile(b, "stored64", total, to, out_bytes)
            _tile(b, "release")
            return context.get_dummy_value()

        return types.none(*[types.int64] * 6), generate

    return product


one_block, four_blocks = (_bfloat16_product(n) for n in (1, 4))


@intrinsic
def block_of_codes(  # type: ignore[no-untyped-def]
    context, panel, group_bytes, codes, codes_bytes, n_tiles, n_groups,
    x, x_bytes, low, sums, units, out, out_bytes,
):  # fmt: skip
    """Multiply codes with 16 rows of activations. All arguments are int64.

    `panel` is the address of the units, scales and offsets; those of two groups are `group_bytes`
    apart. `codes` is the address of the codes in 8 bits: a group has `n_tiles` tiles, and two
    groups are `codes_bytes` apart. `low` is the distance in bytes from the activations' high bytes
    to their low bytes. The other arguments are the same as in `panel_kernels._product_with`.
    """

    def generate(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        panel, group_bytes, codes, codes_bytes, n_tiles, n_groups = args[:6]
        x, x_bytes, low, sums, units, out, out_bytes = args[6:]
        none = filled(F32, ROWS, 0.0)
        totals = [cgutils.alloca_once_value(b, none) for _ in range(ROWS)]
        parts = [cgutils.alloca_once(b, ir.ArrayType(vector(I32, ROWS), ROWS)) for _ in range(2)]
        _begin(b)
        with cgutils.for_range(b, n_groups) as group:
            at = b.mul(group.index, b.mul(n_tiles, I64(LINE)))
            lines = b.add(codes, b.mul(group.index, codes_bytes))
            _codes_times_bytes(b, lines, n_tiles, b.add(x, at), x_bytes, low, parts)
            start = b.add(b.add(panel, I64(LINE)), b.mul(group.index, group_bytes))
            scales, offsets = (small_floats_at(b, start, at) for at in (0, LINE // 2))
            for i, total in enumerate(totals):
                high, low_part = (b.load(_line(b, part, i)) for part in parts)
                whole = b.add(b.shl(high, filled(I32, ROWS, 8)), low_part)
                y = fused(b, b.sitofp(whole, none.type), scales, b.load(total))
                nth = b.add(b.mul(n_groups, I64(i)), group.index)
                x_sum = loaded(b, pointer(b, sums, b.mul(nth, I64(4))), F32)
                b.store(fused(b, offsets, spread(b, x_sum, ROWS), y), total)
        _tile(b, "release")
        for i, y in enumerate(scaled(b, panel, [b.load(total) for total in totals], units)):
            store(b, y, pointer(b, out, b.mul(out_bytes, I64(i))))
        return context.get_dummy_value()

    return types.none(*[types.int64] * 13), generate


def _codes_times_bytes(
    b: ir.IRBuilder, lines: Any, n_tiles: Any, x: Any, x_bytes: Any, low: Any, parts: Any
) -> None:
    """Store the sums of a group's codes times the high bytes, and times the low ones: int32."""
    for total in (0, 1):
        _tile(b, "zero", total)
    with cgutils.for_range(b, n_tiles) as step:
        weights = pointer(b, lines, b.mul(step.index, I64(TILE)))
        here = b.add(x, b.mul(step.index, I64(LINE)))
        _tile(b, "loadd64", 2, weights, I64(LINE))
        _tile(b, "loadd64", 3, pointer(b, here), x_bytes)
        _tile(b, "loadd64", 4, pointer(b, here, low), x_bytes)
        _add(b, "bsud", 0, 3, 2)  # signed times unsigned
        _add(b, "buud", 1, 4, 2)
    for total, part in enumerate(parts):
        _tile(b, "stored64", total, b.bitcast(part, BYTES), I64(LINE))


@intrinsic
def unpack(context, lines, n_lines, to):  # type: ignore[no-untyped-def]
    """Write lines of codes in 4 bits to `to`, each code in a byte. All arguments are int64."""

    def generate(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        lines, n_lines, to = args
        with cgutils.for_range(b, n_lines) as line:
            at = b.mul(line.index, I64(LINE))
            packed = loaded(b, pointer(b, lines, at), vector(I32, ROWS))
            first = b.and_(packed, filled(I32, ROWS, 0xFFFF))
            second = b.lshr(packed, filled(I32, ROWS, 16))
            for i, four in enumerate((first, second)):
                pairs = _spread_bits(b, four, 8, 0x00FF00FF)
                place = pointer(b, to, b.add(b.mul(at, I64(2)), I64(LINE * i)))
                store(b, _spread_bits(b, pairs, 4, 0x0F0F0F0F), place)
        return context.get_dummy_value()

    return types.none(*[types.int64] * 3), generate


def _spread_bits(b: ir.IRBuilder, packed: Any, shift: int, kept: int) -> Any:
    shifted = b.shl(packed, filled(I32, ROWS, shift))
    return b.and_(b.or_(packed, shifted), filled(I32, ROWS, kept))


@intrinsic
def restore(context, kind, panel, n_groups, n_lines, to):  # type: ignore[no-untyped-def]
    """Write a panel's weights to `to`, as a panel of bfloat16.

    `kind` is INT8 or INT4, and the other arguments are int64. `panel` and `to` are addresses. A
    group has `n_lines` lines of codes.
    """
    bits = 8 if kind == types.uint8 else 4

    def generate(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        _, panel, n_groups, n_lines, to = args
        n_pairs = 16 // bits  # pairs of columns in a line
        own = b.fmul(
            loaded(b, pointer(b, panel), vector(F32, ROWS)), filled(F32, ROWS, FLOAT16_SCALE)
        )
        with cgutils.for_range(b, n_groups) as group:
            lines = b.mul(group.index, b.add(n_lines, I64(1)))
            start = b.add(b.add(panel, I64(LINE)), b.mul(lines, I64(LINE)))
            scales, offsets = (b.fmul(small_floats_at(b, start, at), own) for at in (0, LINE // 2))
            with cgutils.for_range(b, n_lines) as line:
                at = b.mul(b.add(line.index, I64(1)), I64(LINE))
                codes = loaded(b, pointer(b, start, at), vector(I32, ROWS))
                nth = b.add(b.mul(group.index, n_lines), line.index)
                place = b.add(to, b.mul(nth, I64(LINE * n_pairs)))
                for i in range(n_pairs):
                    low, high = (
                        _weights(b, codes, bits, 2 * i + j, scales, offsets) for j in (0, 1)
                    )
                    pair = b.or_(low, b.shl(high, filled(I32, ROWS, 16)))
                    store(b, pair, pointer(b, place, I64(LINE * i)))
        return context.get_dummy_value()

    return types.none(kind, *[types.int64] * 4), generate


def _weights(b: ir.IRBuilder, codes: Any, bits: int, column: int, scales: Any, offsets: Any) -> Any:
    """Return the weights of a column, as the bits of bfloat16 in int32."""
    code = b.lshr(codes, filled(I32, ROWS, bits * column))
    code = b.and_(code, filled(I32, ROWS, 2**bits - 1))
    weight = fused(b, b.uitofp(code, scales.type), scales, offsets)
    return rounded(b, b.bitcast(weight, codes.type))


def _begin(b: ir.IRBuilder) -> None:
    """Set up this thread's tiles, all of 16 lines of 64 bytes, until they are released."""
    palette, lines = [1, *[0] * 15], [ROWS] * 8 + [0] * 8
    setup = ir.Constant(vector(I8, 64), [*palette, *[LINE, 0] * 8, *[0] * 16, *lines])
    place = cgutils.alloca_once_value(b, setup)
    call(b, "llvm.x86.ldtilecfg", ir.VoidType(), [b.bitcast(place, BYTES)])


def _tile(b: ir.IRBuilder, name: str, number: int | None = None, *arguments: Any) -> None:
    numbers = [] if number is None else [I8(number)]
    call(b, f"llvm.x86.tile{name}", ir.VoidType(), [*numbers, *arguments])


def _add(b: ir.IRBuilder, kind: str, total: int, x: int, weights: int) -> None:
    call(b, f"llvm.x86.tdp{kind}", ir.VoidType(), [I8(total), I8(x), I8(weights)])


def _line(b: ir.IRBuilder, tile: Any, number: int) -> Any:
    return b.gep(tile, [I32(0), I32(number)])
