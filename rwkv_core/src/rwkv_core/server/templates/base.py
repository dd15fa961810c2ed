"""The protocol of chat templates, and the types that they use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

# Tags around a function call in a text, as in the Hermes models.
CALL_BEGIN, CALL_END = "<tool_call>", "</tool_call>"
THOUGHT_BEGIN, THOUGHT_END = "<think>", "</think>"


@dataclass(frozen=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: "system", "user", "assistant" or "tool".
        content: the text of the message.
        calls: function calls, each {"name": ..., "arguments": {...}}.
        call_id: for a "tool" message, the id of the call that it answers.
    """

    role: str
    content: str
    calls: tuple[dict[str, Any], ...] = ()
    call_id: str = ""


@dataclass(frozen=True)
class Conversation:
    """A conversation for a template to render.

    Attributes:
        messages: the messages; the model continues the last one if its role is "assistant".
        tools: definitions of functions that the model may call.
        thinks: whether the answer begins with a thought, if the template supports it.
    """

    messages: Sequence[Message]
    tools: Sequence[dict[str, Any]] = ()
    thinks: bool = True

    @property
    def is_continued(self) -> bool:
        return bool(self.messages) and self.messages[-1].role == "assistant"


@dataclass(frozen=True)
class Prompt:
    """The text that a model continues.

    Attributes:
        in_thought: whether the generated text begins inside a thought.
        is_continued: whether the model continues an answer. Leading whitespace is then kept.
    """

    text: str
    in_thought: bool = False
    is_continued: bool = False


class Template(Protocol):
    """Renders conversations as text.

    Attributes:
        name: the template's name, or the path of its file.
        stops: the stop strings that end an answer.
        has_thoughts: whether answers may begin with a thought.
    """

    @property
    def name(self) -> str: ...

    @property
    def stops(self) -> tuple[str, ...]: ...

    @property
    def has_thoughts(self) -> bool: ...

    def render(self, conversation: Conversation) -> Prompt:
        """Return the prompt. Raises ApiError for messages that the template does not support."""


@dataclass(frozen=True)
class Delta:
    """The thought and content that a new part of a generated text adds to an answer."""

    content: str = ""
    thought: str = ""
    logprobs: list[Any] = field(default_factory=list)
