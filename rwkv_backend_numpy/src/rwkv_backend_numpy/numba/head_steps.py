"""One token through 16 rows of a head's matrix S, for compiled code; see `head_kernels`.

The 16 rows are stored transposed, as float32 [N, 16]: each vector of 16 numbers holds one column of
all 16 rows. So a sum over the N columns of each row is a sum of N vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from rwkv_backend_numpy.numba.llvm_vectors import (
    F32,
    I64,
    filled,
    fused,
    loaded,
    spread,
    store,
    vector,
)
from rwkv_backend_numpy.numba.panel_kernels import pointer
from rwkv_backend_numpy.numba.panels import LINE, ROWS

# Sums that take turns, as each addition waits for the sum's last one.
_N_SUMS = 4


@intrinsic
def wkv6_step(context, n, s, r, w, k, v, y):  # type: ignore[no-untyped-def]
    """Update S, and write y [16]. All arguments are int64; those after `n` are addresses."""

    def generate(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        n, s, r, w, k, v, y = args
        values = loaded(b, pointer(b, v), vector(F32, ROWS))

        def add(j: Any, total: Any) -> Any:
            place = pointer(b, s, b.mul(j, I64(LINE)))
            before = loaded(b, place, values.type)
            store(b, fused(b, before, _of(b, w, j), b.fmul(values, _of(b, k, j))), place)
            return fused(b, before, _of(b, r, j), total)

        store(b, _sum(b, n, add), pointer(b, y))
        return context.get_dummy_value()

    return types.none(*[types.int64] * 7), generate


@intrinsic
def wkv7_step(context, n, s, r, w, k, v, kk, b_, y):  # type: ignore[no-untyped-def]
    """Update S, and write y [16]. All arguments are int64; those after `n` are addresses."""

    def generate(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        n, s, r, w, k, v, kk, b_, y = args
        values = loaded(b, pointer(b, v), vector(F32, ROWS))

        def place(j: Any) -> Any:
            return pointer(b, s, b.mul(j, I64(LINE)))

        def remove(j: Any, total: Any) -> Any:
            return fused(b, loaded(b, place(j), values.type), _of(b, kk, j), total)

        removed = b.fneg(_sum(b, n, remove))

        def add(j: Any, total: Any) -> Any:
            kept = b.fmul(loaded(b, place(j), values.type), _of(b, w, j))
            after = fused(b, values, _of(b, k, j), fused(b, removed, _of(b, b_, j), kept))
            store(b, after, place(j))
            return fused(b, after, _of(b, r, j), total)

        store(b, _sum(b, n, add), pointer(b, y))
        return context.get_dummy_value()

    return types.none(*[types.int64] * 9), generate


def _sum(b: ir.IRBuilder, n: Any, add: Callable[[Any, Any], Any]) -> Any:
    """Return the sum over all j below `n`; `add(j, total)` returns the new total, 16 float32."""
    none = filled(F32, ROWS, 0.0)
    totals = [cgutils.alloca_once(b, none.type) for _ in range(_N_SUMS)]
    for total in totals:
        b.store(none, total)
    whole = b.and_(n, I64(-_N_SUMS))
    with cgutils.for_range_slice(b, I64(0), whole, I64(_N_SUMS), I64) as (j, _):
        for i, total in enumerate(totals):
            b.store(add(b.add(j, I64(i)), b.load(total)), total)
    with cgutils.for_range_slice(b, whole, n, I64(1), I64) as (j, _):
        b.store(add(j, b.load(totals[0])), totals[0])
    first, *others = [b.load(total) for total in totals]
    for other in others:
        first = b.fadd(first, other)
    return first


def _of(b: ir.IRBuilder, numbers: Any, j: Any) -> Any:
    return spread(b, loaded(b, pointer(b, numbers, b.mul(j, I64(4))), F32), ROWS)
