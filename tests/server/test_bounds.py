"""What a server refuses, and what it holds against slow, large and vanished clients."""

import asyncio
import contextlib
import json
import signal
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from starlette.types import Receive, Scope, Send

from rwkv_core.cli import main
from rwkv_core.server.app import create_app
from rwkv_core.server.guard import BodyGuard
from rwkv_core.server.service import Service
from rwkv_core.server.settings import Settings
from server_process import Server
from server_thread import serving
from waiting import wait_until

LONG = {"prompt": "The sea", "max_tokens": 400, "ignore_eos": True}


def running(http: httpx.Client, name: str = "num_requests_running") -> float:
    text = http.get("/metrics").text
    line = next(line for line in text.splitlines() if line.startswith(f"rwkv:{name}{{"))
    return float(line.split()[-1])


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b"[" * 50_000, b'{"messages": NaN}', b"null"]
)
def test_a_body_that_is_no_object_is_a_400(http: httpx.Client, body: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/embeddings"):
        answer = http.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["message"]


def test_unknown_urls_and_methods_are_errors_of_the_same_form(http: httpx.Client) -> None:
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/completions", 405)):
        answer = http.request(method, path)
        assert answer.status_code == status
        assert answer.json()["error"].keys() == {"message", "type", "code", "param"}


def test_a_body_that_is_too_large_is_a_413(http: httpx.Client) -> None:
    body = json.dumps({"prompt": "a" * 100_000}).encode()
    pieces = (body[i : i + 1000] for i in range(0, len(body), 1000))
    for content in (body, pieces):
        answer = http.post("/v1/completions", content=content)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"


def test_a_prompt_that_is_too_long_is_a_400(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="prose", prompt=[5] * 3001, max_tokens=1)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_place(
    server: Server, http: httpx.Client, stream: bool
) -> None:
    wait_until(lambda: running(http) == 0)
    body = json.dumps(LONG | {"stream": stream}).encode()
    place = urlsplit(server.address)
    with socket.create_connection((place.hostname, place.port)) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        wait_until(lambda: running(http) == 1)
        begin = running(http, "generation_tokens_total")
    wait_until(lambda: running(http) == 0)
    assert running(http, "generation_tokens_total") - begin < 390


def test_a_body_that_drips_does_not_hold_others_up(server: Server, http: httpx.Client) -> None:
    place = urlsplit(server.address)
    with socket.create_connection((place.hostname, place.port)) as connection:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"
        connection.sendall(head)
        assert http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).is_success


def test_a_body_that_never_ends_is_a_408() -> None:
    async def answer() -> httpx.Response:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            raise AssertionError("it must not get here")

        async def dripping() -> AsyncIterator[bytes]:
            while True:
                yield b"a"
                await asyncio.sleep(0.05)

        transport = httpx.ASGITransport(app=BodyGuard(app, 1000, 0.3))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.post("/", content=dripping())

    assert asyncio.run(answer()).status_code == 408


def test_the_model_s_loading_is_a_503() -> None:
    async def answers() -> list[httpx.Response]:
        service = Service(Settings(), lambda: None)
        transport = httpx.ASGITransport(app=create_app(service))  # which starts nothing
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            body = {"prompt": "a"}
            return [await client.get("/health"), await client.post("/v1/completions", json=body)]

    for answer in asyncio.run(answers()):
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert answer.json()["error"]["code"] == "loading"


