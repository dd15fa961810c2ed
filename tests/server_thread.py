"""A server in a thread of this process."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from rwkv_core import RWKV
from rwkv_core.server.app import create_app
from rwkv_core.server.service import Service
from rwkv_core.server.settings import Settings


def prose() -> RWKV:
    return RWKV("prose", backend="numpy")


@contextmanager
def serving(settings: Settings, load: Callable[[], RWKV] = prose) -> Iterator[tuple[str, Service]]:
    """Yields the address and the service, once the model is loaded."""
    service, ready = Service(settings, load), threading.Event()
    app = create_app(service, lambda _: ready.set(), ready.set)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            assert ready.wait(180)
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", service
        finally:
            server.should_exit = True
            thread.join()
