"""`/v1/responses`, by OpenAI's own client."""

import json

import httpx
import openai
import pytest

from rwkv_core.server.settings import Settings
from server_thread import serving


def test_an_answer_and_its_stream(client: openai.OpenAI) -> None:
    options = {"model": "prose", "input": "What is the sea?", "max_output_tokens": 6}
    options["extra_body"] = {"seed": 1}
    whole = client.responses.create(**options, instructions="Speak of ships.")
    assert whole.object == "response"
    assert whole.output_text
    assert whole.status == "incomplete"
    assert whole.incomplete_details.reason == "max_output_tokens"
    assert whole.usage.output_tokens == 6
    events = list(client.responses.create(**options, instructions="Speak of ships.", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.incomplete"
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text == events[-1].response.output_text
    grammar = {"grammar": 'start: "yes"'}
    with client.responses.stream(model="prose", input="Hello", extra_body=grammar) as stream:
        assert stream.get_final_response().output_text == "yes"


def test_a_conversation_goes_on_from_the_state_of_the_answer(client: openai.OpenAI) -> None:
    create = client.responses.create
    first = create(model="prose", input="What is the sea? " * 8, max_output_tokens=3)
    before = first.usage.total_tokens
    again = create(
        model="prose", input="And why?", previous_response_id=first.id, max_output_tokens=2
    )
    assert again.previous_response_id == first.id
    # All that came before is a state: only the new turn is read.
    assert again.usage.input_tokens_details.cached_tokens >= before
    assert again.usage.input_tokens - before < 20
    # The way back stays open: another branch from the same answer.
    branch = create(
        model="prose", input="And why?", previous_response_id=first.id, max_output_tokens=1
    )
    assert branch.usage.input_tokens == again.usage.input_tokens


def test_answers_are_stored_until_they_are_deleted(client: openai.OpenAI) -> None:
    options = {"model": "prose", "input": "Hello", "max_output_tokens": 1}
    kept = client.responses.create(**options)
    assert client.responses.retrieve(kept.id).output_text == kept.output_text
    client.responses.delete(kept.id)
    unkept = client.responses.create(**options, store=False)
    for name in (kept.id, unkept.id, "resp_nothing"):
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(name)
        with pytest.raises(openai.NotFoundError) as caught:
            client.responses.create(**options, previous_response_id=name)
        assert caught.value.param == "previous_response_id"


@pytest.mark.parametrize("large", ["input", "metadata", "state"])
def test_an_answer_that_is_too_large_to_store_evicts_no_other(large: str) -> None:
    with (
        serving(Settings(state_bytes=80_000)) as (address, _),
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
    ):
        options = {"model": "prose", "input": "Hello", "max_output_tokens": 1}
        small = client.responses.create(**options)
        if large == "input":
            options["input"] = "The sea. " * 3000
        elif large == "metadata":
            options["metadata"] = {"a": "b" * 80_000}
        else:
            # A state takes 46 kB, and this answer has two.
            named = {"name": "begin", "prompt": "The"}
            assert httpx.post(f"{address}/v1/states", json=named).is_success
            options["extra_body"] = {"state": "begin"}
        found = client.responses.create(**options)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(found.id)
        assert client.responses.retrieve(small.id).output_text == small.output_text


def test_a_call_of_a_function(client: openai.OpenAI) -> None:
    parameters = {
        "type": "object", "properties": {"big": {"type": "boolean"}}, "required": ["big"],
        "additionalProperties": False,
    }  # fmt: skip
    tool = {"type": "function", "name": "sail", "parameters": parameters, "strict": True}
    options = {"model": "prose", "tools": [tool]}
    must = {"tool_choice": "required", "parallel_tool_calls": False, "max_output_tokens": 60}
    for stream in (False, True):
        found = client.responses.create(**options, **must, input="Sail!", stream=stream)
        answer = list(found)[-1].response if stream else found
        assert answer.status == "completed"
        call = answer.output[0]
        assert (call.type, call.name) == ("function_call", "sail")
        assert call.arguments in ('{"big":true}', '{"big":false}')
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    after = client.responses.create(
        **options, input=[result], previous_response_id=answer.id, max_output_tokens=1
    )
    assert after.usage.input_tokens > answer.usage.input_tokens


def hire(properties: dict[str, object]) -> dict[str, object]:
    """A function whose arguments must be these."""
    parameters = {
        "type": "object", "properties": properties, "required": list(properties),
        "additionalProperties": False,
    }  # fmt: skip
    return {"type": "function", "name": "hire", "parameters": parameters, "strict": True}


def test_a_stream_sends_the_arguments_of_calls_piece_by_piece(client: openai.OpenAI) -> None:
    why = {"why": {"type": "string", "pattern": "^[a-z ]{20,30}$"}, "old": {"type": "boolean"}}
    options = {"model": "prose", "input": "Hire!", "tools": [hire(why)], "temperature": 0}
    options |= {"max_output_tokens": 100, "extra_body": {"ignore_eos": True}}
    whole = client.responses.create(**options, tool_choice="required")
    events = list(client.responses.create(**options, tool_choice="required", stream=True))
    joined = events[-1].response
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert len(joined.output) == len(whole.output)
    for place, (call, same) in enumerate(zip(joined.output, whole.output, strict=True)):
        of_call = [event for event in events if getattr(event, "output_index", None) == place]
        kinds = [event.type.removeprefix("response.") for event in of_call]
        pieces = kinds.count("function_call_arguments.delta")
        deltas = ["function_call_arguments.delta"] * pieces
        ends = ["function_call_arguments.done", "output_item.done"]
        assert (call.type, call.name, call.arguments) == ("function_call", "hire", same.arguments)
        assert "".join(event.delta for event in of_call[1 : 1 + pieces]) == call.arguments
        added = of_call[0].item
        assert (added.status, added.arguments) == ("in_progress", "")
        assert len({added.id, call.id, *(event.item_id for event in of_call[1:-1])}) == 1
        if call.status == "completed":
            assert kinds == ["output_item.added", *deltas, *ends]
            assert json.loads(of_call[-2].arguments).keys() == why.keys()
            assert pieces > 3
        else:
            assert place == len(joined.output) - 1
            assert kinds == ["output_item.added", *deltas, "output_item.done"]
    assert joined.output[0].status == "completed"
    assert joined.usage.output_tokens == whole.usage.output_tokens
    # The client joins the pieces too.
    options["parallel_tool_calls"] = False
    with client.responses.stream(**options, tool_choice="required") as stream:
        snapshots = [e.snapshot for e in stream if e.type.endswith("arguments.delta")]
        (call,) = stream.get_final_response().output
    assert snapshots[-1] == call.arguments == joined.output[0].arguments


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_cut_off_is_incomplete(client: openai.OpenAI, stream: bool) -> None:
    options = {"model": "prose", "tools": [hire({"why": {"type": "string", "minLength": 500}})]}
    found = client.responses.create(
        **options, input="Hire!", tool_choice="required", max_output_tokens=30, stream=stream
    )
    answer = list(found)[-1].response if stream else found
    assert answer.status == "incomplete"
    (call,) = answer.output
    assert (call.type, call.name, call.status) == ("function_call", "hire", "incomplete")
    assert call.arguments.startswith('{"why":"')
    # The conversation goes on from there all the same.
    after = client.responses.create(
        **options, input="Why?", previous_response_id=answer.id, max_output_tokens=1
    )
    assert after.usage.input_tokens > answer.usage.input_tokens
