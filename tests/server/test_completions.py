"""`/v1/completions`, by OpenAI's own client."""

import httpx
import openai
import pytest

BEGIN = "The old man looked at"


def test_prompts_of_each_kind_are_continued_in_their_order(
    client: openai.OpenAI, http: httpx.Client
) -> None:
    tokens = http.post("/tokenize", json={"prompt": BEGIN}).json()["tokens"]
    options = {"model": "prose", "max_tokens": 4, "temperature": 0}
    alone = client.completions.create(prompt=BEGIN, **options)
    text = alone.choices[0].text
    assert alone.object == "text_completion"
    for prompt in (tokens, [BEGIN], [tokens]):
        assert client.completions.create(prompt=prompt, **options).choices[0].text == text
    other = client.completions.create(prompt="It was", **options).choices[0].text
    both = client.completions.create(prompt=["It was", BEGIN], n=2, **options)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in both.choices] == [other, other, text, text]
    assert both.usage.completion_tokens == 16


def test_sixteen_tokens_without_max_tokens(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="prose", prompt=BEGIN, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 16
    assert answer.choices[0].finish_reason == "length"


def test_echo_and_logprobs_score_a_text(client: openai.OpenAI) -> None:
    for max_tokens in (0, 2):
        (choice,) = client.completions.create(
            model="prose", prompt=BEGIN, max_tokens=max_tokens, echo=True, logprobs=2, seed=1
        ).choices
        found = choice.logprobs
        assert choice.text.startswith(BEGIN)
        assert "".join(found.tokens) == choice.text
        assert found.token_logprobs[0] is None
        assert found.top_logprobs[0] is None
        assert all(logprob <= 0 for logprob in found.token_logprobs[1:])
        assert all(len(top) in (2, 3) for top in found.top_logprobs[1:])
        starts = [choice.text[at:] for at in found.text_offset]
        assert all(map(str.startswith, starts, found.tokens))


def test_a_stream_gives_what_one_answer_does(client: openai.OpenAI) -> None:
    options = {"model": "prose", "prompt": [BEGIN, "It was"], "max_tokens": 4, "seed": 1}
    for extra in ({}, {"echo": True}, {"logprobs": 1}, {"echo": True, "logprobs": 1}):
        whole = client.completions.create(**options, **extra).choices
        chunks = list(client.completions.create(**options, **extra, stream=True))
        for choice in whole:
            parts = [c.choices[0] for c in chunks if c.choices[0].index == choice.index]
            assert "".join(part.text for part in parts) == choice.text
            assert [part.finish_reason for part in parts if part.finish_reason] == ["length"]
            if extra.get("logprobs"):
                found = [part.logprobs for part in parts if part.logprobs]
                for name in ("tokens", "text_offset"):
                    joined = [one for part in found for one in getattr(part, name)]
                    assert joined == getattr(choice.logprobs, name)
                # Who shares a batch may change the last digits.
                joined = [one or 0.0 for part in found for one in part.token_logprobs]
                expected = [one or 0.0 for one in choice.logprobs.token_logprobs]
                assert joined == pytest.approx(expected, rel=1e-4)


def test_best_of_gives_the_likeliest(client: openai.OpenAI) -> None:
    options = {"model": "prose", "prompt": BEGIN, "max_tokens": 3, "seed": 1, "logprobs": 0}
    all_of_them = client.completions.create(**options, n=3).choices
    best = client.completions.create(**options, n=1, best_of=3)
    likeliest = max(all_of_them, key=lambda choice: sum(choice.logprobs.token_logprobs))
    assert [choice.text for choice in best.choices] == [likeliest.text]
    assert best.usage.completion_tokens == 9


@pytest.mark.parametrize(
    "changed",
    [
        {"suffix": "the end"},
        {"best_of": 1, "n": 2},
        {"best_of": 2, "stream": True},
        {"prompt": []},
        {"prompt": [100000]},
        {"prompt": [-1]},
        {"logprobs": 21},
        {"n": 129},
        {"grammar": "start: nothing"},
        {"state": "../../etc/passwd"},
    ],
)
def test_what_is_refused(http: httpx.Client, changed: dict[str, object]) -> None:
    answer = http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1, **changed})
    assert answer.status_code == (404 if "state" in changed else 400), answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"
