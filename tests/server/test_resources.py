"""Embeddings, tokens, named states, models, metrics."""

from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

from rwkv_core import RWKV


def test_embeddings_are_of_unit_norm_in_both_forms(client: openai.OpenAI) -> None:
    create = client.embeddings.create
    texts = ["The sea was calm.", "A ship"]
    # Without a format the client asks for base64 and decodes it.
    found = create(model="prose", input=texts)
    floats = create(model="prose", input=texts, encoding_format="float")
    assert [one.index for one in found.data] == [0, 1]
    for one, other in zip(found.data, floats.data, strict=True):
        assert np.linalg.norm(one.embedding) == pytest.approx(1, abs=1e-5)
        np.testing.assert_allclose(one.embedding, other.embedding, atol=1e-5)
    assert not np.allclose(found.data[0].embedding, found.data[1].embedding)
    assert found.usage.total_tokens > 3
    for bad in ([], "", ["a", ""]):
        with pytest.raises(openai.BadRequestError):
            create(model="prose", input=bad)
    with pytest.raises(openai.BadRequestError):
        create(model="prose", input="a", dimensions=3)


def test_tokens_there_and_back(http: httpx.Client) -> None:
    text = "Träume 🐳"
    found = http.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
    assert found["count"] == len(found["tokens"]) == len(found["token_strs"])
    assert http.post("/tokenize", json={"content": text}).json()["tokens"] == found["tokens"]
    pieces = http.post("/tokenize", json={"content": text, "with_pieces": True}).json()["tokens"]
    parts = [one["piece"] for one in pieces]
    data = b"".join(one.encode() if isinstance(one, str) else bytes(one) for one in parts)
    assert data.decode() == text
    back = http.post("/detokenize", json={"tokens": found["tokens"]}).json()
    assert back == {"prompt": text, "content": text}
    chat = {"messages": [{"role": "user", "content": "Hi"}]}
    assert http.post("/tokenize", json=chat).json()["count"] > 3
    info = http.get("/tokenizer_info").json()
    assert info["vocab_size"] == 4096
    # lm-eval uses the server's tokenizer only if it names this.
    assert (info["eos_token"], info["eos_token_id"]) == ("<|endoftext|>", 0)
    assert http.post("/detokenize", json={"tokens": [-1]}).status_code == 400
    assert http.post("/tokenize", json={}).status_code == 400


def test_the_model_there_is(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["prose"]
    assert client.models.retrieve("prose").owned_by == "rwkv-core"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_metrics_count_tokens(http: httpx.Client, client: openai.OpenAI) -> None:
    client.completions.create(model="prose", prompt="Count", max_tokens=2)
    text = http.get("/metrics").text
    for name in (
        "num_requests_running", "num_requests_waiting", "prompt_tokens_total",
        "generation_tokens_total", "request_success_total", "time_to_first_token_seconds_bucket",
        "e2e_request_latency_seconds_count", "prefix_cache_hits_total",
    ):  # fmt: skip
        assert f"rwkv:{name}{{" in text, name


def test_a_named_state_is_a_beginning_and_a_file(
    http: httpx.Client, client: openai.OpenAI, state_folder: Path
) -> None:
    begin, rest = "The captain said:", " The sea is"
    saved = http.post("/v1/states", json={"name": "captain", "prompt": begin})
    assert saved.status_code == 200, saved.text
    assert saved.json()["object"] == "state"
    assert (state_folder / "captain.state").is_file()
    options = {"model": "prose", "max_tokens": 4, "temperature": 0}
    whole = client.completions.create(prompt=begin + rest, **options)
    begun = client.completions.create(prompt=rest, **options, extra_body={"state": "captain"})
    assert begun.choices[0].text == whole.choices[0].text
    assert begun.usage.prompt_tokens < whole.usage.prompt_tokens
    # It is a state as any other of this model.
    rwkv = RWKV("prose", backend="numpy")
    rwkv.load_state(state_folder / "captain.state")
    rwkv.load_context(rest)
    assert rwkv.generate(4, temperature=0).text == whole.choices[0].text
    listed = http.get("/v1/states").json()["data"]
    assert [one["id"] for one in listed] == ["captain"]
    assert http.get("/v1/states/captain").json() == listed[0]
    assert http.delete("/v1/states/captain").json()["deleted"]
    assert not (state_folder / "captain.state").exists()
    for method in ("GET", "DELETE"):
        assert http.request(method, "/v1/states/captain").status_code == 404


def test_a_damaged_state_or_a_bad_name_harms_nothing(
    http: httpx.Client, state_folder: Path
) -> None:
    (state_folder / "broken.state").write_bytes(b"no state")
    body = {"prompt": "a", "max_tokens": 1, "state": "broken"}
    assert http.post("/v1/completions", json=body).status_code == 400
    (state_folder / "broken.state").unlink()
    for name in ("../up", "", "a/b", "a.b", "x" * 65, "-a"):
        answer = http.post("/v1/states", json={"name": name, "prompt": "a"})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "name"


def test_an_answer_as_a_named_state(http: httpx.Client, client: openai.OpenAI) -> None:
    said = client.responses.create(model="prose", input="Hello", max_output_tokens=2)
    saved = http.post("/v1/states", json={"name": "said", "response_id": said.id})
    assert saved.status_code == 200, saved.text
    again = client.chat.completions.create(
        model="prose", messages=[{"role": "user", "content": "And?"}], max_tokens=1,
        extra_body={"state": "said"},
    )  # fmt: skip
    assert again.choices
    assert http.delete("/v1/states/said").status_code == 200
