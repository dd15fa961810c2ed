"""`numba` in a process of its own, which keeps its kernels where a test says."""

import os
import subprocess
import sys
import textwrap


def python(code, *, folder, **variables):
    """What a process of its own prints, which keeps its kernels in `folder`."""
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
