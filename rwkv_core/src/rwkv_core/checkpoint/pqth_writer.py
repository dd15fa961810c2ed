"""Writes a model with quantized matrices to a `.pqth` file, with one tensor in memory at a time."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from rwkv_core.architectures.base import Config
from rwkv_core.checkpoint.fingerprint import fingerprint_of
from rwkv_core.checkpoint.formats import HEAD_BYTES
from rwkv_core.checkpoint.pqth import FORMAT, PARTS, metadata
from rwkv_core.checkpoint.reader import Checkpoint
from rwkv_core.checkpoint.safetensors_writer import SafetensorsWriter
from rwkv_core.checkpoint.validation import check_tensor
from rwkv_core.errors import CheckpointError, OptionError, RWKVError
from rwkv_core.quantization import check_group_size, quantize
from rwkv_core.util.atomic_write import atomic_write
from rwkv_core.util.progress import OnProgress

SUFFIX = ".pqth"


def write_pqth(
    checkpoint: Checkpoint,
    config: Config,
    target: Path,
    bits: int,
    group_size: int,
    on_progress: OnProgress | None = None,
) -> None:
    """Write the model with quantized matrices to `target`.

    `on_progress` is called with the bytes read so far and in all. Raises CheckpointError if a
    tensor cannot be quantized or `target` cannot be written; OptionError if `target` is a file of
    another kind.
    """
    _check_replaceable(target)
    try:
        with atomic_write(target) as file:
            _write_tensors(checkpoint, config, bits, group_size, file, on_progress)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written: {error.strerror or error}") from error


def _check_replaceable(target: Path) -> None:
    """Raise OptionError if `target` is a file of another kind and not empty."""
    try:
        if not target.is_file() or not target.stat().st_size:
            return
        with target.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return  # Writing raises the error.
    if not FORMAT.matches(target, head):
        raise OptionError(
            f"output: {target} is a file of another kind, which a prequantized model must not "
            "replace; name another"
        )


def check_quantizable(checkpoint: Checkpoint, config: Config, bits: int, group_size: int) -> None:
    """Raise CheckpointError if the model is quantized already, OptionError for a wrong group size.

    `group_size` is in weights.
    """
    for name, weight in config.weights().items():
        if weight.role == "matrix":
            if checkpoint.read_quantized(name) is not None:
                raise CheckpointError(
                    f"{checkpoint.path}: is quantized already; use the original file"
                )
            check_group_size(weight.shape[1], bits, group_size)


def _write_tensors(
    checkpoint: Checkpoint,
    config: Config,
    bits: int,
    group_size: int,
    file: BinaryIO,
    on_progress: OnProgress | None,
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
