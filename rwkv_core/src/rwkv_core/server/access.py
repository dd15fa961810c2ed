"""The dependency through which endpoints get the model and its engine."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from rwkv_core.server.service import Running, Service


def _running(request: Request) -> Running:
    service: Service = request.app.state.service
    return service.running()


Served = Annotated[Running, Depends(_running)]
"""The loaded model. An endpoint that depends on it answers 503 while the model loads."""
