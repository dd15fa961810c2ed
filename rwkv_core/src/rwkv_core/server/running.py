"""From a request to the engine and back: submit, follow, and cancel when the client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from rwkv_core.server.service import Running
from rwkv_core.serving import Completion, Handle, Piece

Submit = Callable[[], Handle]


async def submit_all(submits: Iterable[Submit]) -> list[Handle]:
    """Call each in a thread: a long prompt takes a while to encode. All or none are queued."""
    handles: list[Handle] = []
    try:
        for submit in submits:
            handles.append(await run_in_threadpool(submit))
    except BaseException:
        cancel(handles)
        raise
    return handles


def cancel(handles: Iterable[Handle]) -> None:
    """End those that run."""
    for handle in handles:
        if not handle.done:
            handle.cancel()


@asynccontextmanager
async def cancelled_without_client(
    request: Request, handles: Sequence[Handle]
) -> AsyncIterator[None]:
    """Cancel `handles` when the client goes away, and at the end."""

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
    """Wait for all. Raises the error of the first that has one."""
    async with cancelled_without_client(request, handles):
        found = [await handle for handle in handles]
    for completion in found:
        served.metrics.note(completion)
    return found


async def pieces_of(
    served: Running, handles: Sequence[Handle]
) -> AsyncGenerator[tuple[int, Piece | Completion], None]:
    """The pieces of all as they come, each with its handle's number, and each one's completion.

    Cancels what still runs when it is closed. Raises the first error.
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
