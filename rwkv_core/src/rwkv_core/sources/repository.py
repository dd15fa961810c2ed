"""Models of several files on the hub: repositories named without a file, and shards of an index."""

from __future__ import annotations

import re
from pathlib import Path

from rwkv_core.checkpoint import folder, sharded
from rwkv_core.errors import DownloadError
from rwkv_core.sources import hub

_REPOSITORY = re.compile(r"hf://[^/@?%]+/[^/@?%]+(?:@[^/?]+)?/?", re.IGNORECASE)
_EXPECTED = "expected hf://owner/repo/file, or a repository of transformers or PEFT"


def fetch_repository(address: str) -> Path | None:
    """The model file of a repository, None if the address names a file. Raises DownloadError."""
    if not _REPOSITORY.fullmatch(address):
        return None
    for name in folder.USUAL_NAMES:
        place = hub.parse(f"{address.rstrip('/')}/{name}")
        assert place is not None
        try:
            return with_shards(hub.fetch(place))
        except hub.NotInRepository:
            continue
        except DownloadError as error:
            raise DownloadError(f"{error}; {_EXPECTED}") from None
    names = ", ".join(folder.USUAL_NAMES)
    raise DownloadError(f"{address}: holds none of {names}; {_EXPECTED}")


def with_shards(path: Path) -> Path:
    """`path`, after the shards that it needs, if it is an index, were fetched beside it."""
    if path.name.endswith(sharded.SUFFIX):
        for name in sharded.shard_names(path):
            hub.beside(path, name)
    return path
