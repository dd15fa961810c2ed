"""Finds the model files in a folder, and the one to load when a user names the folder."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from rwkv_core.checkpoint.sharded import is_index, shard_names
from rwkv_core.errors import CheckpointError

# Names of the files that transformers and PEFT save, in the order in which transformers looks.
USUAL_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
_SHARD = re.compile(r"-\d{5}-of-\d{5}\b")


def model_in(folder: Path, suffixes: Collection[str]) -> Path:
    """Return the model file in a folder: the first of `USUAL_NAMES`, or the only model file.

    `suffixes` are the endings of model files' names. Raises CheckpointError if there is no model,
    or if there are several and none has a usual name.
    """
    try:
        for name in USUAL_NAMES:
            if (folder / name).is_file():
                return folder / name
        files = _files(folder, suffixes)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read: {error.strerror or error}") from None
    models = _without_shards(files)
    if len(models) == 1:
        return models[0]
    if models:
        raise CheckpointError(
            f"{folder}: a folder with several models ({_named(models)}); name one file"
        )
    if files:
        raise CheckpointError(
            f"{folder}: a folder with parts of a model ({_named(files)}), but without "
            "their .index.json; download that too"
        )
    raise CheckpointError(f"{folder}: a folder that holds no model; name the model file")


def models_in(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Return the files with a model's name. For a model in several files, only the index counts."""
    try:
        models = _without_shards(_files(folder, suffixes))
    except OSError:
        return []
    return [path for path in models if not is_index(path.name) or _shards(path)]


def model_bytes(path: Path) -> int:
    """Return the size of a model's file in bytes; for an index, the size of its existing files."""
    files = [path.with_name(name) for name in _shards(path)] if is_index(path.name) else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Return model files and indexes, sorted. Raises OSError."""
    # Not with `glob`: a plugin's suffix may hold a character that is special there.
    return sorted(
        path
        for path in folder.iterdir()
        if path.name.endswith(tuple(suffixes)) or is_index(path.name)
    )


def _without_shards(files: Sequence[Path]) -> list[Path]:
    shards = {name for path in files if is_index(path.name) for name in _shards(path)}
    return [
        path
        for path in files
        if is_index(path.name) or not (path.name in shards or _SHARD.search(path.name))
    ]


def _shards(index: Path) -> list[str]:
    """Return the names of an index's files; empty if the file is damaged or not an index."""
    try:
        return shard_names(index)
    except CheckpointError:
        return []


def _named(files: Sequence[Path]) -> str:
    return ", ".join(path.name for path in files[:4]) + (", ..." if len(files) > 4 else "")
