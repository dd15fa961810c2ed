"""Finds function calls in a generated text."""

from __future__ import annotations

import copy
import json
import re
import secrets
from typing import Any, NamedTuple

from rwkv_core.server.templates.base import CALL_BEGIN, CALL_END

_CALL = re.compile(f"{CALL_BEGIN}(.*?){CALL_END}", re.S)
# What comes before the arguments of a call, with the end of the call before it. Whitespace other
# than a space begins a text, in which nothing ensures that a call is valid.
_HEAD = re.compile(
    rf'(?:}}{CALL_END}| )?{CALL_BEGIN}{{"name":"([\w-]+)","arguments":(?={{)', re.ASCII
)


class Parts(NamedTuple):
    """The parts of a generated text.

    Attributes:
        content: the text without the calls.
        calls: the calls in OpenAI's format.
        is_cut: whether the text ended within the arguments of the last call.
    """

    content: str
    calls: list[dict[str, Any]]
    is_cut: bool = False


def parts_of(raw: str, content: str, follows_grammar: bool) -> Parts:
    """Return the parts of a generated text, `raw`, whose `content` is without a thought.

    `follows_grammar` is for texts that a `CallStream` can split.
    """
    if follows_grammar:
        stream = CallStream()
        stream.add(raw)
        if stream.calls:
            return Parts("", stream.calls, stream.is_open)
    return Parts(*calls_of(content))


def calls_of(text: str) -> tuple[str, list[dict[str, Any]]]:
    """Return the text without calls, and the calls in OpenAI's format.

    A call that is not valid stays in the text. If there is no call, the text is unchanged.
    """
    calls: list[dict[str, Any]] = []

    def take(found: re.Match[str]) -> str:
        call = _call(found[1])
        if call is None:
            return found[0]
        calls.append(call)
        return ""

    rest = _CALL.sub(take, text)
    return (rest.strip(), calls) if calls else (text, [])


def _call(text: str) -> dict[str, Any] | None:
    """Return the call that `text` describes in JSON; None if it does not describe one."""
    try:
        call = json.loads(text)
        name, arguments = call["name"], call["arguments"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not (isinstance(name, str) and isinstance(arguments, dict)):
        return None
    return _described(name, json.dumps(arguments, ensure_ascii=False))


def _described(name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}


class CallStream:
    """Splits a growing text into the deltas of its calls: first the name, then the arguments.

    The text must follow the grammar of `constrained.chat_constraint`. It may have no calls.

    Attributes:
        calls: the calls that have begun, each with the arguments so far.
    """

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self._rest = ""
        # Number of objects and lists that are open in the arguments.
        self._depth = 0
        self._in_string = self._is_escaped = False

    @property
    def is_open(self) -> bool:
        """Whether the last call's arguments have not ended."""
        return self._depth > 0

    def add(self, text: str) -> list[dict[str, Any]]:
        """Add text. Returns the new deltas, each an item of `tool_calls`."""
        self._rest += text
        found: list[dict[str, Any]] = []
        while self._rest:
            if not self.is_open:
                head = _HEAD.match(self._rest)
                if head is None:
                    break
                self._rest = self._rest[head.end() :]
                call = _described(head[1], "")
                found.append({"index": len(self.calls)} | copy.deepcopy(call))
                self.calls.append(call)
            arguments = self._take_arguments()
            self.calls[-1]["function"]["arguments"] += arguments
            found.append({"index": len(self.calls) - 1, "function": {"arguments": arguments}})
        return found

    def _take_arguments(self) -> str:
        """Take the text up to the end of the arguments, or all of it."""
        n_taken = 0
        for character in self._rest:
            n_taken += 1
            if self._in_string:
                self._in_string = self._is_escaped or character != '"'
                self._is_escaped = not self._is_escaped and character == "\\"
            else:
                self._in_string = character == '"'
                self._depth += (character in "{[") - (character in "]}")
                if not self._depth:
                    break
        found, self._rest = self._rest[:n_taken], self._rest[n_taken:]
        return found
