"""Errors in OpenAI's form: {"error": {"message", "type", "code", "param"}}."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match

from rwkv_core.errors import (
    EngineClosedError,
    OptionError,
    PromptTooLongError,
    QueueFullError,
    RWKVError,
    StateError,
    TokenizerError,
)
from rwkv_core.util.printable import printable

INVALID = "invalid_request_error"
RETRY_SECONDS = 2
_LOG = logging.getLogger("rwkv_core.server")
_TYPES = {429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class ErrorDetails(BaseModel):
    """The message, and the parameter at fault."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every error answer."""

    error: ErrorDetails


RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The request is wrong", "model": ErrorBody},
    "5XX": {"description": "The server failed or is not ready", "model": ErrorBody},
}
"""The error answers in the endpoints' OpenAPI description."""


class ApiError(Exception):
    """An error that is sent as an answer.

    Attributes:
        status: the HTTP status.
        body: the error object.
        headers: the answer's HTTP headers.
    """

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {
            "error": {
                "message": message,
                "type": _TYPES.get(status, INVALID),
                "param": param,
                "code": code,
            }
        }
        self.headers = {"Retry-After": str(RETRY_SECONDS)} if status in (429, 503) else {}
        if status == 401:
            self.headers["WWW-Authenticate"] = "Bearer"

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error for a wrong request, with status 400."""
    return ApiError(400, message, param=param, code=code)


def as_api_error(error: BaseException) -> ApiError:
    """Return the error answer for an exception."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, PromptTooLongError):
        return invalid(str(error), "prompt", "context_length_exceeded")
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), code="rate_limit_exceeded")
    if isinstance(error, EngineClosedError):
        return ApiError(503, "The server is shutting down.", code="shutting_down")
    if isinstance(error, OptionError | TokenizerError | StateError):
        name = str(error).partition(":")[0]
        return invalid(str(error), name if name.isidentifier() else None)
    if isinstance(error, RWKVError):
        return ApiError(500, str(error))
    _LOG.error("a request failed", exc_info=error)
    return ApiError(500, f"The server failed: {type(error).__name__}.")


async def _answer(_: Request, error: Exception) -> JSONResponse:
    return as_api_error(error).response()


async def _answer_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    message = {404: "Unknown request URL.", 405: "This URL does not support this method."}
    found = ApiError(error.status_code, message.get(error.status_code, str(error.detail)))
    found.headers |= dict(error.headers or {})
    if error.status_code == 405:
        found.headers["Allow"] = ", ".join(_methods(request))
    return found.response()


def _methods(request: Request) -> list[str]:
    """Return the methods of a URL. Starlette's error names only those of one endpoint."""
    scopes = {name: {**request.scope, "method": name} for name in ("GET", "POST", "DELETE")}
    routes = request.app.routes
    return [
        name
        for name, scope in scopes.items()
        if any(route.matches(scope)[0] is Match.FULL for route in routes)
    ]


async def _answer_invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return _first_mistake(error.errors()).response()


def _first_mistake(mistakes: Any) -> ApiError:
    """Return the error for the first mistake in a body, with the name of its field."""
    first = mistakes[0]
    if first["type"] in ("json_invalid", "json_type"):
        return invalid("The body is not valid JSON.", code="invalid_json")
    # Name only the first part: the others are list indices or names of a union's types.
    place = [part for part in first["loc"] if part != "body"]
    param = printable(str(place[0]), 80) if place else None
    if not place:
        return invalid("The body must be a JSON object; is its Content-Type application/json?")
    words = printable(first["msg"], 200)
    code = "missing_required_parameter" if first["type"] == "missing" else None
    return invalid(f"Invalid value for {param!r}: {words}.", param, code)


def install(app: FastAPI) -> None:
    """Make `app` answer every error in OpenAI's form."""
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)
    for kind in (ApiError, RWKVError, Exception):
        app.add_exception_handler(kind, _answer)
