"""How the C library keeps memory that has been freed."""

from __future__ import annotations

import numpy as np


def keep_freed_memory() -> None:
    """Make glibc reuse freed blocks of up to 32 MB instead of returning them to the system.

    Fresh pages cost half of a prompt's vector work, and four fifths of sampling. glibc returns
    blocks above a limit, which rises, up to 32 MB, to the largest block freed so far. Does nothing
    with other C libraries.
    """
    np.empty(31 << 20, np.uint8)
