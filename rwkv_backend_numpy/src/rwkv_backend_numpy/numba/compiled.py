"""Kernels: functions that Numba compiles, whose work the threads of this process share."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from threading import RLock
from types import FunctionType
from typing import Any

from numba import njit

from rwkv_backend_numpy.numba.kernel_cache import REORDERED, kept
from rwkv_backend_numpy.numba.work_sharing import Counters, inner, phase_counters
from rwkv_backend_numpy.numba.workers import Workers, outlined, run_job

inner_sums = njit(
    fastmath=REORDERED, no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy"
)

# One job at a time. In one thread, a signal's handler may call a kernel while another has just
# been compiled.
_one_at_a_time = RLock()
_workers: Workers | None = None


def _after_fork() -> None:
    global _one_at_a_time, _workers
    # Whoever held the lock is not in this process, nor are the workers.
    _one_at_a_time, _workers = RLock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Make a kernel of `function(counts, thread, *arguments)`, called with the arguments alone.

    Every thread runs the function; see `work_sharing` for how they share its phases, of which a
    caller says how many there are if not one.
    """
    entry = _entry(function)

    @wraps(function)
    def call(*arguments: Any, n_phases: int = 1) -> None:
        global _workers
        with _one_at_a_time:
            workers = _workers = _workers or Workers()
            workers.wake()
            entry(workers.control, phase_counters(n_phases, workers.n_threads), arguments)

    return call


def _entry(function: Callable[..., None]) -> Any:
    """What Python calls, compiled: it is kept under the function's name and place."""
    own = function.__code__
    code = _run.__code__.replace(co_filename=own.co_filename, co_firstlineno=own.co_firstlineno)
    entry = FunctionType(code, {**_run.__globals__, "kernel": inner(function)}, function.__name__)
    entry.__qualname__, entry.__module__ = function.__qualname__, function.__module__
    return kept(entry)


def _run(control: Counters, counts: Counters, arguments: Any) -> None:
    job, place = outlined(kernel, counts, arguments)  # type: ignore[name-defined]  # noqa: F821
    run_job(control, job, place)
