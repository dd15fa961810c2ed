"""`/v1/states`: named states. A request with `"state": "NAME"` continues from this state."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from rwkv_core.server import forms
from rwkv_core.server.access import Served
from rwkv_core.server.chat_body import ChatMessage
from rwkv_core.server.errors import ApiError, invalid
from rwkv_core.server.fields import Body
from rwkv_core.server.running import check_was_read, completions_of, submit_all
from rwkv_core.server.service import Running
from rwkv_core.server.states_store import NAME_PATTERN, StateInfo
from rwkv_core.server.templates.base import Conversation
from rwkv_core.state import State

router = APIRouter()


class StateBody(Body):
    """The contents of a new state: one of `prompt`, `messages` and `response_id`.

    Attributes:
        prompt: text or tokens that the state reads.
        messages: a conversation that the state reads.
        response_id: the id of an answer of `/v1/responses`. The new state is the one after it.
        state: the name of a stored state, from which `prompt` or `messages` continue.
    """

    name: Annotated[str, Field(json_schema_extra={"pattern": f"^{NAME_PATTERN}$"})]
    prompt: (
        Annotated[str, Field(min_length=1)] | Annotated[list[int], Field(min_length=1)] | None
    ) = None
    messages: list[ChatMessage] | None = None
    response_id: str | None = None
    state: str | None = None


@router.post("/v1/states")
async def save_state(body: StateBody, request: Request, served: Served) -> forms.NamedState:
    """Store a state under a name. Replaces a state of the same name."""
    served.states.check_name(body.name)
    state = await _state(body, request, served)
    info = await run_in_threadpool(served.states.save, body.name, state, int(time.time()))
    return _described(info)


@router.get("/v1/states")
def list_states(served: Served) -> forms.NamedStates:
    """List all stored states."""
    return {"object": "list", "data": [_described(info) for info in served.states.infos()]}


@router.get("/v1/states/{name}")
def get_state(name: str, served: Served) -> forms.NamedState:
    """Describe one state."""
    return _described(served.states.info(name))


@router.delete("/v1/states/{name}")
def delete_state(name: str, served: Served) -> forms.Deleted:
    """Delete one state."""
    served.states.delete(name)
    return {"id": name, "object": "state.deleted", "deleted": True}


async def _state(body: StateBody, request: Request, served: Running) -> State:
    given = [one for one in (body.prompt, body.messages, body.response_id) if one is not None]
    if len(given) != 1:
        raise invalid("expected exactly one of prompt, messages and response_id", "prompt")
    if body.response_id is not None:
        stored = served.responses.get(body.response_id)
        if stored is None:
            message = f"Response with id {body.response_id!r:.80} not found."
            raise ApiError(404, message, param="response_id")
        return stored.state
    prompt: str | list[int] = body.prompt or ""
    if body.messages is not None:
        if not body.messages:
            raise invalid("messages: found an empty list, expected messages", "messages")
        messages = [message.as_message() for message in body.messages]
        prompt = served.template.render(Conversation(messages)).text
    start = None if body.state is None else await run_in_threadpool(served.states.get, body.state)
    seconds = served.settings.max_seconds

    def submit() -> Any:
        return served.engine.submit(prompt, 0, state=start, keep_state=True, max_seconds=seconds)

    (found,) = await completions_of(served, request, await submit_all([submit]))
    check_was_read(found, "prompt" if body.messages is None else "messages")
    assert found.state is not None
    return found.state


def _described(info: StateInfo) -> forms.NamedState:
    return {
        "id": info.name,
        "object": "state",
        "created": info.created,
        "bytes": info.nbytes,
        "tuned": info.is_tuned,
    }
