"""Compiles kernels with Numba: shows a line on a terminal, and caches them on disk if possible."""

from __future__ import annotations

import hashlib
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from threading import current_thread, main_thread
from types import CellType, FunctionType
from typing import Any

from numba import njit
from numba.core import config, event
from numba.core.caching import FunctionCache

from rwkv_core.architectures import matrix_state, rwkv4, rwkv7
from rwkv_core.errors import BackendError

# Sums may be reordered, so that they vectorize. Not numba's fastmath=True, which assumes that there
# are no NaNs and infinities, and would hide them.
REORDERED = {"reassoc", "contract"}


def _digest_of_sources() -> str:
    # The architectures define the rows of the state, so their sources count too.
    own = sorted(Path(__file__).parent.glob("*.py"))
    sources = [*own, *(Path(str(version.__file__)) for version in (matrix_state, rwkv4, rwkv7))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


_SOURCES = CellType(_digest_of_sources())

if config.DISABLE_JIT:
    raise BackendError(
        "numba: found NUMBA_DISABLE_JIT set, and the kernels run only compiled; unset it"
    )


def kept(function: Callable[..., Any]) -> Any:
    """Return `function`, compiled by Numba to run without the GIL, and cached on disk.

    NUMBA_CACHE_DIR names the folder.
    """
    # Numba checks whether the kernel's own file has changed, but not the files of functions that it
    # calls. It also compares a function's closure, which therefore holds a digest of all sources.
    code = function.__code__.replace(co_freevars=("sources",))
    closed = FunctionType(code, function.__globals__, function.__name__, closure=(_SOURCES,))
    closed.__module__, closed.__qualname__ = function.__module__, function.__qualname__
    kernel = njit(nogil=True, fastmath=REORDERED, error_model="numpy")(closed)
    kernel.compile = _whole(kernel.compile)
    with suppress(RuntimeError):  # Numba found no writable folder
        kernel._cache = _Cache(closed)
    return kernel


def _whole(compile: Callable[..., Any]) -> Callable[..., Any]:
    """Return `compile` with interrupts held: half a compilation would break later calls."""

    @wraps(compile)
    def held(signature: Any) -> Any:
        with _interrupts_held():
            return compile(signature)

    return held


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Delay Ctrl-C to the end: it could get lost in LLVM's callbacks into Python."""
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
    """A cache that treats unreadable files as missing, and does without unwritable ones."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            found = super().load_overload(sig, target_context)
            # Two processes that compile at the same time may give their files the same name.
            if found is None or found.signature.args == tuple(sig):
                return found
        except Exception:  # any error of pickle or LLVM, for a damaged file
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
    """Shows one line on a terminal while kernels are compiled."""

    def __init__(self) -> None:
        self._said = False

    def on_start(self, started: event.Event) -> None:
        module: str = started.data["dispatcher"].py_func.__module__
        if not self._said and module.startswith(__package__) and sys.stderr.isatty():
            self._said = True
            # Replaces the progress shown on this line.
            line = "\r\x1b[Kcompiling kernels for this processor (once, some 15 seconds) ..."
            print(line, file=sys.stderr, flush=True)

    def on_end(self, ended: event.Event) -> None:
        pass


event.register("numba:compile", _Announcer())
