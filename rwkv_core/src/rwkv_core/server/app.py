"""The application: the endpoints, the middleware, and the loading and closing of the model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.staticfiles import StaticFiles

import rwkv_core
from rwkv_core.server import (
    chat,
    chat_page,
    completions,
    embeddings,
    errors,
    models,
    responses,
    states,
    tokens,
)
from rwkv_core.server.chat_page import FOLDER
from rwkv_core.server.guard import BodyGuard, KeyGuard
from rwkv_core.server.service import Running, Service

_PARTS = (chat_page, models, chat, completions, embeddings, responses, tokens, states)


def create_app(
    service: Service,
    on_ready: Callable[[Running], None] = lambda running: None,
    on_error: Callable[[], None] = lambda: None,
) -> FastAPI:
    """Return the application of a service. The model loads when the application starts.

    `on_ready` is called once the model is loaded; `on_error` if that fails.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start(on_ready, on_error)
        yield
        service.close()

    app = FastAPI(
        title="rwkv-core",
        version=rwkv_core.__version__,
        summary="OpenAI's endpoints for an RWKV model, and its states as resources.",
        lifespan=lifespan,
        responses=errors.RESPONSES,
        # FastAPI's documentation pages load scripts from other sites. /openapi.json is served.
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    for part in _PARTS:
        app.include_router(part.router)
    app.mount("/page", StaticFiles(directory=FOLDER))
    errors.install(app)
    settings = service.settings
    # The middleware added last sees a request first.
    app.add_middleware(BodyGuard, max_bytes=settings.max_body, seconds=settings.body_seconds)
    app.add_middleware(KeyGuard, keys=settings.api_keys)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
        )
    return app
