"""What may restrict the next token, such as a grammar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Constraint(Protocol):
    """Restricts the tokens of one request. Each request needs an object of its own.

    The engine calls it in its own thread. What it raises ends that request alone.
    """

    def mask(self) -> NDArray[np.bool] | None:
        """Which tokens may come next: [V] or fewer, tokens beyond its end being forbidden.

        None allows all. A mask that allows none ends the text with finish reason "stop". To end
        where the model chooses to, allow the tokenizer's `end_of_text` there.
        """

    def accept(self, token: int) -> None:
        """`token` has come next, one that was drawn or one that `forced` returned."""

    def forced(self) -> Sequence[int]:
        """The tokens that must come next, in order; empty where there is a choice.

        They belong to the text. Several are read at once, as a prompt is.
        """


def restricted(logits: NDArray[Any], mask: NDArray[np.bool]) -> NDArray[Any]:
    """Return `logits` [V] with -inf where `mask` forbids."""
    allowed = np.zeros(len(logits), np.bool)
    allowed[: len(mask)] = mask
    return np.where(allowed, logits, -np.inf)
