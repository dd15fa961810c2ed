"""Chat templates from Jinja files, in the form used by `transformers`, run in a sandbox."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rwkv_core.errors import OptionError
from rwkv_core.server.errors import invalid
from rwkv_core.server.templates.base import THOUGHT_BEGIN, Conversation, Message, Prompt
from rwkv_core.util.printable import printable

# Messages whose text does not occur in any template.
_QUESTION, _ANSWER, _NEXT = "qUESTIONq", "aNSWERa", "nEXTn"


class JinjaTemplate:
    """A template file. Its stop strings are the text that it renders after an answer."""

    def __init__(self, path: Path) -> None:
        """Read the file, and render a test conversation. Raises OptionError if that fails."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        environment.filters["tojson"] = _to_json
        self.name = str(path)
        try:
            source = path.read_text("utf-8")
            self._template = environment.from_string(source)
            self.stops = self._stops()
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(f"{path}: cannot be read: {error}") from None
        except Exception as error:
            raise OptionError(f"{path}: not a working chat template: {error}") from None
        self.has_thoughts = THOUGHT_BEGIN in source

    def render(self, conversation: Conversation) -> Prompt:
        try:
            text = self._render(conversation)
        except Exception as error:  # a template's code may raise anything
            raise invalid(
                f"messages: refused by the chat template: {printable(error)}", "messages"
            ) from None
        if conversation.is_continued:
            content = conversation.messages[-1].content
            place = text.rfind(content.strip()) + len(content.strip())
            return Prompt(text[:place] + content[len(content.rstrip()) :], is_continued=True)
        return Prompt(text, in_thought=text.rstrip().endswith(THOUGHT_BEGIN))

    def _render(self, conversation: Conversation) -> str:
        return self._template.render(
            messages=[_as_dict(message) for message in conversation.messages],
            tools=list(conversation.tools) or None,
            add_generation_prompt=not conversation.is_continued,
            enable_thinking=conversation.thinks,
            bos_token="",
            eos_token="",
        )

    def _stops(self) -> tuple[str, ...]:
        """Return the text after an answer; if there is none, the start of the next turn."""
        messages = [Message("user", _QUESTION), Message("assistant", _ANSWER)]
        after = self._render(Conversation(messages)).rpartition(_ANSWER)[2]
        if after.strip():
            return (after.strip(),)
        text = self._render(Conversation([*messages, Message("user", _NEXT)]))
        between = text.partition(_ANSWER)[2].partition(_NEXT)[0].rstrip(" ")
        return (between,) if between.strip() else ()


def _as_dict(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.calls:
        calls = [{"type": "function", "function": call} for call in message.calls]
        found["tool_calls"] = calls
    if message.call_id:
        found["tool_call_id"] = message.call_id
    return found


def _to_json(value: Any, indent: int | None = None) -> str:
    """Return JSON without the HTML escapes of Jinja's own filter."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
