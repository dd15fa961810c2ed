"""Cleanup when a signal ends a command, such as the removal of temporary files."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_NUMBERS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]


@contextmanager
def cleanup_on_signal() -> Iterator[None]:
    """Make Ctrl-C, SIGTERM and SIGHUP raise an exception, so that temporary files are removed."""
    before = {number: signal.getsignal(number) for number in _NUMBERS}
    for number in _NUMBERS:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, _: object) -> None:
    # A second signal, which `timeout` for example sends at once, must not interrupt the cleanup.
    for one in _NUMBERS:
        signal.signal(one, signal.SIG_IGN)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)
