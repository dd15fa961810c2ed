"""`POST /v1/embeddings`: an embedding of each text, scaled to unit norm."""

from __future__ import annotations

import base64
from functools import partial
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray

from rwkv_core.server import forms
from rwkv_core.server.access import Served
from rwkv_core.server.errors import invalid
from rwkv_core.server.fields import Body, texts_or_tokens
from rwkv_core.server.running import check_was_read, completions_of, submit_all

MAX_INPUTS = 2048
router = APIRouter()


class EmbeddingBody(Body):
    """See OpenAI's reference of `embeddings.create`."""

    input: str | list[str] | list[int] | list[list[int]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None

    @property
    def inputs(self) -> list[str | list[int]]:
        return texts_or_tokens(self.input)

    def check(self, n_embd: int) -> None:
        """Raise ApiError for inputs that have no embedding, or for other `dimensions`."""
        inputs = self.inputs
        if not 1 <= len(inputs) <= MAX_INPUTS:
            raise invalid(f"input: found {len(inputs)} texts, expected 1 to {MAX_INPUTS}", "input")
        if not all(inputs):
            raise invalid("input: found an empty text, which has no embedding", "input")
        if self.dimensions not in (None, n_embd):
            raise invalid(
                f"dimensions: found {self.dimensions}, this model has {n_embd}", "dimensions"
            )


@router.post(
    "/v1/embeddings",
    response_model=None,
    responses=forms.described(forms.Embeddings),
)
async def create_embeddings(
    body: EmbeddingBody, request: Request, served: Served
) -> dict[str, Any]:
    """Embed one or more texts."""
    served.check_model(body.model)
    body.check(served.engine.model.n_embd)
    seconds = served.settings.max_seconds
    embed = partial(served.engine.embed, max_seconds=seconds)
    found = []
    # Submit one batch at a time, so that many texts do not fill the queue.
    inputs, n_together = body.inputs, served.settings.max_batch
    for start in range(0, len(inputs), n_together):
        some = inputs[start : start + n_together]
        handles = await submit_all(partial(embed, one) for one in some)
        found += await completions_of(served, request, handles)
        for one in found[start:]:
            check_was_read(one, "input")
    n_tokens = sum(one.usage.prompt_tokens for one in found)
    data = []
    for place, one in enumerate(found):
        assert one.embedding is not None
        embedding = _encoded(_unit(one.embedding), body.encoding_format)
        data.append({"object": "embedding", "index": place, "embedding": embedding})
    counts = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return {"object": "list", "data": data, "model": served.model_id, "usage": counts}


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    norm = float(np.linalg.norm(vector.astype(np.float64)))
    return (vector / max(norm, 1e-12)).astype(np.float32)


def _encoded(vector: NDArray[np.float32], form: str | None) -> str | list[float]:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()
