"""`POST /v1/completions`: continues texts without a chat template."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from rwkv_core.server import forms, sse
from rwkv_core.server.access import Served
from rwkv_core.server.constrained import grammar_constraint
from rwkv_core.server.errors import invalid
from rwkv_core.server.fields import MAX_CHOICES, SamplingFields, texts_or_tokens
from rwkv_core.server.logprobs import TokenTexts, text_logprobs
from rwkv_core.server.running import completions_of, pieces_of, submit_all
from rwkv_core.server.service import Running
from rwkv_core.server.usage import finish_reason, usage
from rwkv_core.serving import Completion, Handle, Piece, TokenLogprob

DEFAULT_MAX_TOKENS = 16  # as OpenAI has it
router = APIRouter()


class CompletionBody(SamplingFields):
    """See OpenAI's reference of `completions.create`."""

    prompt: str | list[str] | list[int] | list[list[int]] | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    suffix: str | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        found = texts_or_tokens("" if self.prompt is None else self.prompt)
        if not found:
            raise invalid("prompt: found an empty list, expected text or tokens", "prompt")
        return found

    def check(self) -> None:
        """Raise ApiError for fields that contradict each other or are not supported."""
        if self.suffix:
            raise invalid("suffix: not supported, this model only continues texts", "suffix")
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise invalid(f"best_of: found {self.best_of}, expected at least n", "best_of")
        if self.stream and self.best_of is not None and self.best_of > (self.n or 1):
            raise invalid("best_of: more than n is not possible in a stream", "best_of")
        if len(self.prompts) * (self.best_of or self.n or 1) > MAX_CHOICES:
            raise invalid(
                f"prompt: expected at most {MAX_CHOICES} choices for all prompts together", "prompt"
            )


