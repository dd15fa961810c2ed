"""Finds and opens model files of every place and format, merges LoRA, and prequantizes models."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rwkv_core import plugins
from rwkv_core.architectures.base import Architecture
from rwkv_core.architectures.versions import VERSIONS
from rwkv_core.backends.tensor_ops import EPSILON
from rwkv_core.checkpoint import (
    BUILTIN_FORMATS,
    Checkpoint,
    CheckpointFormat,
    diagnose,
    folder,
    layer_norm_epsilon,
    open_checkpoint,
    sharded,
)
from rwkv_core.checkpoint.adapters import CONFIG_NAME, AdapterConfig, adapter_config
from rwkv_core.checkpoint.config_file import read_config
from rwkv_core.checkpoint.formats import HEAD_BYTES, matching_format
from rwkv_core.checkpoint.lora import Lora, LoraCheckpoint, holds_lora
from rwkv_core.checkpoint.pqth_writer import SUFFIX, check_quantizable, write_pqth
from rwkv_core.dtypes import GROUP_SIZE
from rwkv_core.errors import CheckpointError, DownloadError, OptionError
from rwkv_core.sources import fetch_beside, local_file
from rwkv_core.util.addresses import scheme_of
from rwkv_core.util.progress import OnProgress


def known_formats() -> list[CheckpointFormat]:
    """Return the file formats of plugins, then the built-in ones.

    Plugins' formats come first, since a built-in format may claim their files: every zip archive
    may be a damaged .pth.
    """
    return [*plugins.offered("rwkv_checkpoint_formats").values(), *BUILTIN_FORMATS]


def known_versions() -> list[Architecture]:
    """Return the RWKV versions that plugins add, then the built-in ones.

    A file's version is the first of them that recognizes the file's tensors.
    """
    return [*plugins.offered("rwkv_architectures").values(), *VERSIONS]


@contextmanager
def open_model(
    model: str | os.PathLike[str],
    lora: Lora | str | os.PathLike[str] | None = None,
) -> Iterator[Checkpoint]:
    """Open a model's file for a `with` statement, rescaled for a layer norm epsilon of 1e-5.

    Arguments:
        model: a path or an address; see `local_file`.
        lora: as for `load`.

    Raises the errors of `local_file`, `open_checkpoint` and `LoraCheckpoint`, and OptionError for
    an alpha without LoRA weights, or LoRA weights without an alpha.
    """
    path = local_file(model)
    place = lora.path if isinstance(lora, Lora) else lora
    lora = local_lora(lora) or Lora()
    formats = known_formats()
    with open_checkpoint(path, formats) as base:
        if lora.path is not None and place is not None:
            with open_checkpoint(lora.path, formats) as weights:
                config = _adapter_config(place, weights.path)
                alpha = _alpha(config, lora.alpha)
                merged = LoraCheckpoint(base, weights, alpha, config.by_root_of_rank)
                yield _rescaled(model, merged)
        elif lora.alpha is None:
            yield _rescaled(model, base)
        elif holds_lora(base):
            yield _rescaled(model, LoraCheckpoint(base, base, lora.alpha))
        else:
            raise OptionError(
                f"LoRA alpha: given without the path of a LoRA, and {base.path} holds no LoRA "
                "weights of its own; expected the file with them"
            )


def vocabulary_size(model: str | os.PathLike[str]) -> int | None:
    """Return a model's vocabulary size, from the embedding's shape; None without an embedding.

    Raises the errors of `open_model`.
    """
    with open_model(model) as checkpoint:
        embedding = checkpoint.tensors.get("emb.weight")
    return None if embedding is None or len(embedding.shape) != 2 else embedding.shape[0]


def local_lora(lora: Lora | str | os.PathLike[str] | None) -> Lora | None:
    """Return `lora` with a path on this machine, downloaded if it was an address; None for None."""
    if lora is None:
        return None
    path, alpha = lora if isinstance(lora, Lora) else (lora, None)
    return Lora(None if path is None else local_file(path), alpha)


def _rescaled(model: str | os.PathLike[str], checkpoint: Checkpoint) -> Checkpoint:
    """Return the model rescaled for the epsilon in transformers' configuration beside it."""
    if not checkpoint.has_transformers_names:
        return checkpoint
    config = _beside(model, checkpoint.path, layer_norm_epsilon.CONFIG_NAME)
    found = EPSILON if config is None else layer_norm_epsilon.configured_epsilon(config)
    if found == EPSILON:
        return checkpoint
    return layer_norm_epsilon.RescaledCheckpoint(checkpoint, found)


