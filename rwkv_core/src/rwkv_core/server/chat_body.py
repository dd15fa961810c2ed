"""The request body of `POST /v1/chat/completions`."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from rwkv_core.server.errors import invalid
from rwkv_core.server.fields import Body, SamplingFields
from rwkv_core.server.templates.base import Message


class ContentPart(Body):
    """A part of a message's content; only text is supported."""

    type: str
    text: str | None = None
    refusal: str | None = None


class CalledFunction(Body):
    """The function of an earlier call, with the call's `arguments` as JSON."""

    name: str
    arguments: str = "{}"


class ToolCall(Body):
    """An earlier call by the assistant."""

    id: str = ""
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatMessage(Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    def as_message(self) -> Message:
        """Return the message for a template. Raises ApiError for content that is not text."""
        role = "system" if self.role == "developer" else self.role
        calls = tuple(_call(one) for one in self.tool_calls or ())
        return Message(role, text_of(self.content), calls, self.tool_call_id or "")


def text_of(content: str | list[ContentPart] | None) -> str:
    """Return the text of a message's content. Raises ApiError for a part that is not text."""
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.text is None and part.refusal is None:
            raise invalid(
                f"messages: found content of type {part.type!r:.40}, expected text", "messages"
            )
    return "".join(part.text or part.refusal or "" for part in content)


def _call(call: ToolCall) -> dict[str, Any]:
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = call.function.arguments
    return {"name": call.function.name, "arguments": arguments}


class FunctionDefinition(Body):
    """A function that the model may call."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(Body):
    """A tool that the model may use; only functions are supported."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Body):
    """A function's name."""

    name: str


class ToolChoice(Body):
    """The function that the model must call."""

    type: Literal["function"]
    function: NamedFunction


class JsonSchema(Body):
    """A JSON schema with its name."""

    name: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None


class ResponseFormat(Body):
    """The required format of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatBody(SamplingFields):
    """See OpenAI's reference of `chat.completions.create`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    functions: list[Any] | None = None
    modalities: list[str] | None = None

    def check(self) -> None:
        """Raise ApiError for fields that contradict each other or are not supported."""
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs: needs logprobs=true", "top_logprobs")
        if self.functions:
            raise invalid("functions: not supported; use tools instead", "functions")
        if self.modalities and self.modalities != ["text"]:
            raise invalid("modalities: this model generates only text", "modalities")
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise invalid("tool_choice: needs tools, found none", "tool_choice")

    @property
    def n_top(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def wants_thought(self) -> bool:
        """Whether the answer may begin with a thought, if the template supports it."""
        given = (self.chat_template_kwargs or {}).get("enable_thinking")
        return (
            bool(given) if given is not None else self.reasoning_effort not in ("none", "minimal")
        )
