"""Decorator for kernels: functions compiled by Numba, whose work is shared by threads."""

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

# Only one job runs at a time. The lock is reentrant, since a signal handler may call a kernel in a
# thread that has just compiled another.
_one_at_a_time = RLock()
_workers: Workers | None = None


def _after_fork() -> None:
    global _one_at_a_time, _workers
    # The thread that held the lock and the workers are not in the forked process.
    _one_at_a_time, _workers = RLock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Make a kernel of `function(counts, thread, *arguments)`; call it with the arguments only.

    Every thread runs the function, and takes blocks of its work until none is left. A kernel may
    have several phases, each of which needs all results of the phase before it. The caller then
    passes the number of phases as `n_phases`. See `work_sharing`.
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
    """Return the compiled function that Python calls, cached under the kernel's name and file."""
    own = function.__code__
    code = _run.__code__.replace(co_filename=own.co_filename, co_firstlineno=own.co_firstlineno)
    entry = FunctionType(code, {**_run.__globals__, "kernel": inner(function)}, function.__name__)
    entry.__qualname__, entry.__module__ = function.__qualname__, function.__module__
    return kept(entry)


def _run(control: Counters, counts: Counters, arguments: Any) -> None:
    job, place = outlined(kernel, counts, arguments)  # type: ignore[name-defined]  # noqa: F821
    run_job(control, job, place)
