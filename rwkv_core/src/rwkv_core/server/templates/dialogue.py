"""The named templates: turns begin with a speaker's name, with an empty line between them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from rwkv_core.server.templates.base import (
    CALL_BEGIN,
    CALL_END,
    THOUGHT_BEGIN,
    THOUGHT_END,
    Conversation,
    Message,
    Prompt,
)

_CALLING = (
    "You can call functions. To call one, answer with "
    f'{CALL_BEGIN}{{"name": "NAME", "arguments": {{...}}}}{CALL_END}. These functions exist:\n'
)


@dataclass(frozen=True)
class Dialogue:
    """A template that renders `User: a question`, an empty line, `Assistant: an answer`.

    Attributes:
        user, bot: the names before a user's and an assistant's turn.
        system: the name before a system prompt; "" for none.
        name, has_thoughts: see `Template`.
    """

    name: str
    user: str
    bot: str
    system: str = ""
    has_thoughts: bool = False

    @property
    def stops(self) -> tuple[str, ...]:
        return tuple(f"\n\n{who}:" for who in (self.user, self.system) if who)

    def render(self, conversation: Conversation) -> Prompt:
        messages = list(conversation.messages)
        if conversation.tools:
            listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in conversation.tools)
            messages.insert(0, Message("system", _CALLING + listed))
        last = messages.pop() if conversation.is_continued else None
        turns = [self._turn(message) for message in messages]
        if last is not None:
            turns.append(f"{self.bot}: {last.content}" if last.content else f"{self.bot}:")
            return Prompt("\n\n".join(turns), is_continued=bool(last.content))
        turns.append(f"{self.bot}:")
        text = "\n\n".join(turns)
        if not self.has_thoughts:
            return Prompt(text)
        if conversation.thinks:
            # Leave out the tag's ">": with it, the tokens differ from those of the training data.
            return Prompt(f"{text} {THOUGHT_BEGIN[:-1]}", in_thought=True)
        return Prompt(f"{text} {THOUGHT_BEGIN}\n{THOUGHT_END}")

    def _turn(self, message: Message) -> str:
        if message.role == "assistant":
            calls = [
                json.dumps(call, ensure_ascii=False, separators=(",", ":"))
                for call in message.calls
            ]
            parts = [message.content, *(f"{CALL_BEGIN}{call}{CALL_END}" for call in calls)]
            return f"{self.bot}: {''.join(parts).strip()}"
        who = {"system": self.system, "tool": "Tool"}.get(message.role, self.user)
        text = _one_paragraph(message.content)
        return f"{who}: {text}" if who else text


def _one_paragraph(text: str) -> str:
    """Return `text` without empty lines: for the model, an empty line begins the next turn."""
    return re.sub(r"\n\s*\n", "\n", re.sub(r"\r\n?", "\n", text)).strip()


DIALOGUES = {
    one.name: one
    for one in (
        Dialogue("world", "User", "Assistant", "System"),
        Dialogue("raven", "Bob", "Alice"),
        Dialogue("q-and-a", "Question", "Answer"),
        Dialogue("g1", "User", "Assistant", "System", has_thoughts=True),
    )
}
