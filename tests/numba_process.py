"""`numba` in a process of its own, with a folder for its cached kernels."""

import os
import subprocess
import sys
import textwrap


def python(code, *, folder, **variables):
    """Return the output of a new process that caches its kernels in `folder`."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder), **variables},
    ).stdout


LOGITS = """
    import hashlib, os, sys
    import rwkv_core
    model = rwkv_core.load("prose", "numba", dtype="int8")
    tokens = list(range(5))
    logits = model.forward(tokens, all_logits=True)[0], model.forward([7])[0]
    print(*(hashlib.md5(array.tobytes()).hexdigest() for array in logits))
"""
