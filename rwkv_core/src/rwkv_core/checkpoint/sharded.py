"""Reads `*.index.json`: a model in several files, as Hugging Face's libraries save it.

    {"metadata": {...}, "weight_map": {"head.weight": "model-00001-of-00002.safetensors", ...}}

The files (shards) are .safetensors or torch's zips, and lie beside the index. transformers writes
`model.safetensors.index.json` or `pytorch_model.bin.index.json`, and for a variant, such as its
fp16, `model.safetensors.index.fp16.json`.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from rwkv_core.checkpoint import pth, safetensors
from rwkv_core.checkpoint.memory_map import MappedCheckpoint, MappedFile, Piece
from rwkv_core.checkpoint.reader import CheckpointFormat, read_head
from rwkv_core.errors import CheckpointError

_SUFFIX = re.compile(r"\.index(\.[^.]+)?\.json$")
MAX_INDEX_BYTES = 2**24
MAX_NAME_BYTES = 255  # limit of common file systems
MAX_SHARDS = 500  # each is an open file


def _matches(path: Path, head: bytes) -> bool:
    return head.lstrip().startswith(b"{") and (is_index(path.name) or _KEY in head)


_KEY = b'"weight_map"'


def is_index(name: str) -> bool:
    """Return whether a file is named as an index."""
    return bool(_SUFFIX.search(name))


def name_of_model(name: str) -> str:
    """Return the name that the model would have as one file: `name` without an index's suffix."""
    return _SUFFIX.sub("", name)


def open_sharded(path: Path) -> MappedCheckpoint:
    """Open the shards that an index names, as one checkpoint.

    Raises CheckpointError if the index is malformed or names a file in another folder, and if a
    shard is missing, is damaged, or lacks a tensor that the index says is in it.
    """
    places = read_index(path)
    shards: dict[str, dict[str, Piece]] = {}
    pieces = {}
    for tensor, name in places.items():
        if name not in shards:
            shards[name] = _shard(path, name)
        if tensor not in shards[name]:
            raise CheckpointError(
                f"{path}: says that {tensor[:80]!r} is in {name}, which does not hold it; "
                "download both again"
            )
        pieces[tensor] = shards[name][tensor]
    return MappedCheckpoint(path, FORMAT.name, pieces)


def read_index(path: Path) -> dict[str, str]:
    """Return the name of the shard that holds each tensor, by the tensor's name in the file.

    Raises CheckpointError if the index cannot be read, or names a file in another folder.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_INDEX_BYTES + 1)
        places = json.loads(text).get("weight_map") if len(text) <= MAX_INDEX_BYTES else None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; check the path") from error
    except (ValueError, AttributeError, RecursionError):
        places = None
    if not isinstance(places, dict) or not places:
        raise CheckpointError(
            f"{path}: is a JSON file, but no index of a model's shards: expected a weight_map of "
            "tensors; name the file with the weights (.pth, .safetensors or .bin)"
        )
    names = {name if isinstance(name, str) else "" for name in places.values()}
    for name in names:
        # On Windows a backslash and a colon lead to another folder, too.
        is_name = name.isprintable() and len(name.encode()) <= MAX_NAME_BYTES
        if name in ("", ".", "..") or not is_name or set(name) & set("/\\:"):
            raise CheckpointError(
                f"{path}: names a shard {name[:80]!r}, expected the name of a file beside the index"
            )
    if len(names) > MAX_SHARDS:
        raise CheckpointError(f"{path}: names {len(names)} shards, expected at most {MAX_SHARDS}")
    return places


def shard_names(path: Path) -> list[str]:
    """Return the sorted names of an index's files. Raises CheckpointError; see `read_index`."""
    return sorted(set(read_index(path).values()))


def _shard(index: Path, name: str) -> dict[str, Piece]:
    path = index.with_name(name)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file; {index.name} needs it beside itself")
    head = read_head(path)
    if pth.FORMAT.matches(path, head):
        return pth.pth_pieces(MappedFile(path))
    if safetensors.FORMAT.matches(path, head):
        return safetensors.safetensors_pieces(MappedFile(path))[0]
    raise CheckpointError(
        f"{path}: a shard of {index.name} that is neither safetensors nor torch's; "
        "download it again"
    )


FORMAT = CheckpointFormat(
    "sharded", "*.index.json, a model in several .safetensors or .bin", _matches, open_sharded
)
