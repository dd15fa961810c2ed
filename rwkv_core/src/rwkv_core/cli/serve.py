"""`rwkv-core serve`: the HTTP server."""

from __future__ import annotations

import argparse
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rwkv_core.cli.model_arguments import (
    add_model_arguments,
    add_tokenizer_argument,
    backend_options,
    filled,
    load_rwkv,
)
from rwkv_core.errors import OptionError
from rwkv_core.plugins.command import Command
from rwkv_core.util.printable import printable

if TYPE_CHECKING:
    from rwkv_core.server.service import Running
    from rwkv_core.server.settings import Settings

GRACE_SECONDS = 30


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add_tokenizer_argument(parser)
    add = parser.add_argument
    add(
        "--host", type=filled, default="127.0.0.1",
        help="address to listen on (default: %(default)s)",
    )  # fmt: skip
    add(
        "--port", type=int, default=8000, metavar="N",
        help="port to listen on; 0 takes a free port (default: %(default)s)",
    )  # fmt: skip
    add(
        "--max-batch", type=int, metavar="N",
        help="largest number of requests that run together (default: 16)",
    )  # fmt: skip
    add(
        "--cache-bytes", type=int, metavar="N",
        help="largest total size in bytes of the cached states (default: 2**30)",
    )  # fmt: skip
    add(
        "--chat-template", type=filled, metavar="NAME|FILE",
        help="template for messages: world, raven, q-and-a, g1, or a Jinja file (default: chosen "
        "by the model's name and vocabulary)",
    )  # fmt: skip
    add(
        "--api-key-file", type=filled, metavar="FILE",
        help="file with API keys, one per line. The server also reads keys from the environment "
        "variable RWKV_API_KEY. Without any key, it accepts all requests",
    )  # fmt: skip
    add(
        "--state-folder", type=filled, metavar="DIR",
        help="folder for named states (default: named states are kept in memory)",
    )  # fmt: skip
    bounds = parser.add_argument_group("bounds")
    add = bounds.add_argument
    add(
        "--max-waiting", type=int, metavar="N",
        help="largest number of waiting requests; more are refused with status 429 (default: 256)",
    )  # fmt: skip
    add(
        "--max-prompt", type=int, metavar="N",
        help="largest number of tokens in a prompt (default: 131072)",
    )  # fmt: skip
    add(
        "--max-tokens", type=int, metavar="N",
        help="largest number of tokens in an answer (default: 16384)",
    )  # fmt: skip
    add(
        "--max-seconds", type=float, metavar="S",
        help="time limit of a request in seconds; its answer ends at the limit (default: 600)",
    )  # fmt: skip
    add(
        "--max-body", type=int, metavar="N",
        help="largest size of a request's body in bytes (default: 8388608)",
    )  # fmt: skip
    add(
        "--state-folder-bytes", type=int, metavar="N",
        help="largest total size in bytes of the states in --state-folder (default: 2**32)",
    )  # fmt: skip
    add(
        "--cors-origin", type=filled, action="append", metavar="ORIGIN",
        help="let web pages of this origin call the server; may be repeated",
    )  # fmt: skip


def _settings(args: argparse.Namespace) -> Settings:
    """Return the settings that the arguments give. Raises OptionError."""
    from rwkv_core.server.settings import Settings, read_api_keys

    key_file = None if args.api_key_file is None else Path(args.api_key_file)
    given = {
        name: getattr(args, name)
        for name in (
            "max_batch", "cache_bytes", "chat_template", "max_waiting", "max_prompt",
            "max_tokens", "max_seconds", "max_body", "state_folder_bytes",
        )
        if getattr(args, name) is not None
    }  # fmt: skip
    for name, value in given.items():
        if isinstance(value, int | float) and not value > (-1 if name == "cache_bytes" else 0):
            flag = name.replace("_", "-")
            raise OptionError(f"--{flag}: found {value}, expected a number above 0")
    if not 0 <= args.port < 2**16:
        raise OptionError(f"--port: found {args.port}, expected 0 to 65535")
    return Settings(
        **given,
        api_keys=read_api_keys(key_file),
        state_folder=None if args.state_folder is None else Path(args.state_folder),
        cors_origins=tuple(args.cors_origin or ()),
    )


def _run(args: argparse.Namespace) -> int:
    backend_options(args.options)
    try:
        import fastapi  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise OptionError(
            f"serve: {error.name} is not installed: pip install 'rwkv-core[serve]'"
        ) from None
    from rwkv_core.server.app import create_app
    from rwkv_core.server.service import Service

    service = Service(_settings(args), lambda: load_rwkv(args))
    listening = _listen(args.host, args.port)
    address = _address(listening)

    def show(running: Running) -> None:
        print(
            f"chat template: {printable(running.template.name)}\n"
            f"serving {printable(running.model_id)} at {address} (OpenAI's API: {address}/v1)",
            file=sys.stderr,
            flush=True,
        )

    def end() -> None:
        server.should_exit = True

    config = uvicorn.Config(
        create_app(service, show, end),
        log_level="warning",
        timeout_graceful_shutdown=GRACE_SECONDS,
        server_header=False,
    )
    server = uvicorn.Server(config)
    if not (service.settings.api_keys or listening.getsockname()[0] in ("127.0.0.1", "::1")):
        print("other machines can use this server, without a key", file=sys.stderr)
    server.run(sockets=[listening])
    if service.error is not None:
        raise service.error
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """Take the port, before the model is loaded. Raises OptionError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise OptionError(
            f"--host {host} --port {port}: cannot listen there: {error.strerror or error}"
        ) from None
    # Connections inherit this. asyncio sets it only on sockets that it opens itself. Without it,
    # an answer's second packet waits 40 ms for the client's acknowledgement of the first.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _address(listening: socket.socket) -> str:
    """Return the address that the server listens on, with the port that the system chose."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


COMMAND = Command(
    "serve",
    "serve the model over HTTP, with OpenAI's endpoints",
    _add_arguments,
    _run,
    "GET /health answers 200 once the server is ready for requests.\n\n"
    "  rwkv-core serve -m prose --port 8000\n"
    "  curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\\n"
    '    -d \'{"prompt": "It was a dark night", "max_tokens": 20}\'',
)
