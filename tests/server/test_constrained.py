"""Answers of a given form: JSON, calls of functions, grammars. A weak model gives them too."""

import json

import httpx
import openai
import pytest

from rwkv_core.server.tool_calls import CallStream

ASK = [{"role": "user", "content": "Who is the captain?"}]
SCHEMA = {
    "type": "object",
    "properties": {"old": {"type": "boolean"}, "ships": {"enum": [1, 2, 3]}},
    "required": ["old", "ships"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": SCHEMA}}
    for name in ("hire", "dismiss")
]


def test_json_by_a_schema(client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "captain", "schema": SCHEMA}}
    for stream in (False, True):
        found = client.chat.completions.create(
            model="prose", messages=ASK, response_format=form, max_tokens=60, stream=stream
        )
        if stream:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in found)
        else:
            text = found.choices[0].message.content
            assert found.choices[0].finish_reason == "stop"
        captain = json.loads(text)
        assert captain.keys() == {"old", "ships"}
        assert captain["ships"] in (1, 2, 3)


def test_any_json_object(client: openai.OpenAI) -> None:
    # The model may write on and on, but nothing that is no JSON.
    (choice,) = client.chat.completions.create(
        model="prose", messages=ASK, response_format={"type": "json_object"}, max_tokens=5
    ).choices
    assert choice.message.content.startswith("{")


def test_a_schema_that_is_none_is_a_400_that_says_why(client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "captain"}}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="prose", messages=ASK, response_format=form)
    assert "captain" in str(caught.value)
    assert caught.value.param == "response_format"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "dismiss"}}]
)
def test_a_call_that_must_be_made(client: openai.OpenAI, choice: object, stream: bool) -> None:
    found = client.chat.completions.create(
        model="prose", messages=ASK, tools=TOOLS, tool_choice=choice, max_tokens=90,
        parallel_tool_calls=False, stream=stream,
    )  # fmt: skip
    if stream:
        chunks = list(found)
        deltas = [chunk.choices[0].delta for chunk in chunks]
        call, *pieces = [call for delta in deltas for call in delta.tool_calls or ()]
        reason = chunks[-1].choices[0].finish_reason
        assert not any(delta.content for delta in deltas)
        assert call.index == 0
        assert call.function.arguments == ""
        assert len(pieces) > 1
        for piece in pieces:
            assert (piece.index, piece.id, piece.function.name) == (0, None, None)
            call.function.arguments += piece.function.arguments
    else:
        message, reason = found.choices[0].message, found.choices[0].finish_reason
        (call,) = message.tool_calls
        assert message.content is None
    assert reason == "tool_calls"
    assert call.id.startswith("call_")
    assert call.function.name in (("hire", "dismiss") if choice == "required" else ("dismiss",))
    assert json.loads(call.function.arguments).keys() == {"old", "ships"}


def test_a_call_that_is_cut_off_ends_for_its_length(client: openai.OpenAI) -> None:
    parameters = {"type": "object", "properties": {"why": {"type": "string", "minLength": 500}}}
    tool = {"type": "function", "function": {"name": "hire", "parameters": parameters}}
    tool["function"]["parameters"]["required"] = ["why"]
    options = {"model": "prose", "messages": ASK, "tools": [tool], "tool_choice": "required"}
    options |= {"max_tokens": 30, "temperature": 0}
    chunks = list(client.chat.completions.create(**options, stream=True))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    arguments = "".join(call.function.arguments for call in calls)
    assert arguments.startswith('{"why":"')
    assert chunks[-1].choices[0].finish_reason == "length"
    # Without a stream it is the same call, not text.
    (choice,) = client.chat.completions.create(**options).choices
    assert choice.message.content is None
    assert [call.function.arguments for call in choice.message.tool_calls] == [arguments]
    assert choice.finish_reason == "length"


def test_the_client_joins_a_stream_of_calls(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model="prose", messages=ASK, tools=TOOLS, tool_choice="required", max_tokens=90,
        parallel_tool_calls=False,
    ) as stream:  # fmt: skip
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert json.loads(call.function.arguments).keys() == {"old", "ships"}


@pytest.mark.parametrize("length", [1, 7, 1000])
def test_deltas_of_calls_join_to_the_calls(length: int) -> None:
    said = [{}, {"a": '"}]\\', "b": [{"c": "{"}]}, {"d": "</tool_call>"}]
    text = " " + "".join(
        f'<tool_call>{{"name":"{name}","arguments":{json.dumps(arguments)}}}</tool_call>'
        for name, arguments in zip("xyz", said, strict=True)
    )
    calls, found = CallStream(), [["", ""] for _ in said]
    for start in range(0, len(text), length):
        for delta in calls.add(text[start : start + length]):
            function = delta["function"]
            found[delta["index"]][0] += function.get("name", "")
            found[delta["index"]][1] += function["arguments"]
    assert [name for name, _ in found] == ["x", "y", "z"]
    assert [json.loads(arguments) for _, arguments in found] == said
    assert not calls.is_open
    # The grammar lets a text go on like this, as the model likes.
    assert not CallStream().add('\n<tool_call>{"name":"x","arguments":{}')


def test_a_call_that_may_be_made_and_its_result(client: openai.OpenAI) -> None:
    called = {"id": "call_1", "type": "function"}
    called["function"] = {"name": "hire", "arguments": '{"old": true, "ships": 2}'}
    messages = [
        *ASK,
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "call_1", "content": "hired"},
    ]
    (choice,) = client.chat.completions.create(
        model="prose", messages=messages, tools=TOOLS, max_tokens=4
    ).choices
    assert choice.message.content or choice.message.tool_calls


def test_a_grammar(client: openai.OpenAI) -> None:
    body = {"grammar": 'start: "the " ("sea" | "ship") "!"'}
    found = client.completions.create(model="prose", prompt="I see", max_tokens=20, extra_body=body)
    assert found.choices[0].text in ("the sea!", "the ship!")
    assert found.choices[0].finish_reason == "stop"
    (chat,) = client.chat.completions.create(
        model="prose", messages=ASK, max_tokens=20, extra_body=body
    ).choices
    assert chat.message.content in ("the sea!", "the ship!")


def test_a_tool_that_is_not_there(http: httpx.Client) -> None:
    choice = {"type": "function", "function": {"name": "hang"}}
    body = {"messages": ASK, "tools": TOOLS, "tool_choice": choice}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tool_choice"


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_no_call_stays_as_text(client: openai.OpenAI, stream: bool) -> None:
    call = '<tool_call>{\\"name\\": \\"hire\\", \\"arguments\\": {}}</tool_call>'
    no_call = "Yes: <tool_call>hire them</tool_call>"
    found = client.chat.completions.create(
        model="prose", messages=ASK, tools=TOOLS, max_tokens=200, stream=stream,
        extra_body={"grammar": f'start: "{no_call} {call}"'},
    )  # fmt: skip
    if stream:
        deltas = [chunk.choices[0].delta for chunk in found]
        content = "".join(delta.content or "" for delta in deltas)
        calls = [call for delta in deltas for call in delta.tool_calls or ()]
    else:
        message = found.choices[0].message
        content, calls = message.content, message.tool_calls
    assert content == no_call
    assert [call.function.name for call in calls] == ["hire"]
