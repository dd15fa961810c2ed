"""Where a model comes from: a path, the shipped model's name, or an address to fetch it from."""

from __future__ import annotations

import os
import re
from pathlib import Path

from rwkv_core import bundled
from rwkv_core.errors import CheckpointError, DownloadError
from rwkv_core.util.addresses import scheme_of, shown


def local_file(model: str | os.PathLike[str]) -> Path:
    """The file on this machine that `model` stands for, fetched into a cache if need be.

    Arguments:
        model: a path; "prose" for the shipped model; hf://owner/repo/file, or hf://owner/repo for
            what transformers or PEFT saved, with @revision after the repository; the address of a
            file on Hugging Face; or any http(s) address. An address may end in
            #sha256=<64 hex digits>, which the file is then checked against.

    Raises DownloadError for an address that cannot be fetched, CheckpointError for what is no
    path. Whether a path exists is for whoever opens it to say.
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
    """Fetch the file `name` beside the one at an address, to the folder of the latter's copy.

    None if there is none. Raises DownloadError if the server cannot be reached, or for the address.
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
