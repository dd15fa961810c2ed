"""The JSON files that Hugging Face's libraries put beside weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MAX_BYTES = 2**20


def read_config(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, None if there is none of at most a megabyte."""
    try:
        # A pipe would block.
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            return None
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
