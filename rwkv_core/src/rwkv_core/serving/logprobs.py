"""Logprobs: natural logarithms of token probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_core.serving.results import TokenLogprob


def token_logprob(logits: NDArray[Any], token: int, data: bytes, n_top: int) -> TokenLogprob:
    """Return the logprob of `token`, computed from `logits` [V], with the `n_top` likeliest tokens.

    `data` is the token's bytes.
    """
    top = float(logits.max())
    total = top + float(np.log(np.exp(logits - top, dtype=np.float64).sum()))
    n_top = min(n_top, len(logits))
    likeliest = np.argpartition(-logits, n_top - 1)[:n_top] if n_top else np.zeros(0, np.intp)
    order = np.lexsort((likeliest, -logits[likeliest]))
    pairs = tuple((int(t), float(logits[t]) - total) for t in likeliest[order])
    return TokenLogprob(token, data, float(logits[token]) - total, pairs)
