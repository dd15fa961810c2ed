"""Numba's compilation as the kernels want it: kept on disk where it can be, and announced."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from threading import Lock
from types import CellType, FunctionType
from typing import Any, TypeVar

from numba import njit
from numba.core import event

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

# Not all of Numba's threading layers stand calls from two of Python's threads at a time.
_one_at_a_time = Lock()


def compiled(function: Function) -> Function:
    """`function`, compiled for all of the processor's cores, and kept on disk for later processes.

    NUMBA_NUM_THREADS limits the cores, NUMBA_CACHE_DIR names the folder.
    """
    # Numba looks whether the file that a kernel is in has changed, and not those that it takes the
    # inner loops from; but a function's closure is part of what it is kept under.
    code = function.__code__.replace(co_freevars=("sources",))
    closed = FunctionType(code, function.__globals__, function.__name__, closure=(_SOURCES,))
    closed.__module__, closed.__qualname__ = function.__module__, function.__qualname__
    options = {"parallel": True, "fastmath": REORDERED, "error_model": "numpy"}
    try:
        kernel = njit(cache=True, **options)(closed)
    except RuntimeError:  # Numba found no folder that it may write to.
        kernel = njit(**options)(closed)

    @wraps(function)
    def call(*arguments: Any) -> Any:
        with _one_at_a_time:
            return kernel(*arguments)

    return call  # type: ignore[return-value]


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
