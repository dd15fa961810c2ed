"""Hides TensorFlow's log while the library starts.

TensorFlow's C++ code writes to file descriptor 2, partly before it reads TF_CPP_MIN_LOG_LEVEL. So
the descriptor is redirected during that time.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

_VARIABLE = "TF_CPP_MIN_LOG_LEVEL"
# Hidden lines: absl's, "I0000 00:00:1795461327.611718    6449 cudart_stub.cc:31] ...", in both of
# its time formats, but not fatal ones (F); absl's own warning; and a line that continues one.
_LOG = re.compile(
    rb"[IWE]\d{4} \d\d:\d\d:|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IWE] "
    rb"|WARNING: All log messages before absl|To enable the following instructions:"
)


@contextmanager
def hidden_log() -> Iterator[None]:
    """Hide TensorFlow's log in the block. Other lines on standard error are printed at the end.

    Does nothing if there is no standard error, or if TF_CPP_MIN_LOG_LEVEL is 0. The value 0 is a
    user's request for the log; JAX sets 1.
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
    # For later logging. The library reads the variable once, when it is loaded.
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
