"""What a chat template is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

# What a call of a function looks like in a text: the form that Hermes' models made usual.
CALL_BEGIN, CALL_END = "<tool_call>", "</tool_call>"
THOUGHT_BEGIN, THOUGHT_END = "<think>", "</think>"


@dataclass(frozen=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: "system", "user", "assistant" or "tool".
        calls: of functions, as {"name": ..., "arguments": {...}}.
        call_id: of a "tool" message: the call that it answers.
    """

    role: str
    content: str
    calls: tuple[dict[str, Any], ...] = ()
    call_id: str = ""


@dataclass(frozen=True)
class Conversation:
    """What is to be written as text.

    Attributes:
        messages: the last one is continued if it is the assistant's.
        tools: definitions of functions that may be called.
        thinks: whether the answer begins with a thought, for templates that know one.
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
        in_thought: whether what it writes begins within a thought.
        is_continued: whether it continues an answer: its first space then counts.
    """

    text: str
    in_thought: bool = False
    is_continued: bool = False


class Template(Protocol):
    """Writes conversations as text.

    Attributes:
        name: by which it was chosen.
        stops: where an answer ends.
        has_thoughts: whether answers may begin with a thought.
    """

    @property
    def name(self) -> str: ...

    @property
    def stops(self) -> tuple[str, ...]: ...

    @property
    def has_thoughts(self) -> bool: ...

    def render(self, conversation: Conversation) -> Prompt:
        """Raises ApiError for messages that it cannot express."""


@dataclass(frozen=True)
class Delta:
    """What a part of a generated text adds to an answer."""

    content: str = ""
    thought: str = ""
    logprobs: list[Any] = field(default_factory=list)
