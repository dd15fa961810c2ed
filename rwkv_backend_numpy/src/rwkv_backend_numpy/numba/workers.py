"""Worker threads for kernels: they wait for a job, join it, and sleep when none comes.

A job is a compiled function and its arguments. The thread that calls a kernel opens a job, works
on it itself, closes it, and waits for the workers still in it. Workers join if they are awake, so a
job never waits for a thread to start. OpenMP is not used: its parallel regions wait for all
threads, which takes many times as long if other processes keep the cores busy.
"""

from __future__ import annotations

import atexit
import os
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.typing import signature
from numba.extending import intrinsic

from rwkv_backend_numpy.numba.kernel_cache import kept
from rwkv_backend_numpy.numba.llvm_vectors import BYTES, I64
from rwkv_backend_numpy.numba.work_sharing import (
    Counters,
    counters,
    current,
    exchange,
    fetch_add,
    inner,
    pause,
    wait_for,
)
from rwkv_core.util.threads import available_threads

# Counters of `Workers.control`: the job's number, odd while it is open; addresses of its function
# and its arguments; the number of workers in it; the number of sleeping workers.
_JOB, _FUNCTION, _ARGUMENTS, _INSIDE, _ASLEEP, _N_COUNTERS = range(6)
# Number of times a worker looks for a job (20 to 50 ns each) before it sleeps. The caller's pauses
# between two kernels, and between two tokens, last up to some tenths of a millisecond.
_PATIENCE = 5000
_JOIN_SECONDS = 1.0

_FUNCTION_TYPE = ir.FunctionType(ir.VoidType(), [BYTES, I64])


class Workers:
    """The worker threads of this process.

    Attributes:
        control: the shared counters with which `run_job` opens and closes a job.
        n_threads: number of threads, including the thread that calls the kernel.
    """

    def __init__(self) -> None:
        self.control = counters(1, _N_COUNTERS)
        self._wake_ups: SimpleQueue[bool] = SimpleQueue()
        self._threads: list[Thread] = []
        # Compiles the function, before there are sleeping workers that this call would count.
        _take_sleepers(self.control)
        # The system may allow fewer threads than there are cores.
        with suppress(RuntimeError):
            for number in range(1, thread_count()):
                thread = Thread(target=self._work, args=(number,), daemon=True, name="rwkv-numba")
                thread.start()
                self._threads.append(thread)
        self.n_threads = 1 + len(self._threads)
        # At exit Python kills threads in compiled code, which may crash; so they end first.
        atexit.register(self._close)

    def wake(self) -> None:
        """Wake sleeping workers; called before each job."""
        if self.control[0, _ASLEEP, 0]:
            for _ in range(_take_sleepers(self.control)):
                self._wake_ups.put(True)

    def _work(self, number: int) -> None:
        goes_on = True
        while goes_on:
            _serve(self.control, number)
            goes_on = self._wake_ups.get()

    def _close(self) -> None:
        for _ in self._threads:
            self._wake_ups.put(False)
        for thread in self._threads:
            thread.join(_JOIN_SECONDS)


def thread_count() -> int:
    """Return the number of threads: NUMBA_NUM_THREADS, or the cores that this process may use."""
    if os.environ.get("NUMBA_NUM_THREADS"):
        return int(config.NUMBA_NUM_THREADS)
    return available_threads()


@kept
def _serve(control: Counters, thread: int) -> None:
    """Join jobs, until none has come for a while."""
    last = 0
    looks = 0
    while looks < _PATIENCE:
        job = _join(control, thread, last)
        if job != last:
            last, looks = job, 0
        else:
            looks += 1
            pause()
    fetch_add(control, 0, _ASLEEP, 1)
    # A job may have been opened just now, by a caller that counted this thread as awake.
    _join(control, thread, last)


@inner
def _join(control: Counters, thread: int, last: int) -> Any:
    """Join the job if one is open and it is not `last`. Return its number, or else `last`."""
    job = current(control, 0, _JOB)
    if job % 2 == 0 or job == last:
        return last
    fetch_add(control, 0, _INSIDE, 1)
    # From here on the caller waits for this thread, unless it has just closed the job.
    if current(control, 0, _JOB) == job:
        _call(current(control, 0, _FUNCTION), current(control, 0, _ARGUMENTS), thread)
    fetch_add(control, 0, _INSIDE, -1)
    return job


@kept
def _take_sleepers(control: Counters) -> Any:
    """Return the number of sleeping workers, and count them as awake."""
    return exchange(control, 0, _ASLEEP, 0)


@inner
def run_job(control: Counters, function: int, arguments: int) -> None:
    """Run a job (see `outlined`) in this thread and in all workers that join."""
    exchange(control, 0, _FUNCTION, function)
    exchange(control, 0, _ARGUMENTS, arguments)
    fetch_add(control, 0, _JOB, 1)
    _call(function, arguments, 0)
    fetch_add(control, 0, _JOB, 1)
    wait_for(control, 0, _INSIDE, 0)


@intrinsic
def outlined(context, kernel, counts, arguments):  # type: ignore[no-untyped-def]
    """Return two addresses: of a function that runs `kernel` in a thread, and of its arguments.

    The function calls `kernel(counts, thread, *arguments)`, compiled for the types of the
    arguments. The addresses are valid until the caller returns.
    """
    given = types.Tuple([counts, *arguments.types])

    def generate(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        values = [args[1], *cgutils.unpack_tuple(b, args[2], len(arguments))]
        whole = _borrowed(context, b, given, context.make_tuple(b, given, values))
        place = cgutils.alloca_once_value(b, whole)
        function = _function(context, b, kernel.dispatcher.py_func, given)
        addresses = [b.ptrtoint(function, I64), b.ptrtoint(place, I64)]
        return context.make_tuple(b, sig.return_type, addresses)

    return types.UniTuple(types.int64, 2)(kernel, counts, arguments), generate


def _borrowed(context: Any, b: ir.IRBuilder, kind: Any, value: Any) -> Any:
    """Return `value`, in which no array refers to the owner of its memory.

    Threads then count no references, which makes kernels that slice arrays up to three times
    faster.
    """
    if isinstance(kind, types.BaseTuple):
        parts = zip(kind.types, cgutils.unpack_tuple(b, value, len(kind)), strict=True)
        return context.make_tuple(b, kind, [_borrowed(context, b, *part) for part in parts])
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, b, value)
        array.meminfo = array.parent = cgutils.get_null_value(array.parent.type)
        return array._getvalue()
    return value


def _function(context: Any, b: ir.IRBuilder, kernel: Any, given: Any) -> ir.Function:
    function = ir.Function(b.module, _FUNCTION_TYPE, b.module.get_unique_name("rwkv_share"))
    function.linkage = "internal"
    inside = ir.IRBuilder(function.append_basic_block())
    place, thread = function.args
    values = inside.load(inside.bitcast(place, context.get_value_type(given).as_pointer()))
    counts, *others = cgutils.unpack_tuple(inside, values, len(given))
    sig = signature(types.none, given[0], types.int64, *given[1:])
    compiled = context.compile_subroutine(inside, kernel, sig)
    # Kernels raise nothing.
    context.call_internal_no_propagate(inside, compiled.fndesc, sig, [counts, thread, *others])
    inside.ret_void()
    return function


@intrinsic
def _call(context, function, arguments, thread):  # type: ignore[no-untyped-def]
    def generate(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> Any:
        function = b.inttoptr(args[0], _FUNCTION_TYPE.as_pointer())
        b.call(function, [b.inttoptr(args[1], BYTES), args[2]])
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.int64), generate
