"""Imports torch so that its threads sleep soon when they have nothing to do.

torch's OpenMP (GNU's) lets a thread that waits for others look for them for 3 ms before it sleeps.
On a machine with other work to do, that uses up the thread's share of its core, and prompts and
tokens take 5 to 20 times as long. A fifteenth of that costs no speed where nothing else runs; with
a hundredth, tokens take 10 to 20% longer there.
"""

from __future__ import annotations

import os
import sys

_SPINS = "20000"


def import_torch() -> None:
    """Import torch with short waits, unless the environment says how long, or it is imported."""
    if "torch" in sys.modules or {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        return
    # OpenMP reads this once, when torch loads it; processes started later decide for themselves.
    os.environ["GOMP_SPINCOUNT"] = _SPINS
    try:
        import torch  # noqa: F401
    finally:
        del os.environ["GOMP_SPINCOUNT"]
