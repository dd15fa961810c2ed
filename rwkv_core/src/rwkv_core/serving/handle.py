"""A request's handle: yields its pieces and its completion, in threads and in asyncio."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any

from rwkv_core.serving.results import Completion, Piece


class Handle:
    """A submitted request. `for` and `async for` yield its pieces, each piece once.

    `await handle` and `handle.result` wait for the completion. If an error ended the request, both
    loops, `await` and `result` raise this error.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._changed = threading.Condition()
        self._pieces: deque[Piece] = deque()
        self._completion: Completion | None = None
        self._error: BaseException | None = None
        self._is_cancelled = False
        self._listeners: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    @property
    def done(self) -> bool:
        """Whether the request has ended; some pieces may not have been taken yet."""
        return self._completion is not None or self._error is not None

    @property
    def result(self) -> Completion:
        """Wait for the completion, and return it. Raises the error that ended the request."""
        self.wait()
        return self._ended()

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._is_cancelled

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end, at most `timeout` seconds. Returns whether the request has ended."""
        with self._changed:
            return self._changed.wait_for(lambda: self.done, timeout)

    def cancel(self) -> None:
        """End the request within one step, with the text so far as its result. Does not wait."""
        self._is_cancelled = True
        self._wake()

    def __iter__(self) -> Handle:
        return self

    def __next__(self) -> Piece:
        with self._changed:
            self._changed.wait_for(lambda: self._pieces or self.done)
            if self._pieces:
                return self._pieces.popleft()
        self._ended()
        raise StopIteration

    def __aiter__(self) -> Handle:
        return self

    async def __anext__(self) -> Piece:
        while True:
            with self._changed:
                if self._pieces:
                    return self._pieces.popleft()
                if self.done:
                    break
                future = self._listen()
            await future
        self._ended()
        raise StopAsyncIteration

    def __await__(self) -> Generator[Any, None, Completion]:
        return self._wait_async().__await__()

    async def _wait_async(self) -> Completion:
        while True:
            with self._changed:
                if self.done:
                    break
                future = self._listen()
            await future
        return self._ended()

    def _ended(self) -> Completion:
        if self._error is not None:
            raise self._error
        assert self._completion is not None
        return self._completion

    def _listen(self) -> asyncio.Future[None]:
        """Return a future that the next `put` sets. The caller must hold the lock."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._listeners.append((loop, future))
        return future

    def put(
        self,
        piece: Piece | None = None,
        completion: Completion | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Add a piece, or end the request, and wake all waiters. Only the engine calls this."""
        with self._changed:
            if piece is not None:
                self._pieces.append(piece)
            self._completion, self._error = completion, error
            self._changed.notify_all()
            listeners, self._listeners = self._listeners, []
        for loop, future in listeners:
            with suppress(RuntimeError):  # a closed loop has no waiters
                loop.call_soon_threadsafe(_set, future)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
