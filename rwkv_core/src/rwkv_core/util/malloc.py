"""How the C library keeps memory that has been freed."""

from __future__ import annotations

import numpy as np


def keep_freed_memory() -> None:
    """Have memory that arrays of up to 31 MB leave used for the next ones.

    glibc hands blocks above a limit back to the system, and fresh pages cost more than what is done
    with them: half of a prompt's vector work, and four fifths of sampling. The limit rises, up to
    32 MB, to the largest block that it has seen freed. Other systems' libraries take no notice.
    """
    np.empty(31 << 20, np.uint8)
