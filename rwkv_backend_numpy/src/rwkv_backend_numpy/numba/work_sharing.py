"""Shares the work of a kernel among threads, for compiled code.

A kernel has one or more phases; each phase needs all results of the phase before it. A phase is
divided into blocks, and threads take blocks until none is left. Shared counters hold the numbers of
blocks taken and done.

A thread never waits for a thread that has not started: any thread may take a free block, and only
blocks in progress are waited for. So a thread that the system does not run delays the others only
if it is in the middle of a block.
"""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from rwkv_backend_numpy.numba.llvm_vectors import I32, I64, call

# A cache line, in int64. Each counter has its own, so that threads do not slow each other down.
_STRIDE = 8
# Number of times a counter is read (20 to 50 ns each) before the core is given to other threads.
_PATIENCE = 2000
Counters = NDArray[np.int64]

# Decorator for functions called only by compiled ones: without an entry from Python, which is slow
# to compile, and with fused products and sums, which halve the time of an exponential.
inner = njit(
    fastmath={"contract"}, no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy"
)


def counters(*shape: int) -> Counters:
    """Return counters of this shape, all zero, each in a cache line of its own."""
    return np.zeros((*shape, _STRIDE), np.int64)


def phase_counters(n_phases: int, n_threads: int) -> Counters:
    """Return counters: for each phase the blocks taken of each thread's share, then blocks done."""
    return counters(n_phases, n_threads + 1)


@intrinsic
def fetch_add(context, counts, phase, index, value):  # type: ignore[no-untyped-def]
    """Add `value` to a counter. Return its value before."""

    def generate(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return b.atomic_rmw("add", _place(context, b, sig, args), args[3], "seq_cst")

    return types.int64(counts, types.int64, types.int64, types.int64), generate


@intrinsic
def exchange(context, counts, phase, index, value):  # type: ignore[no-untyped-def]
    """Set a counter to `value`. Return its value before."""

    def generate(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return b.atomic_rmw("xchg", _place(context, b, sig, args), args[3], "seq_cst")

    return types.int64(counts, types.int64, types.int64, types.int64), generate


@intrinsic
def current(context, counts, phase, index):  # type: ignore[no-untyped-def]
    """Return a counter's value.

    What other threads wrote to memory before they set this value is visible afterwards.
    """

    def generate(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return b.load_atomic(_place(context, b, sig, args), "seq_cst", 8)

    return types.int64(counts, types.int64, types.int64), generate


def _place(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
    array = context.make_array(sig.args[0])(context, b, args[0])
    n = b.extract_value(array.shape, 1)
    return b.gep(array.data, [b.mul(b.add(b.mul(args[1], n), args[2]), I64(_STRIDE))])


@intrinsic
def pause(context):  # type: ignore[no-untyped-def]
    """Tell the processor that this is a waiting loop."""

    def generate(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        machine = platform.machine()
        if machine in ("x86_64", "AMD64"):
            call(b, "llvm.x86.sse2.pause", ir.VoidType(), [])
        elif machine in ("aarch64", "arm64"):
            call(b, "llvm.aarch64.hint", ir.VoidType(), [I32(1)])
        return context.get_dummy_value()

    return types.none(), generate


@intrinsic
def _yield_core(context):  # type: ignore[no-untyped-def]
    """Let the system run another thread on this core."""

    def generate(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        if platform.system() != "Windows":
            call(b, "sched_yield", I32, [])
        return context.get_dummy_value()

    return types.none(), generate


@inner
def wait_for(counts: Counters, phase: int, index: int, value: int) -> None:
    """Wait until a counter has this value."""
    looks = 0
    while current(counts, phase, index) != value:
        looks += 1
        if looks < _PATIENCE:
            pause()
        else:
            _yield_core()


@inner
def take(counts: Counters, phase: int, thread: int, n_blocks: int) -> Any:
    """Take a block of the phase, from this thread's share or another's; -1 if none is left."""
    n_threads = counts.shape[1] - 1
    for i in range(n_threads):
        owner = (thread + i) % n_threads
        start, end = owner * n_blocks // n_threads, (owner + 1) * n_blocks // n_threads
        block = start + fetch_add(counts, phase, owner, 1)
        if block < end:
            return block
    return -1


@inner
def take_range(counts: Counters, thread: int, n: int, size: int) -> Any:
    """Take the next `size` of `n` items in a kernel of one phase. Return start and end.

    If no item is left, start and end are equal.
    """
    block = take(counts, 0, thread, (n + size - 1) // size)
    return (0, 0) if block < 0 else (block * size, min((block + 1) * size, n))


@inner
def done(counts: Counters, phase: int) -> None:
    """Count a taken block as done."""
    fetch_add(counts, phase, counts.shape[1] - 1, 1)


@inner
def wait(counts: Counters, phase: int, n_blocks: int) -> None:
    """Wait until all blocks of the phase are done; call it when none is left to take."""
    wait_for(counts, phase, counts.shape[1] - 1, n_blocks)


@inner
def is_over(counts: Counters, phase: int, n_blocks: int) -> Any:
    """Return whether all blocks of the phase are done."""
    return current(counts, phase, counts.shape[1] - 1) == n_blocks
