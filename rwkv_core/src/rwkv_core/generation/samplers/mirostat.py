"""Mirostat 2.0: keeps the surprise of a text near a target by excluding surprising tokens.

Source: S. Basu, G. S. Ramachandran, N. S. Keskar, L. R. Varshney, "Mirostat: A Neural Text Decoding
Algorithm that Directly Controls Perplexity", ICLR 2021 (arXiv 2007.14966), and the authors' version
2, which truncates by the surprise and needs no estimate of Zipf's exponent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rwkv_core.errors import OptionError
from rwkv_core.plugins.sampler import Logits


class Mirostat:
    """Mirostat for one generation: tokens with a surprise above `limit`, in bits, are excluded.

    A token's surprise is -log2 of its probability before tokens are excluded.
    """

    def __init__(self, tau: float, eta: float) -> None:
        if not (math.isfinite(tau) and tau > 0):
            raise OptionError(f"mirostat: tau: found {tau}, expected a number > 0")
        if not 0 <= eta <= 1:
            raise OptionError(f"mirostat: eta: found {eta}, expected a number from 0 to 1")
        self._tau, self._eta = tau, eta
        self.limit = 2 * tau
        self._surprise: Logits | None = None
        self._n_tokens = 0

    def __call__(self, logits: Logits, history: Sequence[int]) -> Logits:
        """Return `logits` [V] with -inf for tokens whose surprise is above the limit."""
        if self._surprise is not None and len(history) > self._n_tokens:
            # The token that was drawn after the last call.
            self.limit -= self._eta * (float(self._surprise[history[-1]]) - self._tau)
        shifted = logits - logits.max()
        self._surprise = (math.log(float(np.exp(shifted).sum())) - shifted) / math.log(2)
        self._n_tokens = len(history)
        # The likeliest token always stays.
        limit = max(self.limit, float(self._surprise.min()))
        return np.where(self._surprise <= limit, logits, -np.inf)
