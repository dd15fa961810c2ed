"""What an operator decides about a server: its bounds, its keys, its template."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rwkv_core.errors import OptionError

# The environment's name for API keys, several between commas.
KEY_VARIABLE = "RWKV_API_KEY"


@dataclass(frozen=True)
class Settings:
    """Bounds and choices; requests change none of them.

    Attributes:
        max_batch, cache_bytes: see `Engine`.
        max_waiting: the most requests that wait; more get a 429.
        max_prompt, max_tokens: the most tokens of a prompt and of an answer.
        max_seconds: until a request ends with what there is.
        max_body: the most bytes of a request.
        body_seconds: how long a request's body may take to come.
        ping_seconds: how long a stream is silent before a comment keeps it open.
        chat_template: a template's name or a Jinja file; None chooses by the model.
        api_keys: any of them opens the server; none of them leaves it open.
        state_folder: where named states are kept; None keeps them in memory.
        state_bytes: the most bytes of states kept in memory.
        cors_origins: origins whose pages may call the server.
    """

    max_batch: int = 16
    cache_bytes: int = 2**30
    max_waiting: int = 256
    max_prompt: int = 2**17
    max_tokens: int = 2**14
    max_seconds: float = 600.0
    max_body: int = 2**23
    body_seconds: float = 30.0
    ping_seconds: float = 5.0
    chat_template: str | None = None
    api_keys: tuple[str, ...] = ()
    state_folder: Path | None = None
    state_bytes: int = 2**28
    cors_origins: tuple[str, ...] = ()


def read_api_keys(
    path: Path | None, environment: Mapping[str, str] = os.environ
) -> tuple[str, ...]:
    """Return the keys of a file, one a line, and those of the environment.

    Lines that begin with # are comments. Raises OptionError for a file without a key.
    """
    keys = [key.strip() for key in environment.get(KEY_VARIABLE, "").split(",")]
    if path is not None:
        try:
            lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(f"{path}: cannot be read: {error}") from None
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise OptionError(f"{path}: found no key, expected one on each line")
        keys += found
    return tuple(filter(None, keys))
