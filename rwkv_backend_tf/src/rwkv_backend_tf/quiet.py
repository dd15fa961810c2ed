"""Keeps what TensorFlow logs while it starts off the user's terminal.

Its C++ parts log to file descriptor 2 by themselves, some before they look at TF_CPP_MIN_LOG_LEVEL,
so the descriptor itself is turned aside for that time.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

_VARIABLE = "TF_CPP_MIN_LOG_LEVEL"
# absl's lines, "I0000 00:00:1795461327.611718    6449 cudart_stub.cc:31] ...", in either of its
# time formats, fatal ones (F) not among them; its warning of them; and what a line goes on with.
_LOG = re.compile(
    rb"[IWE]\d{4} \d\d:\d\d:|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IWE] "
    rb"|WARNING: All log messages before absl|To enable the following instructions:"
)


@contextmanager
def hidden_log() -> Iterator[None]:
    """Hide TensorFlow's log for a while; whatever else came to standard error is shown after it.

    Does nothing where TF_CPP_MIN_LOG_LEVEL is 0, which says that the user wants to see it (JAX
    sets it to 1), or where there is no standard error.
    """
    before = os.environ.get(_VARIABLE)
    if before == "0":
        yield
        return
    try:
        shown = os.dup(2)
    except OSError:
        yield
        return
    # For what is logged later; read once, when the library is loaded.
    os.environ[_VARIABLE] = "2"
    _flush()
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield
        finally:
            _flush()
            os.dup2(shown, 2)
            os.close(shown)
            if before is None:
                del os.environ[_VARIABLE]
            else:
                os.environ[_VARIABLE] = before
            aside.seek(0)
            for line in aside:
                if not _LOG.match(line):
                    os.write(2, line)


def _flush() -> None:
    if sys.stderr is not None:
        sys.stderr.flush()
