"""The state of RWKV-5 to 7: two rows for the token shifts, then the matrices of the heads."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_core.architectures.base import Config, N

# Rows of one layer's part of the state [B, L, 2 + N, D]: the last input of channel mixing, that of
# time mixing, then N rows of the matrices S, in each of which the heads lie side by side.
CHANNEL_X, TIME_X, FIRST_OF_S = range(3)


def empty_state(config: Config) -> NDArray[Any]:
    """Return the initial state, float64 [L, 2 + N, D]."""
    return np.zeros((config.n_layer, FIRST_OF_S + config.more[N], config.n_embd))
