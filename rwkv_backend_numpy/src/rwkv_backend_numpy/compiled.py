"""Numba's compilation as the kernels want it: kept on disk where it can be, and announced."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from threading import Lock
from typing import Any, TypeVar

from numba import njit
from numba.core import event

Function = TypeVar("Function", bound=Callable[..., Any])

# Sums in any order, so that they vectorize. Not numba's fastmath=True, which takes it for granted
# that there are no NaNs and infinities, and would hide them.
REORDERED = {"reassoc", "contract"}


# Not all of Numba's threading layers stand calls from two of Python's threads at a time.
_one_at_a_time = Lock()


def compiled(function: Function) -> Function:
    """`function`, compiled for all of the processor's cores, and kept on disk for later processes.

    NUMBA_NUM_THREADS limits the cores, NUMBA_CACHE_DIR names the folder.
    """
    options = {"parallel": True, "fastmath": REORDERED}
    try:
        kernel = njit(cache=True, **options)(function)
    except RuntimeError:  # Numba found no folder that it may write to.
        kernel = njit(**options)(function)

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
