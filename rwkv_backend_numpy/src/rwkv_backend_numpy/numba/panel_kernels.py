"""The product of a panel of a matrix with rows of activations, for compiled code; see `panels`.

A panel is 16 rows of a matrix, stored in lines of 64 bytes. The code is written in LLVM IR, since
speed depends on which vectors stay in registers. With one row of activations, the speed of memory
limits the product. With several rows, the speed of the processor's multiplications limits it, since
a line is loaded and unpacked once for all rows.

The form of the activations depends on the type in which the matrix is stored. `activations`
converts them to this form. For each DEPTH columns of the panel, a row of activations has elements
of 32 bits in this order:

    float32   float32
    bfloat16  float32; for several rows, if the processor has such products, pairs of bfloat16
    int8      pairs of int16 for the columns (0, 2), (1, 3), (4, 6), (5, 7)
    int4      pairs of int16 for the columns (0, 4), (1, 5), (2, 6), (3, 7)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from rwkv_backend_numpy.numba.llvm_vectors import (
    BYTES,
    F32,
    HAS_BFLOAT16_PRODUCTS,
    I16,
    I32,
    I64,
    bfloat16_products,
    filled,
    fused,
    int16_products,
    loaded,
    prefetch,
    spread,
    store,
    vector,
)
from rwkv_backend_numpy.numba.panels import DEPTH, LINE, ROWS
from rwkv_backend_numpy.numba.short_floats import FLOAT16_SCALE, small_floats

# Distance in bytes at which lines are prefetched; a processor that is busy multiplying does not
# prefetch that far by itself.
AHEAD = 2048


class _Kind(NamedTuple):
    """The differences between the kinds of matrices.

    Attributes:
        n_lines: number of lines of 64 bytes in a step, which is DEPTH columns.
        parts: unpacks a line into vectors. Each vector is multiplied with one element of
            activations.
        add: takes (b, part, activations, total); returns the new total.
        total: the type of a group's sums.
        n_elements: number of elements of activations in a step.
        has_groups: whether there are groups with scales and offsets.
    """

    n_lines: int
    parts: Callable[[ir.IRBuilder, Any], list[Any]]
    add: Callable[[ir.IRBuilder, Any, Any, Any], Any]
    total: ir.Type
    n_elements: int
    has_groups: bool


def _float32(b: ir.IRBuilder, line: Any) -> list[Any]:
    return [loaded(b, line, vector(F32, ROWS))]


def _bfloat16(b: ir.IRBuilder, line: Any) -> list[Any]:
    pairs = loaded(b, line, vector(I32, ROWS))
    halves = b.shl(pairs, filled(I32, ROWS, 16)), b.and_(pairs, filled(I32, ROWS, -(1 << 16)))
    return [b.bitcast(half, vector(F32, ROWS)) for half in halves]


def _bfloat16_pairs(b: ir.IRBuilder, line: Any) -> list[Any]:
    return [loaded(b, line, vector(I32, ROWS))]


def _codes(bits: int) -> Callable[[ir.IRBuilder, Any], list[Any]]:
    n = 2 * ROWS

    def parts(b: ir.IRBuilder, line: Any) -> list[Any]:
        words = loaded(b, line, vector(I16, n))
        shifted = [b.lshr(words, filled(I16, n, shift)) for shift in range(0, 16, bits)]
        return [b.and_(word, filled(I16, n, 2**bits - 1)) for word in shifted]

    return parts


_FLOAT32 = _Kind(8, _float32, fused, F32, 8, False)
_BFLOAT16 = _Kind(4, _bfloat16, fused, F32, 8, False)
_BFLOAT16_PAIRS = _Kind(4, _bfloat16_pairs, bfloat16_products, F32, 4, False)
_INT8 = _Kind(2, _codes(8), int16_products, I32, 4, True)
_INT4 = _Kind(1, _codes(4), int16_products, I32, 4, True)


def _kind_of(tag: Any, n_rows: int) -> _Kind:
    if tag == types.uint16 and n_rows > 1 and HAS_BFLOAT16_PRODUCTS:
        return _BFLOAT16_PAIRS
    return {
        types.float32: _FLOAT32, types.uint16: _BFLOAT16, types.uint8: _INT8, types.int8: _INT4,
    }[tag]  # fmt: skip


def _product_with(n_rows: int) -> Callable[..., None]:
    """Return a function for compiled code: it multiplies a panel with `n_rows` rows of activations.

    Its arguments are (kind, panel, depth, n_groups, x, x_bytes, sums, units, out, out_bytes); all
    except the kind are int64. `panel`, `x`, `sums`, `units` and `out` are addresses. The rows of
    activations at `x` are `x_bytes` apart. For each row, 16 float32 are written to `out`; the
    results of two rows are `out_bytes` apart. Only int8 and int4 matrices use `sums` and `units`.
    `sums`, float32 [rows, groups], holds the sum of each row's activations in each group. `units`,
    float32 [rows], holds the number that a row's integer activations are multiples of.
    """

    @intrinsic
    def product(  # type: ignore[no-untyped-def]
        context, kind, panel, depth, n_groups, x, x_bytes, sums, units, out, out_bytes
    ):
        def generate(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
            b.call(_function(b.module, kind, n_rows), args[1:])
            return context.get_dummy_value()

        return types.none(kind, *[types.int64] * 9), generate

    return product


one_row, four_rows, eight_rows, sixteen_rows = (_product_with(n) for n in (1, 4, 8, 16))


def _function(module: ir.Module, tag: Any, n_rows: int) -> ir.Function:
    """Return the product as an LLVM function of its own, compiled once for all callers."""
    name = f"rwkv_panel_{tag}_{n_rows}"
    if name in module.globals:
        return module.globals[name]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * 9), name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    b = ir.IRBuilder(function.append_basic_block())
    panel, depth, n_groups, x, x_bytes, sums, units, out, out_bytes = function.args
    kind = _kind_of(tag, n_rows)
    rows = [b.add(x, b.mul(x_bytes, I64(i))) for i in range(n_rows)]
    steps = b.udiv(depth, b.mul(n_groups, I64(DEPTH)))
    if not kind.has_groups:
        totals = _totals(b, kind, panel, rows, steps)
    else:
        totals = _of_groups(b, kind, panel, rows, steps, n_groups, sums, units)
    for i, total in enumerate(totals):
        store(b, total, pointer(b, b.add(out, b.mul(out_bytes, I64(i)))))
    b.ret_void()
    return function


def _totals(b: ir.IRBuilder, kind: _Kind, lines: Any, rows: list[Any], steps: Any) -> list[Any]:
    """Return the sums of the products of lines with each row of activations, over `steps` steps."""
    # With one row several sums take turns, as each addition waits for the sum's last one.
    n_sums = kind.n_elements if len(rows) == 1 else 1
    none = filled(kind.total, ROWS, 0)
    sums = [[cgutils.alloca_once(b, none.type) for _ in range(n_sums)] for _ in rows]
    for variables in sums:
        for variable in variables:
            b.store(none, variable)
    with cgutils.for_range(b, steps) as step:
        at = b.mul(step.index, I64(LINE * kind.n_lines))
        elements = b.mul(step.index, I64(4 * kind.n_elements))
        parts = []
        for i in range(kind.n_lines):
            line = pointer(b, lines, b.add(at, I64(LINE * i)))
            if len(rows) > 1:
                prefetch(b, line, AHEAD)
            parts += kind.parts(b, line)
        for j, part in enumerate(parts):
            for row, variables in zip(rows, sums, strict=True):
                element = loaded(b, pointer(b, row, b.add(elements, I64(4 * j))), I32)
                x = b.bitcast(spread(b, element, ROWS), part.type)
                variable = variables[j % n_sums]
                b.store(kind.add(b, part, x, b.load(variable)), variable)
    add = b.fadd if kind.total == F32 else b.add
    totals = []
    for variables in sums:
        total = b.load(variables[0])
        for other in variables[1:]:
            total = add(total, b.load(other))
        totals.append(total)
    return totals


def _of_groups(
    b: ir.IRBuilder, kind: _Kind, panel: Any, rows: list[Any], steps: Any, n_groups: Any,
    sums: Any, units: Any,
) -> list[Any]:  # fmt: skip
    """Return the sum of scale * (codes . x) + offset * sum(x) over all groups, float32, per row."""
    none = filled(F32, ROWS, 0.0)
    totals = [cgutils.alloca_once_value(b, none) for _ in rows]
    group_bytes = b.add(b.mul(steps, I64(LINE * kind.n_lines)), I64(LINE))
    x_bytes = b.mul(steps, I64(4 * kind.n_elements))
    with cgutils.for_range(b, n_groups) as group:
        start = b.add(b.add(panel, I64(LINE)), b.mul(group.index, group_bytes))
        scales, offsets = (small_floats_at(b, start, at) for at in (0, LINE // 2))
        here = [b.add(row, b.mul(group.index, x_bytes)) for row in rows]
        products = _totals(b, kind, b.add(start, I64(LINE)), here, steps)
        for i, (product, total) in enumerate(zip(products, totals, strict=True)):
            at = b.add(b.mul(n_groups, I64(i)), group.index)
            x_sum = loaded(b, pointer(b, sums, b.mul(at, I64(4))), F32)
            y = fused(b, b.sitofp(product, none.type), scales, b.load(total))
            b.store(fused(b, offsets, spread(b, x_sum, ROWS), y), total)
    return scaled(b, panel, [b.load(total) for total in totals], units)


def scaled(b: ir.IRBuilder, panel: Any, totals: list[Any], units: Any) -> list[Any]:
    """Return the totals, of `small_floats`, in full units: a vector for each row of activations."""
    own = loaded(b, pointer(b, panel), vector(F32, ROWS))
    shift = filled(F32, ROWS, FLOAT16_SCALE)
    y = []
    for i, total in enumerate(totals):
        unit = spread(b, loaded(b, pointer(b, units, I64(4 * i)), F32), ROWS)
        y.append(b.fmul(b.fmul(total, shift), b.fmul(own, unit)))
    return y


def small_floats_at(b: ir.IRBuilder, address: Any, start: int) -> Any:
    """Load 16 float16 and return them, times 2**-112, as float32."""
    return small_floats(b, loaded(b, pointer(b, address, I64(start)), vector(I16, ROWS)))


def pointer(b: ir.IRBuilder, address: Any, offset: Any = None) -> Any:
    return b.gep(b.inttoptr(address, BYTES), [I64(0) if offset is None else offset])
