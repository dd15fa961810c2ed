"""The JSON files that Hugging Face's libraries put beside weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rwkv_core.errors import CheckpointError

MAX_BYTES = 2**20


def read_config(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises CheckpointError if the file cannot be read, exceeds 1 MiB, or holds no JSON object.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        content = json.loads(text) if len(text) <= MAX_BYTES else None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: damaged: is no JSON object of at most 1 MiB; get it again with the weights "
            "beside it"
        )
    return content
