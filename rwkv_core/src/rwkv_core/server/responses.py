"""`/v1/responses`: answers that are stored with their state, to continue without prefill."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from rwkv_core.server import forms, sse
from rwkv_core.server.access import Served
from rwkv_core.server.answer import Answer
from rwkv_core.server.constrained import chat_constraint
from rwkv_core.server.errors import ApiError, invalid
from rwkv_core.server.responses_body import ResponsesBody
from rwkv_core.server.responses_output import ResponseEvents, output_items
from rwkv_core.server.responses_store import Stored
from rwkv_core.server.running import completions_of, pieces_of, submit_all
from rwkv_core.server.service import Running
from rwkv_core.server.states_store import nbytes_of
from rwkv_core.server.templates.base import Conversation, Message, Prompt
from rwkv_core.server.tool_calls import CallStream, Parts, calls_of, parts_of
from rwkv_core.serving import Completion, Handle
from rwkv_core.state import State

router = APIRouter()

_STATUS = {
    "stop": "completed", "length": "incomplete", "time": "incomplete", "cancelled": "cancelled",
}  # fmt: skip
# OpenAI's API has no time limit, and so no name for it.
_INCOMPLETE = {"length": "max_output_tokens", "time": "max_seconds"}


class _Job:
    """One request: the conversation so far, and the answer to it."""

    def __init__(self, body: ResponsesBody, served: Running) -> None:
        served.check_model(body.model)
        if body.n not in (None, 1):
            raise invalid(f"n: found {body.n}, expected 1 at this endpoint", "n")
        self.body, self.served = body, served
        try:
            self.chat = body.as_chat()
        except ValidationError as error:
            place = ".".join(map(str, error.errors()[0]["loc"]))
            raise invalid(f"{place}: {error.errors()[0]['msg']}", "text") from None
        self.id = f"resp_{secrets.token_hex(16)}"
        self.created = int(time.time())
        self.previous: Stored | None = None
        if body.previous_response_id is not None:
            self.previous = _stored(served, body.previous_response_id, "previous_response_id")
        self.has_tools = bool(self.chat.tools) and self.chat.tool_choice != "none"
        # With a grammar of the request, what begins like a call need not go on like one.
        self.streams_calls = self.has_tools and body.grammar is None
        earlier = self.previous.messages if self.previous else ()
        self.messages = [*earlier, *body.new_messages()]

    async def submit(self) -> Handle:
        """Queue the request. Start from the previous answer's state if its text is a prefix."""
        body, served, settings = self.body, self.served, self.served.settings
        limit = body.max_output_tokens or settings.max_tokens
        if limit > settings.max_tokens:
            raise invalid(
                f"max_output_tokens: found {limit}, expected at most {settings.max_tokens}",
                "max_output_tokens",
            )
        make_constraint = await run_in_threadpool(chat_constraint, served, self.chat)
        constraint = make_constraint()
        self.prompt = self._rendered(self.chat.wants_thought and constraint is None)
        self.start = await self._start()
        text, state = self.prompt.text, self.start
        self.n_before = 0
        if self.previous and text.startswith(self.previous.text):
            text, state = text.removeprefix(self.previous.text), self.previous.state
            self.n_before = self.previous.n_tokens
        submit = partial(
            served.engine.submit,
            text,
            limit,
            stop_strings=[*body.stops, *served.template.stops],
            ignore_eos=bool(body.ignore_eos),
            sampling=body.sampling(),
            processors=body.processors(),
            seed=body.seed_of(0),
            state=state,
            constraint=constraint,
            keep_state=body.store is not False,
            max_seconds=settings.max_seconds,
        )
        return (await submit_all([submit]))[0]

    def _rendered(self, thinks: bool) -> Prompt:
        messages = self.messages
        if self.body.instructions:
            messages = [Message("system", self.body.instructions), *messages]
        tools = [tool.function.model_dump(exclude_none=True) for tool in self.chat.tools or ()]
        conversation = Conversation(messages, tools if self.has_tools else (), thinks)
        return self.served.template.render(conversation)

    async def _start(self) -> State | None:
        if self.body.state is not None:
            return await run_in_threadpool(self.served.states.get, self.body.state)
        return self.previous.start if self.previous else None

    def ended(self, completion: Completion, answer: Answer, output: list[dict[str, Any]]) -> Any:
        """Return the answer as an object; store it if the request has a state."""
        used, n_before = completion.usage, self.n_before
        share = len(answer.thought) / max(1, len(answer.raw))
        n_input, n_output = n_before + used.prompt_tokens, used.completion_tokens
        body = self.described(_STATUS[completion.finish_reason], output)
        if body["status"] == "incomplete":
            body["incomplete_details"] = {"reason": _INCOMPLETE[completion.finish_reason]}
        body["usage"] = {
            "input_tokens": n_input,
            "input_tokens_details": {"cached_tokens": n_before + used.cached_tokens},
            "output_tokens": n_output,
            "output_tokens_details": {"reasoning_tokens": round(share * n_output)},
            "total_tokens": n_input + n_output,
        }
        if completion.state is not None:
            # Arguments that are cut off stay text, for which no call is stored.
            content, calls = calls_of(answer.content) if self.has_tools else (answer.content, [])
            functions = tuple(_call(call) for call in calls)
            messages = [*self.messages, Message("assistant", content, functions)]
            text = self.prompt.text + completion.text
            model = self.served.engine.model
            n_bytes = nbytes_of(model, completion.state) + nbytes_of(model, self.start)
            stored = Stored(
                body, messages, text, n_input + n_output, completion.state, self.start, n_bytes
            )
            self.served.responses.add(self.id, stored)
        return body

    def parts(self, answer: Answer) -> Parts:
        """Return an answer's content, and the function calls in the answer."""
        if not self.has_tools:
            return Parts(answer.content, [])
        return parts_of(answer.raw, answer.content, self.streams_calls)

    def described(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the response object, with the fields that follow from the request."""
        body = self.body
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "model": self.served.model_id,
            "output": output,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "reasoning": {"effort": self.chat.reasoning_effort, "summary": None},
            "store": body.store is not False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": (body.text and body.text.format) or {"type": "text"}},
            "tool_choice": body.tool_choice or "auto",
            "tools": body.tools or [],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": None,
            "metadata": body.metadata or {},
        }

    async def events(self, handle: Handle) -> AsyncIterator[bytes]:
        """Yield the answer as events."""
        answer, events, calls = Answer(self.prompt), ResponseEvents(), CallStream()
        for kind in ("created", "in_progress"):
            yield events.of(f"response.{kind}", response=self.described("in_progress", []))
        async with aclosing(pieces_of(self.served, [handle])) as pieces:
            async for _, found in pieces:
                is_last = isinstance(found, Completion)
                text = "" if isinstance(found, Completion) else found.text
                delta = answer.add(text, end=is_last)
                # With tools, content that is no call is sent at the end.
                if delta.content and not self.has_tools:
                    for one in events.text(delta.content, answer.thought):
                        yield one
                if self.streams_calls:
                    for one in events.calls(calls.add(text), calls.is_open):
                        yield one
                if isinstance(found, Completion):
                    for one in events.end(self.parts(answer), answer.thought):
                        yield one
                    body = self.ended(found, answer, events.output)
                    # OpenAI's API has no event "response.cancelled".
                    kind = "completed" if body["status"] == "completed" else "incomplete"
                    yield events.of(f"response.{kind}", response=body)


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {"name": function["name"], "arguments": json.loads(function["arguments"])}


def _stored(served: Running, response_id: str, param: str | None = None) -> Stored:
    found = served.responses.get(response_id)
    if found is None:
        message = (
            f"Response with id {response_id!r:.80} not found. It may have been dropped to make "
            "room for newer ones."
        )
        raise ApiError(404, message, code="response_not_found", param=param)
    return found


@router.post("/v1/responses", responses=forms.described(forms.Response, sse.MEDIA_TYPE))
async def create_response(body: ResponsesBody, request: Request, served: Served) -> Response:
    """Answer, and store the answer with the state after it."""
    job = _Job(body, served)
    handle = await job.submit()
    if body.stream:
        return sse.response(sse.with_errors(job.events(handle)), served.settings.ping_seconds)
    (completion,) = await completions_of(served, request, [handle])
    answer = Answer(job.prompt)
    answer.add(completion.text, end=True)
    output = output_items(job.parts(answer), answer.thought)
    return JSONResponse(job.ended(completion, answer, output))


@router.get(
    "/v1/responses/{response_id}",
    response_model=None,
    responses=forms.described(forms.Response),
)
async def get_response(response_id: str, served: Served) -> dict[str, Any]:
    """Return a stored answer."""
    return _stored(served, response_id).body


@router.delete("/v1/responses/{response_id}")
async def delete_response(response_id: str, served: Served) -> forms.Deleted:
    """Delete a stored answer."""
    _stored(served, response_id)
    served.responses.remove(response_id)
    return {"id": response_id, "object": "response", "deleted": True}
