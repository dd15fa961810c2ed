"""Requests that end early: at the time limit, and when the server shuts down."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

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
