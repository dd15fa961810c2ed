"""Settings of the C library's malloc."""

from __future__ import annotations

import numpy as np


def keep_freed_memory() -> None:
    """Make glibc reuse freed blocks of up to 32 MB instead of returning them to the system.

    Page faults for fresh memory cost half of a prompt's vector work, and four fifths of sampling.
    glibc returns blocks above a limit, which grows to the largest block freed so far, up to 32 MB.
    Does nothing with other C libraries.
    """
    np.empty(31 << 20, np.uint8)
