"""A server that tests share, and OpenAI's own client for it."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from server_process import Server, start

NEEDED = ("fastapi", "uvicorn", "openai", "httpx", "llguidance", "rwkv_backend_numpy")
# Elsewhere than in their nox session.
collect_ignore_glob = [] if all(map(find_spec, NEEDED)) else ["test_*.py"]


@pytest.fixture(scope="session")
def start_server() -> Iterator[Callable[..., Server]]:
    """Starts a server with further arguments; it ends with the session."""
    servers: list[Server] = []

    def started(*arguments: str | Path, **variables: str) -> Server:
        servers.append(start(*arguments, **variables))
        return servers[-1]

    yield started
    for server in servers:
        server.end()


@pytest.fixture(scope="session")
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("states")


@pytest.fixture(scope="session")
def server(start_server: Callable[..., Server], state_folder: Path) -> Server:
    """The one that most tests share."""
    bounds = ("--max-body", "100000", "--max-prompt", "3000", "--max-tokens", "400")
    found = start_server("--state-folder", state_folder, *bounds)
    assert found.address, found.lines
    return found


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[object]:
    """OpenAI's client; it does not try again."""
    import openai

    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture(scope="session")
def http(server: Server) -> Iterator[object]:
    import httpx

    with httpx.Client(base_url=server.address, timeout=120) as found:
        yield found
