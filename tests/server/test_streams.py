"""Streams of events: comments in silences, errors after the status is sent."""

import asyncio
from collections.abc import AsyncIterator

import httpx
from fastapi import FastAPI
from fastapi.responses import Response

from rwkv_core.errors import OptionError
from rwkv_core.server import sse


async def body_of(events: AsyncIterator[bytes], ping_seconds: float = 60) -> str:
    app = FastAPI()

    @app.get("/")
    def stream() -> Response:
        return sse.response(sse.with_errors(events), ping_seconds)

    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return (await client.get("/")).text


def test_a_long_silence_has_comments() -> None:
    async def slow() -> AsyncIterator[bytes]:
        await asyncio.sleep(0.25)
        yield sse.event({"a": 1})

    text = asyncio.run(body_of(slow(), 0.1))
    assert text == ': ping\n\n: ping\n\ndata: {"a": 1}\n\ndata: [DONE]\n\n'


def test_an_error_in_a_stream_is_an_event() -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield sse.event({"a": "\n\u2028ä"})
        raise OptionError("sampler: found nothing")

    events = asyncio.run(body_of(failing())).split("\n\n")
    assert events[0] == 'data: {"a": "\\n\u2028ä"}'
    assert '"error": {"message": "sampler: found nothing"' in events[1]
    assert events[2] == "data: [DONE]"


def test_a_stream_that_is_left_is_closed() -> None:
    closed = []

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield sse.event({"a": 1})
        finally:
            closed.append(True)

    async def leave() -> None:
        body = sse.response(endless(), 1).body_iterator
        await anext(body)
        await body.aclose()

    asyncio.run(leave())
    assert closed
