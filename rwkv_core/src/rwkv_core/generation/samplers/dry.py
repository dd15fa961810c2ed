"""DRY ("don't repeat yourself"): a penalty on tokens that would continue a repetition.

Source of the formula and the defaults: p-e-w, "DRY: A modern repetition penalty that reliably
prevents looping" (2024), pull request 5677 of oobabooga/text-generation-webui.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rwkv_core.errors import OptionError
from rwkv_core.plugins.sampler import Logits

MAX_EXPONENT = 50
"""Limit of the exponent: 1.75 ** 50 exceeds any logit by far."""


class Dry:
    """DRY for one generation, over the tokens generated so far."""

    def __init__(
        self, multiplier: float, base: float, allowed_length: int, breakers: Sequence[str]
    ) -> None:
        if not (math.isfinite(multiplier) and multiplier >= 0):
            raise OptionError(f"dry: multiplier: found {multiplier}, expected a number >= 0")
        if not (math.isfinite(base) and 1 <= base <= 100):
            raise OptionError(f"dry: base: found {base}, expected a number from 1 to 100")
        if allowed_length < 1:
            raise OptionError(f"dry: allowed_length: found {allowed_length}, expected at least 1")
        if not all(text.isdecimal() for text in breakers):
            raise OptionError(f"dry: breakers: found {breakers}, expected token numbers")
        self._multiplier, self._base, self._allowed = multiplier, base, allowed_length
        self._breakers = frozenset(map(int, breakers))
        self._tokens = np.zeros(0, np.int64)
        # For each position: the number of tokens, up to and including it, that repeat at the end.
        self._lengths = np.zeros(0, np.int64)

    def __call__(self, logits: Logits, history: Sequence[int]) -> Logits:
        """Return `logits` [V] with penalties for tokens that would continue a repetition.

        If the last n >= allowed_length tokens have occurred before, the penalty of the token that
        followed them there is multiplier * base ** (n - allowed_length).
        """
        for token in history[len(self._tokens) :]:
            self._read(token)
        longest: dict[int, int] = {}
        for i in np.flatnonzero(self._lengths[:-1] >= self._allowed):
            token = int(self._tokens[i + 1])
            if token not in self._breakers:
                longest[token] = max(int(self._lengths[i]), longest.get(token, 0))
        logits = logits.copy()
        for token, length in longest.items():
            grown = self._base ** min(length - self._allowed, MAX_EXPONENT)
            logits[token] -= self._multiplier * grown
        return logits

    def _read(self, token: int) -> None:
        one_longer = np.concatenate([[0], self._lengths])[: len(self._tokens)] + 1
        same = (self._tokens == token) & (token not in self._breakers)
        self._lengths = np.append(np.where(same, one_longer, 0), 0)
        self._tokens = np.append(self._tokens, token)
