"""`/v1/chat/completions`, by OpenAI's own client."""

import asyncio
import json

import httpx
import openai
import pytest

from server_process import Server

ASK = [{"role": "user", "content": "What is the sea?"}]


def test_an_answer_has_the_form_that_the_client_expects(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="prose", messages=ASK, max_tokens=6, seed=1)
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 6
    assert answer.usage.prompt_tokens_details is not None


def test_a_stream_gives_the_same_text_in_chunks_of_one_id(client: openai.OpenAI) -> None:
    options = {"model": "prose", "messages": ASK, "max_completion_tokens": 6, "seed": 1}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True))
    assert len({chunk.id for chunk in chunks}) == 1
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert [delta.role for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]
    assert all(chunk.usage is None for chunk in chunks)


def test_include_usage_adds_a_last_chunk_without_choices(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="prose", messages=ASK, max_tokens=2, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 2


def test_the_stream_is_framed_as_events_and_ends_with_done(http: httpx.Client) -> None:
    body = {"messages": ASK, "max_tokens": 2, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = answer.read().decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    for event in events[:-2]:
        assert "usage" not in json.loads(event.removeprefix("data: "))


def test_logprobs_join_to_the_content(client: openai.OpenAI) -> None:
    options = {
        "model": "prose", "messages": ASK, "max_tokens": 6, "seed": 3, "logprobs": True,
        "top_logprobs": 2,
    }  # fmt: skip
    (choice,) = client.chat.completions.create(**options).choices
    assert choice.logprobs is not None and choice.logprobs.content
    tokens = choice.logprobs.content
    assert "".join(token.token for token in tokens) == choice.message.content
    assert bytes(b for token in tokens for b in token.bytes).decode() == choice.message.content
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in tokens)
    streamed = [
        token.token
        for chunk in client.chat.completions.create(**options, stream=True)
        if chunk.choices[0].logprobs and chunk.choices[0].logprobs.content
        for token in chunk.choices[0].logprobs.content
    ]
    assert streamed == [token.token for token in tokens]


def test_n_choices_come_in_order_and_differ(client: openai.OpenAI) -> None:
    options = {"model": "prose", "messages": ASK, "max_tokens": 5, "seed": 5}
    answer = client.chat.completions.create(**options, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1
    alone = client.chat.completions.create(**options)
    assert alone.choices[0].message.content == answer.choices[0].message.content
    assert answer.usage.prompt_tokens == alone.usage.prompt_tokens
    assert answer.usage.completion_tokens == 15


def test_an_answer_ends_before_a_stop_string_that_no_token_holds(client: openai.OpenAI) -> None:
    options = {"model": "prose", "messages": ASK, "max_tokens": 8, "seed": 1}
    text = client.chat.completions.create(**options).choices[0].message.content
    stop = text[3:8]
    for stream in (False, True):
        found = client.chat.completions.create(**options, stop=[stop, "\x00"], stream=stream)
        if stream:
            chunks = list(found)
            got = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
            reason = chunks[-1].choices[0].finish_reason
        else:
            got, reason = found.choices[0].message.content, found.choices[0].finish_reason
        assert got == text[:3]
        assert reason == "stop"


def test_a_second_request_with_the_same_beginning_reads_less(client: openai.OpenAI) -> None:
    system = {"role": "system", "content": "The sea was calm and the old man slept. " * 5}
    used = [
        client.chat.completions.create(
            model="prose", messages=[system, *ASK], max_tokens=1
        ).usage.prompt_tokens_details.cached_tokens
        for _ in range(2)
    ]
    assert used[0] < 5
    assert used[1] > 40


def test_a_system_prompt_is_read_once_for_all_users(client: openai.OpenAI) -> None:
    system = {"role": "system", "content": "A whale is large and a mouse is small. " * 5}
    used = [
        client.chat.completions.create(
            model="prose", messages=[system, {"role": "user", "content": said}], max_tokens=1
        ).usage
        for said in ("Who are you?", "Nothing.")
    ]
    # All but the second user's words.
    assert used[1].prompt_tokens - used[1].prompt_tokens_details.cached_tokens < 12


def test_a_trailing_answer_is_continued(client: openai.OpenAI) -> None:
    begun = [*ASK, {"role": "assistant", "content": "It is a great"}]
    answer = client.chat.completions.create(
        model="prose", messages=begun, max_tokens=1, logit_bias={str(token_of(client, " sea")): 100}
    )
    assert answer.choices[0].message.content == " sea"


def token_of(client: openai.OpenAI, text: str) -> int:
    base = str(client.base_url).removesuffix("v1/")
    tokens = httpx.post(f"{base}tokenize", json={"prompt": text}).json()["tokens"]
    assert len(tokens) == 1
    return tokens[0]


def test_the_async_client_runs_requests_together(server: Server) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key="x") as client:
            create = client.chat.completions.create
            found = await asyncio.gather(
                *(create(model="prose", messages=ASK, max_tokens=4, seed=7) for _ in range(3))
            )
            stream = await create(model="prose", messages=ASK, max_tokens=4, seed=7, stream=True)
            streamed = [chunk.choices[0].delta.content or "" async for chunk in stream]
        return [one.choices[0].message.content for one in found] + ["".join(streamed)]

    texts = asyncio.run(ask())
    assert len(set(texts)) == 1


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 401}, "max_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"stop": ""}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"mirostat": 2, "mirostat_tau": -1}, None),
    ],
)
def test_a_mistake_is_a_400_that_names_the_parameter(
    http: httpx.Client, changed: dict[str, object], param: str | None
) -> None:
    body = {"model": "prose", "messages": ASK, "max_tokens": 1, **changed}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "code", "param"}
    assert error["type"] == "invalid_request_error"
    assert param is None or error["param"] == param, error


def test_fields_that_are_not_known_or_null_are_ignored(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="prose", messages=ASK, max_tokens=1, user="me", stop=None, store=False,
        extra_body={"wizardry": {"a": [1]}, "temperature": None},
    )  # fmt: skip
    assert answer.choices


def test_the_extensions_of_sampling_change_the_text(client: openai.OpenAI) -> None:
    options = {"model": "prose", "messages": ASK, "max_tokens": 6}
    greedy = client.chat.completions.create(**options, temperature=0).choices[0].message.content
    for extra in ({"top_k": 1}, {"min_p": 1.0}, {"typical_p": 1.0, "top_k": 1}):
        answer = client.chat.completions.create(**options, seed=1, extra_body=extra)
        assert answer.choices[0].message.content == greedy
    for extra in (
        {"mirostat": 2, "mirostat_tau": 3.0},
        {"dry_multiplier": 0.8, "repetition_penalty": 1.2},
    ):
        assert client.chat.completions.create(**options, extra_body=extra).choices


def test_another_model_is_a_404(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=ASK)
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