def _adapter_config(lora: str | os.PathLike[str], path: Path) -> AdapterConfig:
    """Read PEFT's configuration beside a LoRA."""
    config = _beside(lora, path, CONFIG_NAME)
    return AdapterConfig() if config is None else adapter_config(config)


def _beside(place: str | os.PathLike[str], path: Path, name: str) -> Path | None:
    """Return the configuration file `name` beside `path`, or beside the address `place`.

    None if there is none. Raises CheckpointError if the server sends something else.
    """
    if path.with_name(name).is_file():
        return path.with_name(name)
    from rwkv_core.sources import hub

    try:
        found = hub.beside(path, name)
        if found is not None or not (isinstance(place, str) and scheme_of(place)):
            return found
        found = fetch_beside(place, name)
    # For example no connection: the file was not there at an earlier download either.
    except DownloadError:
        return None
    if found is None:
        return None
    try:
        read_config(found)
    except CheckpointError:
        # An error page that the server sent must not stay in the cache.
        found.unlink(missing_ok=True)
        raise
    return found


def _alpha(config: AdapterConfig, given: float | None) -> Any:
    if given is not None:
        return given
    if config.alpha is None:
        raise OptionError(
            "LoRA alpha: not given; expected the alpha that the LoRA was trained with, which its "
            f"file does not hold (PEFT keeps it in an {CONFIG_NAME} beside it)"
        )
    return config.alpha


def model_files(place: Path) -> list[Path]:
    """Return the model files in a folder, recognized by their names and their first bytes.

    For a model in several files, this is the index file.
    """
    formats = known_formats()
    suffixes = {suffix for known in formats for suffix in known.suffixes}
    return [p for p in folder.models_in(place, suffixes) if _looks_like_a_model(p, formats)]


def _looks_like_a_model(path: Path, formats: Sequence[CheckpointFormat]) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return False
    return matching_format(path, head, formats)[0] is not None


@np.errstate(all="ignore")
def prequantize(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    bits: int = 8,
    group_size: int = GROUP_SIZE,
    on_progress: OnProgress | None = None,
    lora: Lora | str | os.PathLike[str] | None = None,
) -> Path:
    """Write `model` with its matrices in 8 or 4 bits to a file that loads on every backend.

    Arguments:
        model, lora: as for `load`.
        output: path of the new file. None: a .pqth beside the model's file, or in the current
            folder if `model` is no path, such as "prose".
        bits: 8 or 4 bits per weight, besides 32 bits per group (see `quantize`).
        group_size: number of weights in a row that share a scale and an offset.
        on_progress: called with the bytes of the model read so far and in all.

    Returns the new file's path. Raises CheckpointError if the model is damaged or quantized
    already, or the file cannot be written, and OptionError for a wrong option. A failure leaves no
    new file, and leaves an existing file unchanged.
    """
    source = local_file(model)
    lora = local_lora(lora)
    with open_model(source, lora) as checkpoint:
        target = _default_output(model, checkpoint.path) if output is None else Path(output)
        config = diagnose(checkpoint, known_versions())
        check_quantizable(checkpoint, config, bits, group_size)
        read = [checkpoint.path, *([Path(lora.path)] if lora and lora.path is not None else [])]
        if any(_same_file(path, target) for path in read):
            raise OptionError(f"output: {target} is a file that is read; name another")
        write_pqth(checkpoint, config, target, bits, group_size, on_progress)
    return target


def _default_output(model: str | os.PathLike[str], source: Path) -> Path:
    own = Path(model) in (source, source.parent)
    name = sharded.name_of_model(source.name)
    return (source.with_name(name) if own else Path(name)).with_suffix(SUFFIX)


def _same_file(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
