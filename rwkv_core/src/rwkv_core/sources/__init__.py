"""Finds a model's file: from a path, the name of a bundled model, or an address."""

from __future__ import annotations

import os
import re
from pathlib import Path

from rwkv_core import bundled
from rwkv_core.errors import CheckpointError, DownloadError
from rwkv_core.util.addresses import scheme_of, shown


def local_file(model: str | os.PathLike[str]) -> Path:
    """Return the path of a model's file on this machine, downloaded into a cache if necessary.

    Arguments:
        model: one of: a path; "prose" or "prose7" for a bundled model; hf://owner/repo/file, or
            hf://owner/repo for a repository of transformers or PEFT, both with an optional
            @revision after the repository; the address of a file on Hugging Face; any http(s)
            address. If an address ends in #sha256=<64 hex digits>, the file must have this digest.

    Raises DownloadError if an address cannot be downloaded, and CheckpointError if `model` is not a
    str or Path. A missing path is returned too: opening it raises the error.
    """
    if isinstance(model, str) and model in bundled.MODELS:
        return bundled.MODELS[model]
    if isinstance(model, str) and scheme_of(model):
        return _fetch(model.strip())
    try:
        return Path(model)
    except TypeError:
        raise CheckpointError(
            f"path: found a {type(model).__name__}, expected a model file's path (str or Path)"
        ) from None


def _fetch(address: str) -> Path:
    from rwkv_core.sources import download, hub, repository

    if not address.lower().startswith(("hf://", "http://", "https://")):
        raise DownloadError(
            f"{shown(address)}: expected a path, or an address that begins with hf://, https:// "
            "or http://"
        )
    address, sha256 = _split_checksum(address)
    if sha256 is None and (model := repository.fetch_repository(address)):
        return model
    place = hub.parse(address)
    if place is None:
        index = download.fetch(address, sha256)
        return repository.with_shards(index, lambda _, name: download.fetch_part(address, name))
    return repository.with_shards(hub.fetch(place, sha256), hub.beside)


def fetch_beside(address: str, name: str) -> Path | None:
    """Download the file `name` beside the file at `address`, into the folder of that file's copy.

    Returns the path; None if there is no such file. Raises DownloadError if the address is
    malformed or the server cannot be reached.
    """
    from rwkv_core.sources import download, hub

    address, _ = _split_checksum(address.strip())
    place = hub.parse(address)
    if place is None:
        return download.fetch_beside(address, name)
    try:
        return hub.fetch(place.beside(name))
    except hub.NotInRepository:
        return None


def _split_checksum(address: str) -> tuple[str, str | None]:
    bare, _, fragment = address.partition("#")
    if not fragment:
        return bare, None
    found = re.fullmatch(r"sha256=([0-9A-Fa-f]{64})", fragment)
    if not found:
        raise DownloadError(
            f"{shown(address)}: expected #sha256= and 64 hex digits, or nothing, after #"
        )
    return bare, found[1].lower()
