"""Refuses to use a library in a forked process, where it would hang for lack of its threads."""

from __future__ import annotations

import os

from rwkv_core.errors import BackendError

_used: set[str] = set()
_lost: set[str] = set()


def note_use(library: str) -> None:
    """Record that `library` starts threads in this process. Does nothing for ""."""
    if library:
        _used.add(library)


def check_threads(library: str) -> None:
    """Raise BackendError if `library` started its threads before this process was forked."""
    if library in _lost:
        raise BackendError(
            f"{library}: this process was forked after the library had started threads, which it "
            "lacks; set multiprocessing's start method to spawn or forkserver"
        )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _lost.update(_used))