def test_a_model_that_cannot_be_loaded_ends_the_program(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    for extra in (
        ["--port", str(taken.getsockname()[1])],
        ["-m", str(tmp_path / "none.pth")],
        ["--chat-template", "none"],
        ["--port", "99999"],
        ["--max-batch", "0"],
        ["--state-folder-bytes", "0"],
        ["--api-key-file", str(tmp_path / "none")],
    ):
        assert main(["serve", "--port", "0", *extra]) == 2
        assert "error:" in capsys.readouterr().err
    taken.close()


def test_a_server_that_is_killed_as_it_writes_leaves_whole_states(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = start_server("--state-folder", tmp_path)

    def save(number: int) -> None:
        body = {"name": f"s{number % 4}", "prompt": f"The {number}"}
        with contextlib.suppress(httpx.TransportError):
            httpx.post(f"{server.address}/v1/states", json=body, timeout=60)

    with ThreadPoolExecutor(4) as pool:
        saves = [pool.submit(save, number) for number in range(200)]
        wait(saves[:8])
        server.process.kill()
    again = start_server("--state-folder", tmp_path)
    listed = httpx.get(f"{again.address}/v1/states").json()["data"]
    assert listed
    for state in listed:
        body = {"prompt": " and", "max_tokens": 1, "state": state["id"]}
        assert httpx.post(f"{again.address}/v1/completions", json=body, timeout=60).is_success
    body = {"name": "after", "prompt": "a"}
    assert httpx.post(f"{again.address}/v1/states", json=body, timeout=60).is_success
    # What was half written went with the first write after it.
    assert {path.suffix for path in tmp_path.iterdir()} == {".state"}


def test_named_states_fill_their_folder_up_to_a_bound(tmp_path: Path) -> None:
    # A state takes 46 kB. One that the operator put there does not count.
    (tmp_path / "tuned.pth").write_bytes(bytes(100_000))
    settings = Settings(state_folder=tmp_path, state_folder_bytes=100_000)
    with serving(settings) as (address, _), httpx.Client(base_url=address, timeout=60) as http:

        def save(name: str) -> httpx.Response:
            return http.post("/v1/states", json={"name": name, "prompt": "The sea"})

        assert [save(name).status_code for name in ("a", "b", "c", "b")] == [200, 200, 413, 200]
        assert "\n" not in save("c").json()["error"]["message"]
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            "a.state", "b.state", "tuned.pth",
        ]  # fmt: skip
        assert save("a").json()["bytes"] == http.get("/v1/states/a").json()["bytes"]
        http.delete("/v1/states/a")
        assert save("c").is_success


def test_a_state_that_cannot_be_written_is_a_500_without_the_path(tmp_path: Path) -> None:
    folder = tmp_path / "states"
    with serving(Settings(state_folder=folder)) as (address, _):
        folder.rmdir()
        body = {"name": "a", "prompt": "The sea"}
        answer = httpx.post(f"{address}/v1/states", json=body, timeout=60)
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "The state 'a' could not be written."


def test_cross_origin_requests_are_not_invited(http: httpx.Client) -> None:
    answer = http.get("/health", headers={"Origin": "http://example.org"})
    assert "access-control-allow-origin" not in answer.headers


def test_the_description_of_the_endpoints_is_there(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/embeddings"} <= paths.keys()


def test_keys_a_short_queue_and_a_graceful_end(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# of the tests\nsecret-1\n\nsecret-2\n")
    bounds = ("--max-batch", "1", "--max-waiting", "1")
    server = start_server("--api-key-file", keys, *bounds, RWKV_API_KEY="secret-3")
    assert not any("secret" in line for line in server.lines)
    base = f"{server.address}/v1"
    assert httpx.get(f"{server.address}/health").status_code == 200
    for key in ("none", "secret", "secret-11", "sécret"):
        with openai.OpenAI(base_url=base, api_key="x", max_retries=0) as client:
            answer = httpx.get(
                f"{base}/models", headers={"Authorization": f"Bearer {key}".encode()}
            )
            assert answer.status_code == 401
    with (
        openai.OpenAI(base_url=base, api_key="none", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as refused,
    ):
        client.models.list()
    assert refused.value.code == "invalid_api_key"
    for key in ("secret-2", "secret-3"):
        with openai.OpenAI(base_url=base, api_key=key) as client:
            assert [model.id for model in client.models.list()] == ["prose"]
    with openai.OpenAI(base_url=base, api_key="secret-1", max_retries=0) as client:
        create = client.completions.create
        options = {"model": "prose", "prompt": "The", "extra_body": {"ignore_eos": True}}
        stream = create(**options, max_tokens=60, stream=True)
        first = next(stream)
        pool = ThreadPoolExecutor()
        asked = [pool.submit(create, **options, max_tokens=1) for _ in range(3)]
        done, _ = wait(asked, 20, FIRST_COMPLETED)
        full = done.pop().exception()
        assert isinstance(full, openai.RateLimitError)
        assert int(full.response.headers["retry-after"]) > 0
        server.process.send_signal(signal.SIGTERM)
        assert [first, *stream][-1].choices[0].finish_reason == "length"
        pool.shutdown()
        assert [one for one in asked if one.exception() is None]
    server.process.wait(30)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.address}/health")
