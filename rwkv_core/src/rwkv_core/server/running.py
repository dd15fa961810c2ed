"""Submits requests to the engine, follows them, and cancels them if the client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from rwkv_core.errors import EngineClosedError
from rwkv_core.server.errors import invalid
from rwkv_core.server.service import Running
from rwkv_core.serving import Completion, Handle, Piece

Submit = Callable[[], Handle]


async def submit_all(submits: Iterable[Submit]) -> list[Handle]:
    """Call each of `submits` in a thread, since a long prompt takes a while to encode.

    If a call raises an error, the requests of earlier calls are cancelled, and the error is raised.
    """
    handles: list[Handle] = []
    try:
        for submit in submits:
            handles.append(await run_in_threadpool(submit))
    except BaseException:
        cancel(handles)
        raise
    return handles


def cancel(handles: Iterable[Handle]) -> None:
    """Cancel the requests that have not ended."""
    for handle in handles:
        if not handle.done:
            handle.cancel()


@asynccontextmanager
async def cancelled_without_client(
    request: Request, handles: Sequence[Handle]
) -> AsyncIterator[None]:
    """Cancel `handles` when the client disconnects, and on leaving the context."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        cancel(handles)

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
        cancel(handles)


async def completions_of(
    served: Running, request: Request, handles: Sequence[Handle]
) -> list[Completion]:
    """Wait for all completions. Raises the error of the first handle that has an error."""
    async with cancelled_without_client(request, handles):
        found = [await handle for handle in handles]
    for completion in found:
        served.metrics.note(completion)
    return found


def check_was_read(completion: Completion, param: str) -> None:
    """Raise an error for a request that ended before its prompt was read.

    `param` is the field that holds the prompt.
    """
    if completion.finish_reason == "time":
        raise invalid(f"{param}: it took too long to read", param)
    if completion.finish_reason == "cancelled":
        # The client still waits, so the request was cancelled by `Engine.close`.
        raise EngineClosedError("the engine was closed before the prompt was read")


async def pieces_of(
    served: Running, handles: Sequence[Handle]
) -> AsyncGenerator[tuple[int, Piece | Completion], None]:
    """Yield (number of the handle, piece) as pieces come, and each handle's completion at its end.

    Raises the first error. Cancels the remaining requests when the generator is closed.
    """
    queue: asyncio.Queue[tuple[int, Piece | Completion | Exception]] = asyncio.Queue()

    async def follow(number: int, handle: Handle) -> None:
        try:
            async for piece in handle:
                queue.put_nowait((number, piece))
            queue.put_nowait((number, await handle))
        except Exception as error:
            queue.put_nowait((number, error))

    following = [asyncio.create_task(follow(*pair)) for pair in enumerate(handles)]
    left = len(handles)
    try:
        while left:
            number, found = await queue.get()
            if isinstance(found, Exception):
                raise found
            if isinstance(found, Completion):
                served.metrics.note(found)
                left -= 1
            yield number, found
    finally:
        for task in following:
            task.cancel()
        cancel(handles)
