"""Finds function calls in a generated text."""

from __future__ import annotations

import json
import re
import secrets
from typing import Any

from rwkv_core.server.templates.base import CALL_BEGIN, CALL_END

_CALL = re.compile(f"{CALL_BEGIN}(.*?){CALL_END}", re.S)


def calls_of(text: str) -> tuple[str, list[dict[str, Any]]]:
    """Return the text without calls, and the calls in OpenAI's format.

    A call that is not valid stays in the text. Without any call, the text is returned unchanged.
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
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
