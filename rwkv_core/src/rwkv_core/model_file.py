"""Opens a model wherever it is, in whatever format, with a LoRA merged if one is given."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from rwkv_core import plugins
from rwkv_core.checkpoint import BUILTIN_FORMATS, Checkpoint, CheckpointFormat, open_checkpoint
from rwkv_core.checkpoint.lora import LoraCheckpoint, holds_lora
from rwkv_core.errors import OptionError
from rwkv_core.sources import local_file


def known_formats() -> list[CheckpointFormat]:
    """The formats that rwkv-core reads, then those of plugins."""
    return [*BUILTIN_FORMATS, *plugins.offered("rwkv_checkpoint_formats").values()]


@contextmanager
def open_model(
    model: str | os.PathLike[str],
    lora: str | os.PathLike[str] | None = None,
    lora_alpha: float | None = None,
) -> Iterator[Checkpoint]:
    """A model's file, opened for a `with` statement.

    Arguments:
        model, lora: as `local_file` takes them: paths or addresses.
        lora_alpha: the alpha that the LoRA was trained with. Without `lora` the file's own LoRA
            weights are merged: a training saves the two in one file too.

    Raises what `local_file`, `open_checkpoint` and `LoraCheckpoint` do, and OptionError for an
    alpha without LoRA weights or the other way round.
    """
    if lora is not None and lora_alpha is None:
        raise OptionError(
            "lora_alpha: not given beside lora; expected the alpha that the LoRA was trained with, "
            "which its file does not hold"
        )
    path = local_file(model)
    lora_path = None if lora is None else local_file(lora)
    formats = known_formats()
    with open_checkpoint(path, formats) as base:
        if lora_path is not None:
            with open_checkpoint(lora_path, formats) as weights:
                yield LoraCheckpoint(base, weights, lora_alpha)
        elif lora_alpha is None:
            yield base
        elif holds_lora(base):
            yield LoraCheckpoint(base, base, lora_alpha)
        else:
            raise OptionError(
                f"lora_alpha: given without lora, and {base.path} holds no LoRA weights of its "
                "own; expected lora, the file with them"
            )
