"""How endpoints reach what runs behind them."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from rwkv_core.server.service import Running, Service


def _running(request: Request) -> Running:
    service: Service = request.app.state.service
    return service.running()


Served = Annotated[Running, Depends(_running)]
"""What is served. While the model is being loaded, an endpoint with it answers 503."""
