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

    If no call is valid, the text is returned unchanged.
    """
    calls = []
    for found in _CALL.finditer(text):
        try:
            call = json.loads(found[1])
            name, arguments = call["name"], call["arguments"]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if isinstance(name, str) and isinstance(arguments, dict):
            function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
            calls.append(
                {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}
            )
    return (_CALL.sub("", text).strip(), calls) if calls else (text, [])
