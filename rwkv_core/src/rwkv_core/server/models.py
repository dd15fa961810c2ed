"""`/health`, `/metrics` and `/v1/models`: the state of the server, and its model."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from rwkv_core.server import forms
from rwkv_core.server.access import Served
from rwkv_core.server.service import Running

router = APIRouter()


@router.get("/health")
async def health(served: Served) -> dict[str, str]:
    """Return 200 once requests can be served, and 503 while the model loads."""
    return {"status": "ok"}


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(served: Served) -> Response:
    """Return metrics for Prometheus."""
    return Response(served.metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/models")
async def list_models(served: Served) -> forms.Models:
    """List the server's only model."""
    return {"object": "list", "data": [_described(served)]}


@router.get("/v1/models/{model_id}")
async def get_model(model_id: str, served: Served) -> forms.Model:
    """Return the model of this name; 404 for any other name."""
    served.check_model(model_id)
    return _described(served)


def _described(served: Running) -> forms.Model:
    model = served.engine.model
    return {
        "id": served.model_id,
        "object": "model",
        "created": served.created,
        "owned_by": "rwkv-core",
        "max_model_len": served.settings.max_prompt,
        "architecture": model.architecture,
        "chat_template": served.template.name.rpartition("/")[2],
    }
