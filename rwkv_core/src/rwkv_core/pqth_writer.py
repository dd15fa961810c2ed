"""Writes a model, its matrices quantized, to a `.pqth` file: one tensor in memory at a time."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from rwkv_core.architectures.base import Config
from rwkv_core.checkpoint import Checkpoint, check_tensor, diagnose, sharded
from rwkv_core.checkpoint.formats import HEAD_BYTES
from rwkv_core.checkpoint.pqth import FORMAT, PARTS, metadata
from rwkv_core.checkpoint.safetensors_writer import SafetensorsWriter
from rwkv_core.dtypes import GROUP_SIZE
from rwkv_core.errors import CheckpointError, OptionError, RWKVError
from rwkv_core.loading import fingerprint_of
from rwkv_core.model_file import open_model
from rwkv_core.quantization import check_group_size, quantize
from rwkv_core.sources import local_file
from rwkv_core.util.atomic_write import atomic_write

SUFFIX = ".pqth"

OnBytes = Callable[[int, int], object]


@np.errstate(all="ignore")
def prequantize(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    bits: int = 8,
    group_size: int = GROUP_SIZE,
    on_progress: OnBytes | None = None,
    lora: str | os.PathLike[str] | None = None,
    lora_alpha: float | None = None,
) -> Path:
    """Write `model` with its matrices in 8 or 4 bits to a file that loads on every backend.

    Arguments:
        model, lora, lora_alpha: as for `load`.
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
    lora_file = None if lora is None else local_file(lora)
    with open_model(source, lora_file, lora_alpha) as checkpoint:
        target = _default_output(model, checkpoint.path) if output is None else Path(output)
        config = diagnose(checkpoint)
        check_quantizable(checkpoint, config, bits, group_size)
        if _same_file(checkpoint.path, target) or (lora_file and _same_file(lora_file, target)):
            raise OptionError(f"output: {target} is a file that is read; name another")
        _check_replaceable(target)
        try:
            with atomic_write(target) as file:
                _write(checkpoint, config, bits, group_size, file, on_progress)
        except OSError as error:
            raise CheckpointError(
                f"{target}: cannot be written: {error.strerror or error}"
            ) from error
    return target


def _default_output(model: str | os.PathLike[str], source: Path) -> Path:
    own = Path(model) in (source, source.parent)
    name = source.name.removesuffix(sharded.SUFFIX)
    return (source.with_name(name) if own else Path(name)).with_suffix(SUFFIX)


def _check_replaceable(target: Path) -> None:
    """Raise OptionError for a file there that is of another kind and not empty."""
    try:
        if not target.is_file() or not target.stat().st_size:
            return
        with target.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return  # What is wrong with it shows when it is written.
    if not FORMAT.matches(target, head):
        raise OptionError(
            f"output: {target} is a file of another kind, which a prequantized model must not "
            "replace; name another"
        )


def _same_file(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def check_quantizable(checkpoint: Checkpoint, config: Config, bits: int, group_size: int) -> None:
    """Raise CheckpointError if the model is quantized, OptionError for groups it cannot have."""
    for name, weight in config.weights().items():
        if weight.role == "matrix":
            if checkpoint.read_quantized(name) is not None:
                raise CheckpointError(
                    f"{checkpoint.path}: is quantized already; use the file from before it was"
                )
            check_group_size(weight.shape[1], bits, group_size)


def _write(
    checkpoint: Checkpoint,
    config: Config,
    bits: int,
    group_size: int,
    file: BinaryIO,
    on_progress: OnBytes | None,
) -> None:
    weights = config.weights()
    matrices = [name for name, weight in weights.items() if weight.role == "matrix"]
    parts = {name: [f"{name}.{part}" for part in PARTS] for name in matrices}
    names = [one for name in weights for one in parts.get(name, [name])]
    about = metadata(bits, group_size, fingerprint_of(checkpoint, config), config.sizes)
    writer = SafetensorsWriter(file, names, about)
    total = sum(checkpoint.tensors[name].n_bytes for name in weights)
    done = 0
    for name in weights:
        array = checkpoint.read(name)
        check_tensor(checkpoint, name, array)
        try:
            matrix = quantize(array, bits, group_size) if name in parts else None
        except RWKVError as error:
            raise CheckpointError(f"{checkpoint.path}: {error}") from None
        if matrix is None:
            writer.append(name, array)
        else:
            for part in PARTS:
                writer.append(f"{name}.{part}", getattr(matrix, part))
        done += checkpoint.tensors[name].n_bytes
        if on_progress is not None:
            on_progress(done, total)
    writer.finish()