class _Job:
    """One request: its prompts, and the choices for each prompt."""

    def __init__(self, body: CompletionBody, served: Running) -> None:
        body.check()
        served.check_model(body.model)
        self.body, self.served = body, served
        self.prompts = body.prompts
        self.n = body.n or 1
        self.best_of = body.best_of or self.n
        self.head = {
            "id": f"cmpl-{secrets.token_hex(14)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": served.model_id,
            "system_fingerprint": f"fp_{served.engine.model.fingerprint}",
        }

    async def submit(self) -> list[Handle]:
        """Queue `best_of` requests of the engine for each prompt."""
        body, served, settings = self.body, self.served, self.served.settings
        max_tokens = body.max_tokens
        if max_tokens is None:
            max_tokens = min(DEFAULT_MAX_TOKENS, settings.max_tokens)
        if max_tokens > settings.max_tokens:
            raise invalid(
                f"max_tokens: found {max_tokens}, expected at most {settings.max_tokens}",
                "max_tokens",
            )
        start = None
        if body.state is not None:
            start = await run_in_threadpool(served.states.get, body.state)
        n_top = body.logprobs
        if n_top is None and self.best_of > self.n:
            n_top = 0
        make_constraint = await run_in_threadpool(grammar_constraint, served, body.grammar)
        options: dict[str, Any] = {
            "stop_strings": body.stops,
            "ignore_eos": bool(body.ignore_eos),
            "sampling": body.sampling(),
            "processors": body.processors(),
            "state": start,
            "top_logprobs": n_top,
            "prompt_logprobs": body.logprobs if body.echo else None,
            "max_seconds": settings.max_seconds,
        }
        return await submit_all(
            partial(
                served.engine.submit,
                prompt,
                max_tokens,
                seed=body.seed_of(number),
                constraint=make_constraint(),
                **options,
            )
            for prompt in self.prompts
            for number in range(self.best_of)
        )

    def echo_of(self, number: int) -> str:
        """Return the prompt of choice `number` if `echo` is set, else ""."""
        return self._prompt_text(number) if self.body.echo else ""

    def _prompt_text(self, number: int) -> str:
        prompt = self.prompts[number // self.n]
        if isinstance(prompt, str):
            return prompt
        tokenizer = self.served.engine.tokenizer
        known = [token for token in prompt if token < tokenizer.n_vocab]
        return tokenizer.decode(known)

    def choice(self, number: int, completion: Completion) -> dict[str, Any]:
        """Return a complete choice."""
        logprobs = list(completion.logprobs)
        # For an empty prompt, the engine reads the token that begins a document; it has no text.
        if self.body.echo and self.prompts[number // self.n]:
            logprobs = [*completion.prompt_logprobs, *logprobs]
        found = self.logprobs(number, TokenTexts(), logprobs, 0)
        text = self.echo_of(number) + completion.text
        return self._choice(number, text, found, finish_reason(completion))

    def logprobs(
        self, number: int, texts: TokenTexts, logprobs: Sequence[TokenLogprob], offset: int
    ) -> dict[str, Any] | None:
        """Return the `logprobs` of new tokens of a choice.

        `offset` is the character of the choice's text at which the first of these tokens begins.
        """
        if self.body.logprobs is None:
            return None
        if not self.body.echo:
            offset += len(self._prompt_text(number))
        tokenizer = self.served.engine.tokenizer
        return text_logprobs(tokenizer, texts.of(logprobs), self.body.logprobs, offset)

    def _choice(self, number: int, text: str, logprobs: Any, reason: str | None) -> dict[str, Any]:
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def best(self, completions: Sequence[Completion]) -> list[Completion]:
        """Return each prompt's `n` completions with the highest mean logprob per token."""
        chosen: list[Completion] = []
        for start in range(0, len(completions), self.best_of):
            group = list(completions[start : start + self.best_of])
            if self.best_of > self.n:
                group.sort(key=_mean_logprob, reverse=True)
            chosen += group[: self.n]
        return chosen

    async def events(self, handles: Sequence[Handle]) -> AsyncIterator[bytes]:
        """Yield the answer as events, each a chunk."""
        body = self.body
        # The prompt's logprobs are known only at the end, so each choice is sent as one chunk.
        whole = bool(body.echo and body.logprobs is not None)
        texts = [TokenTexts() for _ in handles]
        lengths = [0] * len(handles)
        ended: dict[int, Completion] = {}
        if body.echo and not whole:
            for number in range(len(handles)):
                lengths[number] = len(self.echo_of(number))
                yield self._chunk(self._choice(number, self.echo_of(number), None, None))
        async with aclosing(pieces_of(self.served, handles)) as pieces:
            async for number, found in pieces:
                if isinstance(found, Completion):
                    ended[number] = found
                    last = self._choice(number, "", None, finish_reason(found))
                    yield self._chunk(self.choice(number, found) if whole else last)
                elif not whole:
                    yield self._chunk(self._piece(number, found, texts[number], lengths))
        if body.includes_usage:
            counts = usage([ended[number] for number in range(len(handles))], self.best_of)
            yield sse.event(self.head | {"choices": [], "usage": counts})

    def _piece(
        self, number: int, piece: Piece, texts: TokenTexts, lengths: list[int]
    ) -> dict[str, Any]:
        found = self.logprobs(number, texts, piece.logprobs, lengths[number])
        lengths[number] += len(piece.text)
        return self._choice(number, piece.text, found, None)

    def _chunk(self, choice: dict[str, Any]) -> bytes:
        rest = {"usage": None} if self.body.includes_usage else {}
        return sse.event(self.head | {"choices": [choice]} | rest)


def _mean_logprob(completion: Completion) -> float:
    found = [one.logprob or 0.0 for one in completion.logprobs]
    return sum(found) / max(1, len(found))


@router.post(
    "/v1/completions",
    responses=forms.described(forms.TextCompletion, sse.MEDIA_TYPE),
)
async def create_completion(body: CompletionBody, request: Request, served: Served) -> Response:
    """Continue one or more texts."""
    body.check_stream_options()
    job = _Job(body, served)
    handles = await job.submit()
    if body.stream:
        return sse.response(sse.with_errors(job.events(handles)), served.settings.ping_seconds)
    completions = await completions_of(served, request, handles)
    chosen = job.best(completions)
    choices = [job.choice(number, one) for number, one in enumerate(chosen)]
    counts = usage(completions, job.best_of)
    return JSONResponse(job.head | {"choices": choices, "usage": counts})
