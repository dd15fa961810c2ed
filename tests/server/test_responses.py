"""`/v1/responses`, by OpenAI's own client."""

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
        assert call.arguments in ('{"big": true}', '{"big": false}')
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    after = client.responses.create(
        **options, input=[result], previous_response_id=answer.id, max_output_tokens=1
    )
    assert after.usage.input_tokens > answer.usage.input_tokens
