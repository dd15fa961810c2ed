"""The protocol of objects that restrict the next token, for example to a grammar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Constraint(Protocol):
    """Restricts the tokens of one request. Each request needs its own object.

    The engine calls its methods in the engine's threads. An exception ends only that request.
    """

    def mask(self) -> NDArray[np.bool] | None:
        """Return which tokens may come next: bool [n], n <= V; tokens from n on are forbidden.

        None allows all tokens. A mask that allows no token ends the text with finish reason "stop".
        To let the model decide where to end, allow the tokenizer's `end_of_text`.
        """

    def accept(self, token: int) -> None:
        """Advance by `token`, which was drawn or was returned by `forced`."""

    def forced(self) -> Sequence[int]:
        """Return the tokens that must come next, in order; empty where there is a choice.

        These tokens become part of the text. Several of them are prefilled together, like a prompt.
        """


def restricted(logits: NDArray[Any], mask: NDArray[np.bool]) -> NDArray[Any]:
    """Return `logits` [V] with -inf where `mask` forbids."""
    allowed = np.zeros(len(logits), np.bool)
    allowed[: len(mask)] = mask
    return np.where(allowed, logits, -np.inf)
