"""Answers of `/v1/responses` that can be gone on from: their states, bounded in bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rwkv_core.server.templates.base import Message
from rwkv_core.state import State


@dataclass(frozen=True, eq=False)
class Stored:
    """One answer.

    Attributes:
        body: as it was sent.
        messages: the conversation up to it, with it.
        text: all text that `state` has read.
        root: the name of the stored state that the conversation began from.
        nbytes: what it takes.
    """

    body: dict[str, Any]
    messages: Sequence[Message]
    text: str
    state: State
    nbytes: int


class ResponsesStore:
    """Answers by id; the one used least recently goes first. Used in one thread."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._nbytes = max_bytes, 0
        self._stored: OrderedDict[str, Stored] = OrderedDict()

    def __contains__(self, response_id: str) -> bool:
        return response_id in self._stored

    def get(self, response_id: str) -> Stored | None:
        found = self._stored.get(response_id)
        if found is not None:
            self._stored.move_to_end(response_id)
        return found

    def add(self, response_id: str, stored: Stored) -> None:
        self._stored[response_id] = stored
        self._nbytes += stored.nbytes
        while self._nbytes > self._max_bytes and self._stored:
            self._nbytes -= self._stored.popitem(last=False)[1].nbytes

    def remove(self, response_id: str) -> bool:
        """Whether it was there."""
        found = self._stored.pop(response_id, None)
        self._nbytes -= 0 if found is None else found.nbytes
        return found is not None
