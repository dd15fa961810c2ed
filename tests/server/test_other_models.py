"""Servers of other models than the tests' usual one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

from byte_tokenizer import write_byte_tokenizer
from later_versions import Sizes, later_weights
from pth_writer import write_pth
from rwkv_core import RWKV
from rwkv_core.conformance.references import rwkv5, rwkv6, rwkv7
from rwkv_core.server.settings import Settings
from server_process import Server
from server_thread import serving

REFERENCES = {"5.0": rwkv5, "5.1": rwkv5, "5.2": rwkv5, "6": rwkv6, "7": rwkv7}
BEGIN, REST = "The captain said:", " The sea is"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prose7")


@pytest.fixture(scope="module")
def prose7(start_server: Callable[..., Server], folder: Path) -> Server:
    found = start_server("-m", "prose7", "--state-folder", folder)
    assert found.address, found.lines
    return found


@pytest.fixture(scope="module")
def client(prose7: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{prose7.address}/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture(scope="module")
def rwkv() -> RWKV:
    return RWKV("prose7", backend="numpy")


def test_texts_are_the_model_s(client: openai.OpenAI, rwkv: RWKV) -> None:
    assert [model.id for model in client.models.list()] == ["prose7"]
    rwkv.reset_state()
    rwkv.load_context(BEGIN)
    expected = rwkv.generate(8, temperature=0).text
    options = {"model": "prose7", "max_tokens": 8, "temperature": 0}
    assert client.completions.create(prompt=BEGIN, **options).choices[0].text == expected
    stream = client.completions.create(prompt=BEGIN, **options, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == expected


def test_a_chat_and_a_cached_prefix(client: openai.OpenAI) -> None:
    system = {"role": "system", "content": "The sea was calm and the old man slept. " * 10}
    answers = [
        client.chat.completions.create(
            model="prose7", messages=[system, {"role": "user", "content": said}],
            max_tokens=5, temperature=0,
        )
        for said in ("Who are you?", "What is the sea?", "Who are you?")
    ]  # fmt: skip
    texts = [answer.choices[0].message.content for answer in answers]
    assert texts[0] == texts[2] != ""
    cached = [answer.usage.prompt_tokens_details.cached_tokens for answer in answers]
    n_prompt = [answer.usage.prompt_tokens for answer in answers]
    assert cached[0] < 5
    assert n_prompt[1] - cached[1] < 15 < cached[1]
    assert cached[2] == n_prompt[2]


def test_an_embedding_is_the_model_s(client: openai.OpenAI, rwkv: RWKV) -> None:
    found = client.embeddings.create(model="prose7", input=BEGIN + REST).data[0].embedding
    expected = rwkv.model.to_numpy(rwkv.model.embed(rwkv.tokenizer.encode(BEGIN + REST)))
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-4)


def test_a_state_is_refused_by_another_model(
    client: openai.OpenAI, prose7: Server, folder: Path
) -> None:
    body = {"name": "captain", "prompt": BEGIN}
    assert httpx.post(f"{prose7.address}/v1/states", json=body, timeout=60).is_success
    options = {"max_tokens": 4, "temperature": 0}
    whole = client.completions.create(model="prose7", prompt=BEGIN + REST, **options)
    begun = client.completions.create(
        model="prose7", prompt=REST, **options, extra_body={"state": "captain"}
    )
    assert begun.choices[0].text == whole.choices[0].text
    with serving(Settings(state_folder=folder)) as (address, _):
        body = {"prompt": REST, **options}
        answer = httpx.post(f"{address}/v1/completions", json=body | {"state": "captain"})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == "state"
        assert error["message"].startswith("state 'captain': this state is of ")
        assert str(folder) not in error["message"]
        assert httpx.post(f"{address}/v1/completions", json=body, timeout=60).is_success


@pytest.mark.parametrize("version", REFERENCES)
def test_an_embedding_is_the_last_hidden_state(tmp_path: Path, version: str) -> None:
    n_vocab = write_byte_tokenizer(tmp_path / "tokenizer.json")
    weights = later_weights(version, Sizes(2, 64, 32, 224, n_vocab, (8, 12, 16, 20)))
    write_pth(tmp_path / "model.pth", weights)
    rwkv = RWKV(tmp_path / "model.pth", backend="numpy")
    texts = ["the end", "in the beginning " * 30]
    with (
        serving(Settings(), lambda: rwkv) as (address, _),
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client,
    ):
        found = client.embeddings.create(model="model", input=texts).data
    for text, one in zip(texts, found, strict=True):
        tokens = rwkv.tokenizer.encode(text)
        logits = REFERENCES[version].run(weights, tokens).logits[-1]
        # The head has more rows than columns: only one vector gives these logits.
        hidden, *_ = np.linalg.lstsq(weights["head.weight"].astype(np.float64), logits)
        np.testing.assert_allclose(rwkv.model.embed(tokens), hidden, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(one.embedding, hidden / np.linalg.norm(hidden), atol=1e-3)
