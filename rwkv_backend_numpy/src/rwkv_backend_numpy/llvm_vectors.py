"""What the kernels written in LLVM's terms share. `b` is an IRBuilder, values are LLVM's."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

I8, I16, I32, I64 = (ir.IntType(n) for n in (8, 16, 32, 64))
F32 = ir.FloatType()


def filled(kind: ir.Type, n: int, value: float) -> ir.Constant:
    """A vector of `n` times the number."""
    return ir.Constant(ir.VectorType(kind, n), [value] * n)


def spread(b: ir.IRBuilder, value: Any, n: int) -> Any:
    """A vector of `n` times the value."""
    nothing = ir.Constant(ir.VectorType(value.type, n), ir.Undefined)
    first = b.insert_element(nothing, value, I32(0))
    return b.shuffle_vector(first, nothing, filled(I32, n, 0))


def loaded(b: ir.IRBuilder, pointer: Any, kind: ir.Type) -> Any:
    """What is at `pointer`, of type `kind`, wherever that points to."""
    value = b.load(b.bitcast(pointer, kind.as_pointer()))
    value.align = 1
    return value


def prefetch(b: ir.IRBuilder, pointer: Any, n_bytes: int) -> None:
    """Ask for the memory `n_bytes` behind `pointer`, which need not be the program's."""
    kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    function = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0i8")
    address = b.gep(b.bitcast(pointer, I8.as_pointer()), [I64(n_bytes)])
    b.call(function, [address, I32(0), I32(3), I32(1)])


def add_product(b: ir.IRBuilder, total: Any, one: Any, other: Any) -> None:
    """total += one * other, fused where the processor can; `total` is a variable."""
    product = b.fmul(one, other, flags=("contract",))
    b.store(b.fadd(b.load(total), product, flags=("reassoc", "contract")), total)


def summed(b: ir.IRBuilder, vector: Any) -> Any:
    """The sum of a float32 vector's elements, in any order."""
    name = f"llvm.vector.reduce.fadd.v{vector.type.count}f32"
    kind = ir.FunctionType(F32, [F32, vector.type])
    function = cgutils.get_or_insert_function(b.module, kind, name)
    return b.call(function, [F32(0.0), vector], fastmath=("reassoc",))
