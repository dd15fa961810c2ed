"""The server does what its OpenAPI description says: schemathesis, and what it found."""

import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from rwkv_core.server.settings import Settings
from server_process import Server
from server_thread import serving


@pytest.mark.skipif(find_spec("schemathesis") is None, reason="schemathesis is not installed")
def test_every_answer_conforms_to_the_description(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = start_server("--max-tokens", "2", "--max-prompt", "3000", "--max-body", "100000")
    options = ["--seed", "1", "--max-examples", "5", "--no-shrink", "--request-timeout", "60"]
    # A description cannot say that fields exclude each other, or what the model's tokens are.
    options += ["--exclude-checks", "positive_data_acceptance"]
    command = [sys.executable, "-m", "schemathesis.cli", "--no-color", "run", *options]
    found = subprocess.run(
        [*command, f"{server.address}/openapi.json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr


def test_answers_do_not_wait_for_acknowledgements(server: Server) -> None:
    # With Nagle's algorithm, the second packet of an answer waits for 40 ms on a used connection.
    times = []
    with httpx.Client(base_url=server.address) as client:
        for _ in range(60):
            begin = time.perf_counter()
            client.get("/v1/models")
            times.append(time.perf_counter() - begin)
    assert min(times[30:]) < 0.03


def test_a_url_names_all_its_methods(http: httpx.Client) -> None:
    for path, methods in (
        ("/v1/states", "GET, POST"), ("/v1/states/a", "GET, DELETE"), ("/v1/models", "GET"),
        ("/v1/responses/a", "GET, DELETE"), ("/v1/completions", "POST"),
    ):  # fmt: skip
        answer = http.put(path)
        assert (answer.status_code, answer.headers["allow"]) == (405, methods)


def test_false_is_no_number(http: httpx.Client) -> None:
    body = {"prompt": "a", "max_tokens": 1, "mirostat": False}
    answer = http.post("/v1/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "mirostat")


def test_a_small_limit_of_tokens_bounds_the_default() -> None:
    with serving(Settings(max_tokens=2)) as (address, _):
        body = {"prompt": "The sea", "ignore_eos": True}
        answer = httpx.post(f"{address}/v1/completions", json=body, timeout=60)
    assert answer.json()["usage"]["completion_tokens"] == 2
