"""Numba's compilation as the kernels want it: announced, and kept on disk where it can be.

Calls of what it gives are made one at a time, and not where they would end the process.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, wraps
from pathlib import Path
from threading import RLock, current_thread, main_thread
from types import CellType, FunctionType
from typing import Any, TypeVar

from numba import get_num_threads, njit, threading_layer
from numba.core import config, event
from numba.core.caching import FunctionCache

from rwkv_core.errors import BackendError

Function = TypeVar("Function", bound=Callable[..., Any])

# Sums in any order, so that they vectorize. Not numba's fastmath=True, which takes it for granted
# that there are no NaNs and infinities, and would hide them.
REORDERED = {"reassoc", "contract"}


# For functions that only compiled ones call: without the ways in from Python, which take longer to
# compile than most of them.
_INNER = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "error_model": "numpy"}
inner = njit(**_INNER)
inner_sums = njit(fastmath=REORDERED, **_INNER)


def _digest_of_sources() -> str:
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


_SOURCES = CellType(_digest_of_sources())

if config.DISABLE_JIT:
    raise BackendError(
        "numba: found NUMBA_DISABLE_JIT set, and the kernels run only compiled; unset it"
    )

# Not all of Numba's threading layers stand calls from two of Python's threads at a time. In one, a
# signal's handler may call a kernel while another has just been compiled.
_one_at_a_time = RLock()
_threads_lost = False


def _after_fork() -> None:
    global _one_at_a_time, _threads_lost
    _one_at_a_time = RLock()  # Whoever held it is not in this process.
    with suppress(ValueError):  # No thread has been started yet.
        # GNU's OpenMP, which would end the process. Numba's other layers start anew.
        _threads_lost = threading_layer() == "omp"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def compiled(function: Function) -> Function:
    """`function`, compiled for all of the processor's cores, and kept on disk for later processes.

    NUMBA_NUM_THREADS limits the cores, NUMBA_CACHE_DIR names the folder. Calls raise BackendError
    where there are no threads to be had.
    """
    # Numba looks whether the file that a kernel is in has changed, and not those that it takes the
    # inner loops from; but a function's closure is part of what it is kept under.
    code = function.__code__.replace(co_freevars=("sources",))
    closed = FunctionType(code, function.__globals__, function.__name__, closure=(_SOURCES,))
    closed.__module__, closed.__qualname__ = function.__module__, function.__qualname__
    kernel = njit(parallel=True, fastmath=REORDERED, error_model="numpy")(closed)
    kernel.compile = _whole(kernel.compile)
    with suppress(RuntimeError):  # Numba found no folder that it may write to.
        kernel._cache = _Cache(closed)

    @wraps(function)
    def call(*arguments: Any) -> Any:
        with _one_at_a_time:
            _need_threads()
            return kernel(*arguments)

    return call  # type: ignore[return-value]


def _need_threads() -> None:
    if _threads_lost:
        raise BackendError(
            "numba: this process was forked from one that had computed already, whose threads "
            "it lacks; have multiprocessing start it by spawn or forkserver"
        )
    try:
        _start_threads()
    except ValueError as error:
        layer = config.THREADING_LAYER
        raise BackendError(
            f"numba: found NUMBA_THREADING_LAYER={layer}, which does not load here; unset it"
        ) from error


@cache
def _start_threads() -> None:
    get_num_threads()


def _whole(compile: Callable[..., Any]) -> Callable[..., Any]:
    """`compile`, of which an interrupt would leave halves that later calls stumble over."""

    @wraps(compile)
    def held(signature: Any) -> Any:
        with _interrupts_held():
            return compile(signature)

    return held


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """What Ctrl-C does is done at the end: LLVM calls back into Python, where it would be lost."""
    handler = signal.getsignal(signal.SIGINT)
    if current_thread() is not main_thread() or not callable(handler):
        yield
        return
    held: list[Any] = []
    signal.signal(signal.SIGINT, lambda *interrupt: held.append(interrupt))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if held:
            handler(*held[0])


class _Cache(FunctionCache):  # type: ignore[misc]
    """Compiles anew what cannot be read; what cannot be written is not kept."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            found = super().load_overload(sig, target_context)
            # Two processes that compile at a time may give their files the same name.
            if found is None or found.signature.args == tuple(sig):
                return found
        except Exception:  # Of a damaged file, whatever pickle and LLVM come upon.
            pass
        self._forget()
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception:
            self._forget()

    def _forget(self) -> None:
        with suppress(OSError):
            self.flush()


class _Announcer(event.Listener):  # type: ignore[misc]
    """Says on a terminal that kernels are being compiled; the line goes when that is done."""

    def on_start(self, started: event.Event) -> None:
        if self._is_ours(started) and sys.stderr.isatty():
            line = "\r\x1b[Kcompiling kernels for this processor (once) ..."
            print(line, end="", file=sys.stderr, flush=True)

    def on_end(self, ended: event.Event) -> None:
        if self._is_ours(ended) and sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _is_ours(self, happening: event.Event) -> bool:
        module: str = happening.data["dispatcher"].py_func.__module__
        return module.startswith(__package__)


event.register("numba:compile", _Announcer())
