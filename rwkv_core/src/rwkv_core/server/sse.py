"""Server-sent events: data as JSON, comments that keep a silent stream open, errors as events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event

from rwkv_core.server.errors import as_api_error

DONE = format_sse_event(data_str="[DONE]")
MEDIA_TYPE = "text/event-stream"
# Tell proxies to forward each event at once.
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def event(data: Mapping[str, Any], name: str | None = None) -> bytes:
    """Return one event with `data` as JSON."""
    return format_sse_event(data_str=json.dumps(data, ensure_ascii=False), event=name)


def response(events: AsyncIterator[bytes], ping_seconds: float) -> EventSourceResponse:
    """Return an answer that streams `events`, with a comment after `ping_seconds` of silence."""
    return EventSourceResponse(_kept_open(events, ping_seconds), headers=_HEADERS)


async def with_errors(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield `events`, then "[DONE]". If `events` raise an error, yield it as an event before.

    The HTTP status has already been sent when an error occurs.
    """
    try:
        async for one in events:
            yield one
    except Exception as error:
        yield event(as_api_error(error).body)
    yield DONE


async def _kept_open(events: AsyncIterator[bytes], ping_seconds: float) -> AsyncIterator[bytes]:
    """Yield `events`, and a comment after each `ping_seconds` without an event."""
    following: asyncio.Future[bytes] | None = None
    try:
        while True:
            following = following or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait([following], timeout=ping_seconds)
            if not done:
                yield KEEPALIVE_COMMENT
                continue
            try:
                one = following.result()
            except StopAsyncIteration:
                return
            following = None
            yield one
    finally:
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        if hasattr(events, "aclose"):
            await events.aclose()
