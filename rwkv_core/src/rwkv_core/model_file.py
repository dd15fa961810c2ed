"""Model files in whatever place and format: finds and opens them, with a LoRA merged if one is
given, and prequantizes them."""

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
    epsilon,
    folder,
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
    """The formats of plugins, then those that rwkv-core reads itself.

    A plugin's come first, as its files may be of a kind that a built-in format would claim: every
    zip archive may be a damaged .pth.
    """
    return [*plugins.offered("rwkv_checkpoint_formats").values(), *BUILTIN_FORMATS]


def known_versions() -> list[Architecture]:
    """The RWKV versions that plugins add and the built-in ones, in the order they are asked."""
    return [*plugins.offered("rwkv_architectures").values(), *VERSIONS]


@contextmanager
def open_model(
    model: str | os.PathLike[str],
    lora: Lora | str | os.PathLike[str] | None = None,
) -> Iterator[Checkpoint]:
    """A model's file, opened for a `with` statement, as one of the layer norm epsilon 1e-5.

    Arguments:
        model: as `local_file` takes it: a path or an address.
        lora: as for `load`.

    Raises what `local_file`, `open_checkpoint` and `LoraCheckpoint` do, and OptionError for an
    alpha without LoRA weights or the other way round.
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
    """How many tokens a model knows, by what its file says of the embedding; None if it has none.

    Raises what `open_model` does.
    """
    with open_model(model) as checkpoint:
        embedding = checkpoint.tensors.get("emb.weight")
    return None if embedding is None or len(embedding.shape) != 2 else embedding.shape[0]


def local_lora(lora: Lora | str | os.PathLike[str] | None) -> Lora | None:
    """`lora` with its path on this machine, fetched as `local_file` does; None for None."""
    if lora is None:
        return None
    path, alpha = lora if isinstance(lora, Lora) else (lora, None)
    return Lora(None if path is None else local_file(path), alpha)


def _rescaled(model: str | os.PathLike[str], checkpoint: Checkpoint) -> Checkpoint:
    """The model with the epsilon of transformers' configuration beside it put into its weights."""
    if not checkpoint.has_transformers_names:
        return checkpoint
    config = _beside(model, checkpoint.path, epsilon.CONFIG_NAME)
    found = EPSILON if config is None else epsilon.configured_epsilon(config)
    return checkpoint if found == EPSILON else epsilon.RescaledCheckpoint(checkpoint, found)


def _adapter_config(lora: str | os.PathLike[str], path: Path) -> AdapterConfig:
    """What PEFT's configuration beside a LoRA says."""
    config = _beside(lora, path, CONFIG_NAME)
    return AdapterConfig() if config is None else adapter_config(config)


def _beside(place: str | os.PathLike[str], path: Path, name: str) -> Path | None:
    """The configuration `name` beside a model's file `path`, or beside its address `place`.

    Raises CheckpointError if what an address has there is none.
    """
    if path.with_name(name).is_file():
        return path.with_name(name)
    from rwkv_core.sources import hub

    try:
        found = hub.beside(path, name)
        if found is not None or not (isinstance(place, str) and scheme_of(place)):
            return found
        found = fetch_beside(place, name)
    # Such as no connection: what is not in the cache was not there before.
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
    """The files of a folder that are models by name and by how they begin.

    Of a model in several files it is the index.
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
        output: None writes a .pqth beside the model's file; for one that is no path of the
            user's, such as "prose", into the current folder.
        bits: 8 or 4 bits a weight, and 32 bits a group of weights (see `quantize`).
        group_size: weights of a row that share a scale and an offset.
        on_progress: called with the bytes of the model read so far and in all.

    Returns the file's path. Raises CheckpointError for a model that is damaged or quantized already
    and for a file that cannot be written, OptionError for an option. A failure leaves no new file,
    and an old one of that name as it was.
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
