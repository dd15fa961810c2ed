"""How threads share out the work of a token, for compiled code.

A token is some fifty phases, each of which needs all that the one before gave. To begin and end a
parallel region for each would take about as long as the work of a small one, so there is one region
a token, and its threads take blocks of work and wait for each other by way of counters in memory.

No thread waits for another that has not begun: a block that nobody has taken is taken by whoever
comes first, and a thread waits only for blocks that are being worked on. So it is no matter how
many of the threads really run at a time, nor in which order.
"""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from rwkv_backend_numpy.compiled import inner
from rwkv_backend_numpy.llvm_vectors import I32, I64, call

# In int64: a cache line, so that what threads count does not make them wait for one another.
_STRIDE = 8
# Looks at a counter, of some 20 ns each, before the rest of its time slice is given to others.
_PATIENCE = 2000
Counters = NDArray[np.int64]


def counters(n_phases: int, n_threads: int) -> Counters:
    """All at zero: of each phase, the blocks taken of each thread's share, and those done."""
    return np.zeros((n_phases, n_threads + 1, _STRIDE), np.int64)


@intrinsic
def _fetch_add(context, counts, phase, index, value):  # type: ignore[no-untyped-def]
    """Add to a counter; gives what it was before."""

    def generate(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return b.atomic_rmw("add", _place(context, b, sig, args), args[3], "seq_cst")

    return types.int64(counts, types.int64, types.int64, types.int64), generate


@intrinsic
def _current(context, counts, phase, index):  # type: ignore[no-untyped-def]
    """A counter. What was written before others added to it can be read from now on."""

    def generate(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        return b.load_atomic(_place(context, b, sig, args), "acquire", 8)

    return types.int64(counts, types.int64, types.int64), generate


def _place(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
    array = context.make_array(sig.args[0])(context, b, args[0])
    n = b.extract_value(array.shape, 1)
    return b.gep(array.data, [b.mul(b.add(b.mul(args[1], n), args[2]), I64(_STRIDE))])


@intrinsic
def _pause(context):  # type: ignore[no-untyped-def]
    """Tell the processor that this is a loop that waits."""

    def generate(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        machine = platform.machine()
        if machine in ("x86_64", "AMD64"):
            call(b, "llvm.x86.sse2.pause", ir.VoidType(), [])
        elif machine in ("aarch64", "arm64"):
            call(b, "llvm.aarch64.hint", ir.VoidType(), [I32(1)])
        return context.get_dummy_value()

    return types.none(), generate


@intrinsic
def _give_way(context):  # type: ignore[no-untyped-def]
    """Let the system run another thread."""

    def generate(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        if platform.system() != "Windows":
            call(b, "sched_yield", I32, [])
        return context.get_dummy_value()

    return types.none(), generate


@inner
def take(counts: Counters, phase: int, thread: int, n_blocks: int) -> Any:
    """A block of the phase for this thread, of its own share or else another's; -1 for none."""
    n_threads = counts.shape[1] - 1
    for i in range(n_threads):
        owner = (thread + i) % n_threads
        start, end = owner * n_blocks // n_threads, (owner + 1) * n_blocks // n_threads
        block = start + _fetch_add(counts, phase, owner, 1)
        if block < end:
            return block
    return -1


@inner
def done(counts: Counters, phase: int) -> None:
    """A block that was taken is done."""
    _fetch_add(counts, phase, counts.shape[1] - 1, 1)


@inner
def wait(counts: Counters, phase: int, n_blocks: int) -> None:
    """Until all blocks of the phase are done, of which none is left to take."""
    looks = 0
    while _current(counts, phase, counts.shape[1] - 1) < n_blocks:
        looks += 1
        if looks < _PATIENCE:
            _pause()
        else:
            _give_way()


@inner
def is_over(counts: Counters, phase: int, n_blocks: int) -> Any:
    """Whether there is nothing left to do in the phase, nor to wait for."""
    return _current(counts, phase, counts.shape[1] - 1) == n_blocks
