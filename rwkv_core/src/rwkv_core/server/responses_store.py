"""Stores answers of `/v1/responses` with their states, bounded in bytes."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rwkv_core.server.templates.base import Message
from rwkv_core.state import State


@dataclass(frozen=True, eq=False)
class Stored:
    """One answer.

    Attributes:
        body: the response object that was sent.
        messages: the conversation with the answer, without instructions.
        text, n_tokens: text and number of tokens that `state` has read since `start`.
        state: the state after the answer.
        start: the state before the conversation; None for the empty state.
        state_nbytes: size of `state` and `start` in bytes.
    """

    body: dict[str, Any]
    messages: Sequence[Message]
    text: str
    n_tokens: int
    state: State
    start: State | None
    state_nbytes: int

    @cached_property
    def nbytes(self) -> int:
        """Size in bytes. Data that answers share, such as messages, counts for each answer."""
        texts = (self.text, str(self.messages), str(self.body))
        return self.state_nbytes + sum(map(sys.getsizeof, texts))


class ResponsesStore:
    """Answers by id. The least recently used answer is dropped first. Not thread-safe."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._nbytes = max_bytes, 0
        self._stored: OrderedDict[str, Stored] = OrderedDict()

    def get(self, response_id: str) -> Stored | None:
        """Return an answer, which counts as used; None if it is not stored."""
        found = self._stored.get(response_id)
        if found is not None:
            self._stored.move_to_end(response_id)
        return found

    def add(self, response_id: str, stored: Stored) -> None:
        """Store an answer. If all answers exceed the bound in bytes, drop older ones.

        An answer that alone exceeds the bound is not stored.
        """
        if stored.nbytes > self._max_bytes:
            return
        self._stored[response_id] = stored
        self._nbytes += stored.nbytes
        while self._nbytes > self._max_bytes:
            self._nbytes -= self._stored.popitem(last=False)[1].nbytes

    def remove(self, response_id: str) -> bool:
        """Delete an answer. Returns whether it was stored."""
        found = self._stored.pop(response_id, None)
        self._nbytes -= 0 if found is None else found.nbytes
        return found is not None
