"""`POST /v1/chat/completions`: conversations."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from rwkv_core.server import forms, sse
from rwkv_core.server.access import Served
from rwkv_core.server.answer import Answer
from rwkv_core.server.chat_body import ChatBody
from rwkv_core.server.constrained import chat_constraint
from rwkv_core.server.errors import invalid
from rwkv_core.server.logprobs import chat_logprobs
from rwkv_core.server.prompting import system_text, tokens_within
from rwkv_core.server.running import completions_of, pieces_of, submit_all
from rwkv_core.server.service import Running
from rwkv_core.server.templates.base import Conversation, Delta
from rwkv_core.server.tool_calls import CallStream, Parts, parts_of
from rwkv_core.server.usage import finish_reason, usage
from rwkv_core.serving import Completion, Handle

router = APIRouter()


class _Job:
    """One request: the prompt and the choices."""

    def __init__(self, body: ChatBody, served: Running) -> None:
        body.check()
        served.check_model(body.model)
        self.body, self.served = body, served
        self.n = body.n or 1
        # Answers are searched for calls only if there are tools.
        self.has_tools = bool(body.tools) and body.tool_choice != "none"
        # With a grammar of the request, what begins like a call need not go on like one.
        self.streams_calls = self.has_tools and body.grammar is None
        self.id = f"chatcmpl-{secrets.token_hex(14)}"
        self.created = int(time.time())

    def head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.served.model_id,
            "system_fingerprint": f"fp_{self.served.engine.model.fingerprint}",
        }

    async def submit(self) -> list[Handle]:
        """Render the prompt, and queue one request of the engine for each choice."""
        body, served, settings = self.body, self.served, self.served.settings
        limit = body.max_completion_tokens or body.max_tokens or settings.max_tokens
        if limit > settings.max_tokens:
            name = "max_completion_tokens" if body.max_completion_tokens else "max_tokens"
            raise invalid(f"{name}: found {limit}, expected at most {settings.max_tokens}", name)
        make_constraint = await run_in_threadpool(chat_constraint, served, body)
        # A constraint applies from the first character, so it leaves no room for a thought.
        thinks = body.wants_thought and make_constraint() is None
        tools = [tool.function.model_dump(exclude_none=True) for tool in body.tools or ()]
        messages = [message.as_message() for message in body.messages]
        conversation = Conversation(messages, tools if self.has_tools else (), thinks)
        self.prompt = served.template.render(conversation)
        tokens, marks = await run_in_threadpool(self._tokens, conversation)
        start = None
        if body.state is not None:
            start = await run_in_threadpool(served.states.get, body.state)
        options: dict[str, Any] = {
            "stop_strings": [*body.stops, *served.template.stops],
            "ignore_eos": bool(body.ignore_eos),
            "sampling": body.sampling(),
            "processors": body.processors(),
            "state": start,
            "top_logprobs": body.n_top,
            "max_seconds": settings.max_seconds,
        }
        return await submit_all(
            partial(
                served.engine.submit,
                tokens,
                limit,
                marks=marks,
                seed=body.seed_of(number),
                constraint=make_constraint(),
                **options,
            )
            for number in range(self.n)
        )

    def _tokens(self, conversation: Conversation) -> tuple[list[int], list[int]]:
        """Return the prompt's tokens, and the number of them in the system prompt."""
        tokenizer = self.served.engine.tokenizer
        tokens = tokenizer.encode(self.prompt.text)
        common = system_text(self.served.template, conversation)
        return tokens, [tokens_within(tokenizer, tokens, common)] if common else []

    def whole(self, completions: Sequence[Completion]) -> dict[str, Any]:
        """Return the complete answer as one object."""
        choices, n_thought = [], 0
        for number, completion in enumerate(completions):
            answer = Answer(self.prompt)
            delta = answer.add(completion.text, completion.logprobs, end=True)
            # Estimate: the thought has the same share of the tokens as of the characters.
            share = len(answer.thought) / max(1, len(answer.raw))
            n_thought += round(share * completion.usage.completion_tokens)
            choices.append(self._whole_choice(number, completion, answer, delta))
        counts = usage(completions, self.n, n_thought)
        return self.head("chat.completion") | {"choices": choices, "usage": counts}

    def _whole_choice(
        self, number: int, completion: Completion, answer: Answer, delta: Delta
    ) -> dict[str, Any]:
        content, calls, is_cut = self._parts(answer)
        message: dict[str, Any] = {
            "role": "assistant", "content": (content or None) if calls else content,
            "refusal": None, "annotations": [],
        }  # fmt: skip
        if self.served.template.has_thoughts:
            message["reasoning_content"] = answer.thought or None
        if calls:
            message["tool_calls"] = calls
        return {
            "index": number,
            "message": message,
            "logprobs": self._logprobs(delta),
            "finish_reason": "tool_calls" if calls and not is_cut else finish_reason(completion),
        }

    def _parts(self, answer: Answer) -> Parts:
        if not self.has_tools:
            return Parts(answer.content, [])
        return parts_of(answer.raw, answer.content, self.streams_calls)

    def _logprobs(self, delta: Delta) -> dict[str, Any] | None:
        if self.body.n_top is None:
            return None
        return chat_logprobs(self.served.engine.tokenizer, delta.logprobs)

    async def events(self, handles: Sequence[Handle]) -> AsyncIterator[bytes]:
        """Yield the answer as events, each a chunk."""
        answers = [Answer(self.prompt) for _ in handles]
        calls = [CallStream() for _ in handles]
        ended: dict[int, Completion] = {}
        for number in range(len(handles)):
            yield self._chunk(number, {"role": "assistant", "content": "", "refusal": None})
        async with aclosing(pieces_of(self.served, handles)) as pieces:
            async for number, found in pieces:
                answer = answers[number]
                if isinstance(found, Completion):
                    ended[number] = found
                    for chunk in self._last_chunks(number, found, answer, calls[number]):
                        yield chunk
                    continue
                delta = answer.add(found.text, found.logprobs, len(found.tokens))
                for chunk in self._chunks(number, delta):
                    yield chunk
                for call in calls[number].add(found.text) if self.streams_calls else ():
                    yield self._chunk(number, {"tool_calls": [call]})
        if self.body.includes_usage:
            n_thought = sum(answer.n_thought for answer in answers)
            counts = usage([ended[number] for number in range(self.n)], self.n, n_thought)
            head = self.head("chat.completion.chunk")
            yield sse.event(head | {"choices": [], "usage": counts})

    def _chunks(self, number: int, delta: Delta) -> list[bytes]:
        """Return the chunks for a new part of a text. With tools, content waits for the end."""
        found = []
        if delta.thought:
            found.append(self._chunk(number, {"reasoning_content": delta.thought}))
        if (delta.content or delta.logprobs) and not self.has_tools:
            logprobs = self._logprobs(delta)
            found.append(self._chunk(number, {"content": delta.content}, logprobs))
        return found

    def _last_chunks(
        self, number: int, completion: Completion, answer: Answer, streamed: CallStream
    ) -> list[bytes]:
        found = self._chunks(number, answer.add("", end=True))
        content, calls, is_cut = self._parts(answer)
        if not streamed.calls:
            if self.has_tools and content:
                found.append(self._chunk(number, {"content": content}))
            for place, call in enumerate(calls):
                found.append(self._chunk(number, {"tool_calls": [{"index": place} | call]}))
        reason = "tool_calls" if calls and not is_cut else finish_reason(completion)
        return [*found, self._chunk(number, {}, reason=reason)]

    def _chunk(
        self, number: int, delta: dict[str, Any], logprobs: Any = None, reason: str | None = None
    ) -> bytes:
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        rest = {"usage": None} if self.body.includes_usage else {}
        return sse.event(self.head("chat.completion.chunk") | {"choices": [choice]} | rest)


@router.post(
    "/v1/chat/completions",
    responses=forms.described(forms.ChatCompletion, sse.MEDIA_TYPE),
)
async def create_chat_completion(body: ChatBody, request: Request, served: Served) -> Response:
    """Answer the last message of a conversation."""
    body.check_stream_options()
    job = _Job(body, served)
    handles = await job.submit()
    if body.stream:
        return sse.response(sse.with_errors(job.events(handles)), served.settings.ping_seconds)
    completions = await completions_of(served, request, handles)
    return JSONResponse(job.whole(completions))
