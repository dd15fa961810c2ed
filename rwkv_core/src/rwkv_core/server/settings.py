"""The settings of a server: its bounds, its API keys and its chat template."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rwkv_core.errors import OptionError

# Environment variable with API keys, separated by commas.
KEY_VARIABLE = "RWKV_API_KEY"


@dataclass(frozen=True)
class Settings:
    """The operator's settings. Requests cannot change them.

    Attributes:
        max_batch, cache_bytes: see `Engine`.
        max_waiting: largest number of waiting requests; more are refused with status 429.
        max_prompt, max_tokens: largest number of tokens in a prompt and in an answer.
        max_seconds: time limit of a request in seconds. At the limit, the answer ends with the text
            so far.
        max_body: largest size of a request's body in bytes.
        body_seconds: time limit in seconds for receiving a request's body.
        ping_seconds: seconds of silence in a stream before a comment is sent to keep it open.
        chat_template: a template's name or a Jinja file; None chooses by the model's name and
            vocabulary.
        api_keys: a request needs one of these keys; if empty, requests need no key.
        state_folder: folder for named states; None keeps them in memory.
        state_folder_bytes: largest total size in bytes of named states in the folder.
        state_bytes: largest total size in bytes of named states in memory, and of stored answers.
        cors_origins: origins of web pages that may call the server.
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
    state_folder_bytes: int = 2**32
    state_bytes: int = 2**28
    cors_origins: tuple[str, ...] = ()


def read_api_keys(
    path: Path | None, environment: Mapping[str, str] = os.environ
) -> tuple[str, ...]:
    """Return the keys in the environment and in a file with one key per line.

    Lines that begin with # are comments. Raises OptionError for a file that cannot be read or has
    no key.
    """
    keys = [key.strip() for key in environment.get(KEY_VARIABLE, "").split(",")]
    if path is not None:
        try:
            lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(f"{path}: cannot be read: {error}") from None
        found = [line for line in lines if line and not line.startswith("#")]
        if not found:
            raise OptionError(f"{path}: found no key, expected one key per line")
        keys += found
    return tuple(filter(None, keys))
