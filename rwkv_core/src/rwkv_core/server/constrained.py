"""Makes the constraints of requests: a grammar, a response format, or calls of functions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rwkv_core.errors import OptionError
from rwkv_core.generation.grammar import (
    ANY_OBJECT,
    GrammarConstraint,
    json_schema_grammar,
    lark_grammar,
)
from rwkv_core.server.chat_body import ChatBody, ResponseFormat, Tool, ToolChoice
from rwkv_core.server.errors import invalid
from rwkv_core.server.service import Running
from rwkv_core.server.templates.base import CALL_BEGIN, CALL_END
from rwkv_core.serving import Constraint

# Each request of the engine needs its own constraint, so these functions return a maker.
MakeConstraint = Callable[[], Constraint | None]


def _none() -> None:
    return None


def grammar_constraint(served: Running, grammar: str | None) -> MakeConstraint:
    """Return a maker of constraints for a Lark grammar. Raises OptionError for a wrong grammar."""
    return _none if grammar is None else _maker(served, lark_grammar(grammar))


def chat_constraint(served: Running, body: ChatBody) -> MakeConstraint:
    """Return a maker of constraints for a chat's answer.

    Raises ApiError and OptionError for fields that are wrong or contradict each other.
    """
    form = format_grammar(body.response_format)
    tools = body.tools if body.tool_choice != "none" else None
    if (form is not None) + (body.grammar is not None) > 1:
        raise invalid("grammar: cannot be combined with response_format", "grammar")
    if form is not None and not (tools and body.tool_choice not in (None, "auto")):
        return _maker(served, form)
    if body.grammar is not None:
        return grammar_constraint(served, body.grammar)
    if not tools:
        return _none
    one_call = body.parallel_tool_calls is False or isinstance(body.tool_choice, ToolChoice)
    must = body.tool_choice not in (None, "auto")
    try:
        return _maker(served, lark_grammar(_calls(_named(tools, body.tool_choice), must, one_call)))
    except OptionError as error:
        raise invalid(f"tools: {error}", "tools") from None


def format_grammar(form: ResponseFormat | None) -> str | None:
    """Return the grammar of a response format; None for any text.

    Raises ApiError and OptionError for a schema that is missing or wrong.
    """
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return json_schema_grammar(ANY_OBJECT)
    if form.json_schema is None or form.json_schema.schema_ is None:
        raise invalid("response_format: found no json_schema.schema", "response_format")
    try:
        return json_schema_grammar(form.json_schema.schema_)
    except OptionError as error:
        raise invalid(f"Invalid schema for response_format: {error}", "response_format") from None


def _maker(served: Running, grammar: str) -> MakeConstraint:
    return partial(GrammarConstraint, served.engine.tokenizer, grammar)


def _named(tools: Sequence[Tool], choice: Any) -> Sequence[Tool]:
    if not isinstance(choice, ToolChoice):
        return tools
    found = [tool for tool in tools if tool.function.name == choice.function.name]
    if not found:
        raise invalid(f"tool_choice: there is no tool {choice.function.name!r:.80}", "tool_choice")
    return found


def _calls(tools: Sequence[Tool], must: bool, one_call: bool) -> str:
    """Return the grammar for calls of these functions, and, without `must`, for other text too."""
    kinds = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.function.name},
                "arguments": {"type": "object"} | (tool.function.parameters or {}),
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
            "x-guidance": {"whitespace_flexible": False},
        }
        for tool in tools
    ]
    lines = [f"call{place}: %json {json.dumps(kind)}" for place, kind in enumerate(kinds)]
    some_call = " | ".join(f"call{place}" for place in range(len(kinds)))
    calls = "call" if one_call else "call+"
    return "\n".join(
        [
            f"start: {calls}" if must else f'start: TEXT | " "? {calls}',
            f'call: "{CALL_BEGIN}" ({some_call}) "{CALL_END}"',
            *lines,
            # Text that is not a call must not begin like one.
            r"TEXT: / ?[^ <](?s:.)*/",
        ]
    )
