"""Downloads models of several files: a whole repository of the hub, or the shards of an index."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from rwkv_core.checkpoint import folder, sharded
from rwkv_core.errors import DownloadError
from rwkv_core.sources import hub

_REPOSITORY = re.compile(r"hf://[^/@?%]+/[^/@?%]+(?:@[^/?]+)?/?", re.IGNORECASE)
_EXPECTED = "expected hf://owner/repo/file, or a repository of transformers or PEFT"


def fetch_repository(address: str) -> Path | None:
    """Download a repository's model. Return its file; None if the address names a file.

    Raises DownloadError if the repository holds no model file or cannot be downloaded.
    """
    if not _REPOSITORY.fullmatch(address):
        return None
    for name in folder.USUAL_NAMES:
        place = hub.parse(f"{address.rstrip('/')}/{name}")
        assert place is not None
        try:
            return with_shards(hub.fetch(place), hub.beside)
        except hub.NotInRepository:
            continue
        except DownloadError as error:
            raise DownloadError(f"{error}; {_EXPECTED}") from None
    names = ", ".join(folder.USUAL_NAMES)
    raise DownloadError(f"{address}: holds none of {names}; {_EXPECTED}")


def with_shards(path: Path, fetch_beside: Callable[[Path, str], object]) -> Path:
    """Return `path`; if it is an index, its shards are downloaded beside it first.

    `fetch_beside(path, name)` downloads the file `name` into the folder of `path`.
    """
    if sharded.is_index(path.name):
        for name in sharded.shard_names(path):
            fetch_beside(path, name)
    return path
