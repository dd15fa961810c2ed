"""The request body of `POST /v1/responses`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from rwkv_core.server.chat_body import (
    CalledFunction,
    ChatBody,
    ChatMessage,
    ContentPart,
    ToolCall,
    text_of,
)
from rwkv_core.server.errors import invalid
from rwkv_core.server.fields import Body, SamplingFields
from rwkv_core.server.templates.base import Message


class Item(Body):
    """A message, a function call, or a function's result."""

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[ContentPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[ContentPart] | None = None

    def as_message(self) -> Message:
        """Return the message for a template. Raises ApiError if it has no role or is not text."""
        if self.type == "function_call_output":
            return Message("tool", text_of(self.output), call_id=self.call_id or "")
        if self.type == "function_call":
            function = CalledFunction(name=self.name or "", arguments=self.arguments or "{}")
            call = ToolCall(id=self.call_id or "", function=function)
            return ChatMessage(role="assistant", tool_calls=[call]).as_message()
        if self.role is None:
            raise invalid("input: found a message without a role", "input")
        return ChatMessage(role=self.role, content=self.content).as_message()


class TextOptions(Body):
    """The required format of the text."""

    format: dict[str, Any] | None = None


class ReasoningOptions(Body):
    """How much the model thinks before an answer."""

    effort: str | None = None


class ResponsesBody(SamplingFields):
    """See OpenAI's reference of `responses.create`."""

    input: str | list[Item]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    text: TextOptions | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOptions | None = None
    metadata: dict[str, str] | None = None
    conversation: Any = None
    background: bool | None = None

    def new_messages(self) -> list[Message]:
        """Return the messages of this request. Raises ApiError if there are none."""
        if isinstance(self.input, str):
            return [Message("user", self.input)]
        # Earlier thoughts are not part of the prompt.
        found = [item.as_message() for item in self.input if item.type != "reasoning"]
        if not found:
            raise invalid("input: found no message", "input")
        return found

    def as_chat(self) -> ChatBody:
        """Return the options in the form of a chat's body, without the messages.

        Raises ApiError, or pydantic's ValidationError, for wrong options.
        """
        if self.conversation is not None or self.background:
            raise invalid(
                "conversation, background: not supported; use previous_response_id", "conversation"
            )
        given: dict[str, Any] = {"messages": [{"role": "user", "content": ""}]}
        form = (self.text and self.text.format) or {}
        if form:
            given["response_format"] = {"type": form.get("type"), "json_schema": form}
        if self.tools:
            given["tools"] = [
                {"type": tool.get("type"), "function": tool | {"type": None}} for tool in self.tools
            ]
        if isinstance(self.tool_choice, dict):
            given["tool_choice"] = {"type": "function", "function": self.tool_choice}
        else:
            given["tool_choice"] = self.tool_choice
        given["parallel_tool_calls"] = self.parallel_tool_calls
        given["reasoning_effort"] = self.reasoning and self.reasoning.effort
        given["grammar"] = self.grammar
        chat = ChatBody.model_validate(given)
        chat.check()
        return chat
