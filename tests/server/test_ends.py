"""Requests that end early: at the time limit, and when the server shuts down."""

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from rwkv_core import RWKV
from rwkv_core.server.errors import ApiError
from rwkv_core.server.service import Service
from rwkv_core.server.settings import Settings
from server_thread import serving
from waiting import wait_until

LONG = [5] * 100_000
READING = [("/v1/embeddings", {"input": LONG}), ("/v1/states", {"name": "long", "prompt": LONG})]


def test_a_prompt_that_takes_too_long_is_a_400() -> None:
    with serving(Settings(max_seconds=0.5)) as (address, _):
        for path, body in READING:
            answer = httpx.post(address + path, json=body, timeout=60)
            assert answer.status_code == 400, answer.text
            assert "too long" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("path", "body"), READING)
def test_a_prompt_that_a_shutdown_cuts_off_is_a_503(path: str, body: dict[str, object]) -> None:
    with serving(Settings()) as (address, service), ThreadPoolExecutor() as pool:
        answer = pool.submit(httpx.post, address + path, json=body, timeout=60)
        wait_until(lambda: service.running().engine.stats().reading)
        service.close()
        assert answer.result().status_code == 503
        assert answer.result().json()["error"]["code"] == "shutting_down"


def ask(address: str, stream: bool) -> tuple[str, object]:
    """Ask for a long answer. Returns the type of the last event, and the response."""
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        found = client.responses.create(
            model="prose", input="Hello", max_output_tokens=10_000, stream=stream,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        last = list(found)[-1] if stream else None
    return ("", found) if last is None else (last.type, last.response)


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_says_why_it_is_incomplete(stream: bool) -> None:
    with serving(Settings(max_seconds=0.5)) as (address, _):
        kind, response = ask(address, stream)
    assert kind == "response.incomplete" * stream
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_seconds"


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_that_a_shutdown_cuts_off_is_cancelled(stream: bool) -> None:
    with serving(Settings()) as (address, service), ThreadPoolExecutor() as pool:
        answer = pool.submit(ask, address, stream)
        wait_until(lambda: service.running().engine.stats().running)
        service.close()
        kind, response = answer.result()
    assert kind == "response.incomplete" * stream
    assert response.status == "cancelled"
    assert response.incomplete_details is None


def test_a_service_that_is_closed_as_it_loads_starts_no_engine() -> None:
    before, closed, called = set(threading.enumerate()), threading.Event(), list[object]()

    def load() -> RWKV:
        rwkv = RWKV("prose", backend="numpy")
        assert closed.wait(60)
        return rwkv

    service = Service(Settings(), load)
    service.start(called.append, lambda: called.append("error"))
    service.close()
    (loading,) = [one for one in threading.enumerate() if one.name == "rwkv-core loading"]
    closed.set()
    loading.join()
    assert not called
    assert not [one for one in set(threading.enumerate()) - before if "engine" in one.name]
    with pytest.raises(ApiError):
        service.running()


def test_a_service_that_is_closed_as_its_engine_starts_closes_it() -> None:
    before, called = set(threading.enumerate()), list[object]()
    rwkv = RWKV("prose", backend="numpy")
    forward = rwkv.model.forward

    def closing(*arguments: object, **options: object) -> object:
        service.close()
        return forward(*arguments, **options)

    rwkv.model.forward = closing  # the engine calls it first for the token before all requests
    service = Service(Settings(), lambda: rwkv)
    service.start(called.append, lambda: called.append("error"))
    wait_until(lambda: set(threading.enumerate()) == before)
    assert not called
