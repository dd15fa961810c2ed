"""Functions that build LLVM IR for vectors. `b` is an IRBuilder, values are LLVM's."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Sequence
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba.core import cgutils
from numba.core.registry import cpu_target

I8, I16, I32, I64 = (ir.IntType(n) for n in (8, 16, 32, 64))
F32 = ir.FloatType()
BYTES = I8.as_pointer()

# Features of the target processor, such as "+avx512f"; NUMBA_CPU_NAME chooses another target.
_FEATURES = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
# 32 registers of 16 float32.
HAS_WIDE_VECTORS = "+avx512f" in _FEATURES
# Products of bfloat16, added in float32. LLVM before version 16 has other types for them.
HAS_BFLOAT16_PRODUCTS = "+avx512bf16" in _FEATURES and llvmlite.binding.llvm_version_info[0] >= 16


def _may_use_tiles() -> bool:
    """Ask the system for the processor's tiles, for all threads of this process."""
    tiles = {"+amx-tile", "+amx-bf16", "+amx-int8"}
    if platform.system() != "Linux" or not tiles <= set(_FEATURES):
        return False
    arch_prctl, request, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None).syscall(arch_prctl, request, tile_data) == 0


HAS_TILES = _may_use_tiles()


class BFloat16(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite lacks."""

    intrinsic_name = "bf16"

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloat16)

    def __hash__(self) -> int:
        return hash(BFloat16)


def vector(kind: ir.Type, n: int) -> ir.VectorType:
    return ir.VectorType(kind, n)


def filled(kind: ir.Type, n: int, value: float) -> ir.Constant:
    """Return a constant vector of `n` times `value`."""
    return ir.Constant(vector(kind, n), [value] * n)


def spread(b: ir.IRBuilder, value: Any, n: int) -> Any:
    """Return a vector of `n` times `value`."""
    nothing = ir.Constant(vector(value.type, n), ir.Undefined)
    first = b.insert_element(nothing, value, I32(0))
    return b.shuffle_vector(first, nothing, filled(I32, n, 0))


def loaded(b: ir.IRBuilder, pointer: Any, kind: ir.Type) -> Any:
    """Load a value of type `kind` from `pointer`, of any pointer type."""
    value = b.load(b.bitcast(pointer, kind.as_pointer()))
    value.align = 1
    return value


def store(b: ir.IRBuilder, value: Any, pointer: Any) -> None:
    """Store `value` to `pointer`, of any pointer type."""
    b.store(value, b.bitcast(pointer, value.type.as_pointer())).align = 1


def prefetch(b: ir.IRBuilder, pointer: Any, n_bytes: int) -> None:
    """Prefetch the memory `n_bytes` after `pointer`, which may be outside the program's memory."""
    arguments = [b.gep(pointer, [I64(n_bytes)]), I32(0), I32(3), I32(1)]
    call(b, "llvm.prefetch.p0i8", ir.VoidType(), arguments)


def call(b: ir.IRBuilder, name: str, result: ir.Type, arguments: Sequence[Any]) -> Any:
    """Call the function `name`, of LLVM or the system. Return its result."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), arguments)


def fused(b: ir.IRBuilder, one: Any, other: Any, total: Any) -> Any:
    """Return one * other + total of float32 vectors, rounded once if the processor can."""
    name = f"llvm.fmuladd.v{total.type.count}f32"
    return call(b, name, total.type, [one, other, total])


def bfloat16_products(b: ir.IRBuilder, one: Any, other: Any, total: Any) -> Any:
    """Return `total`, 16 float32, with the products of a pair of bfloat16 added to each."""
    pairs = [b.bitcast(pair, vector(BFloat16(), 32)) for pair in (one, other)]
    return call(b, "llvm.x86.avx512bf16.dpbf16ps.512", total.type, [total, *pairs])


def int16_products(b: ir.IRBuilder, one: Any, other: Any, total: Any) -> Any:
    """Return `total`, a vector of int32, plus two products of int16 for each number.

    The products are those of adjacent int16 in `one` and `other`. LLVM turns these operations into
    one instruction if the processor has it (vpmaddwd, vpdpwssd).
    """
    n = one.type.count
    wide = vector(I32, n)
    products = b.mul(b.sext(one, wide), b.sext(other, wide), flags=("nsw",))
    picks = [ir.Constant(vector(I32, n // 2), list(range(i, n, 2))) for i in (0, 1)]
    even, odd = (b.shuffle_vector(products, ir.Constant(wide, ir.Undefined), p) for p in picks)
    return b.add(total, b.add(even, odd, flags=("nsw",)))
