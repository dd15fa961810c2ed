"""Imports torch with a setting that makes its idle threads sleep soon.

By default, a waiting thread of torch's OpenMP (GNU's) spins for 3 ms before it sleeps. On a machine
with other work, spinning uses up the thread's share of its core, and prefill and decoding take 5 to
20 times as long. Spinning for a fifteenth of the default costs no speed on an idle machine. With a
hundredth, decoding takes 10 to 20% longer on an idle machine.
"""

from __future__ import annotations

import os
import sys

_SPINS = "20000"


def import_torch() -> None:
    """Import torch with short spins.

    Does nothing if torch is already imported, or the environment sets OMP_WAIT_POLICY or
    GOMP_SPINCOUNT.
    """
    if "torch" in sys.modules or {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        return
    # OpenMP reads the variable once, when torch loads it. Child processes must not inherit it.
    os.environ["GOMP_SPINCOUNT"] = _SPINS
    try:
        import torch  # noqa: F401
    finally:
        del os.environ["GOMP_SPINCOUNT"]
