"""Middleware for all endpoints: checks API keys, and bounds the size and time of a body."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rwkv_core.server.errors import ApiError

# Paths that need no key: the health check, and the chat page, which asks for the key.
OPEN_PATHS = ("/health", "/")
OPEN_FOLDER = "/page/"
# Up to so many bytes beyond the limit are read and discarded: a client that is still sending when
# the connection closes does not see the answer.
_MAX_DISCARDED = 2**26


class KeyGuard:
    """Refuses requests without a valid API key. If `keys` is empty, no request is refused."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app, self._keys = app, [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._keys and not self._may_pass(scope):
            given = Headers(scope=scope).get("authorization")
            message = (
                "You did not provide an API key. Send the header Authorization: Bearer KEY."
                if given is None
                else "Incorrect API key provided."
            )
            error = ApiError(401, message, code="invalid_api_key")
            return await error.response()(scope, receive, send)
        await self._app(scope, receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        if scope["path"] in OPEN_PATHS or scope["path"].startswith(OPEN_FOLDER):
            return True
        # A browser's preflight request (CORS) has no key.
        if scope["method"] == "OPTIONS":
            return True
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        found = given.strip().encode("latin-1", "replace")
        # Compare with every key, so that the time does not reveal which one is close.
        same = [hmac.compare_digest(found, key) for key in self._keys]
        return any(same) and scheme.lower() == "bearer"


class BodyGuard:
    """Refuses bodies that are larger than `max_bytes`, or need more than `seconds` to arrive."""

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float) -> None:
        self._app, self._max_bytes, self._seconds = app, max_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        length = Headers(scope=scope).get("content-length", "0")
        try:
            if length.isdecimal() and int(length[:20]) > self._max_bytes + _MAX_DISCARDED:
                raise self._too_large()
            body = await self._read(receive)
        except ApiError as error:
            error.headers["Connection"] = "close"  # the rest of the body is not read
            return await error.response()(scope, receive, send)
        if body is None:
            return
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """Return the whole body; None if the client disconnected.

        Raises ApiError for a body that is too large or too slow.
        """
        body, n_bytes = bytearray(), 0
        try:
            async with asyncio.timeout(self._seconds):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return None
                    n_bytes += len(message.get("body", b""))
                    if n_bytes <= self._max_bytes:
                        body += message.get("body", b"")
                    elif n_bytes > self._max_bytes + _MAX_DISCARDED:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise ApiError(
                408, f"The body took more than {self._seconds:g} seconds to arrive.", code="timeout"
            ) from None
        if n_bytes > self._max_bytes:
            raise self._too_large()
        return bytes(body)

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"The body is larger than {self._max_bytes} bytes.", code="request_too_large"
        )
