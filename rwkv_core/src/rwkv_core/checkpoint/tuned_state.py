"""Reads state-tuned files. State tuning trains an initial state; the file holds only this state.

A file holds only the tensor `blocks.N.att.time_state` of each layer N, [H, size of a head, size of
a head]. For each head this is a matrix with one row for each value channel and one column for each
key channel, in RWKV-5, 6 and 7 alike. The `rwkv` package keeps the states of RWKV-5 and 6
transposed, so it transposes the matrices of a file. web-rwkv's converter makes a .st of such a
.pth, with transposed matrices; this module transposes them back.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_core.architectures.base import Config, H, N
from rwkv_core.checkpoint import pth, safetensors
from rwkv_core.checkpoint.reader import Checkpoint, read_head
from rwkv_core.checkpoint.validation import FLOATS, check_tensor
from rwkv_core.errors import CheckpointError, StateError
from rwkv_core.state import check_is_file

_NAME = re.compile(r"blocks\.([0-9]+)\.att\.time_state")


def is_tuned_state(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is state-tuned. Raises StateError; see `open_tuned_state`."""
    tuned = open_tuned_state(path)
    if tuned is not None:
        tuned.close()
    return tuned is not None


def open_tuned_state(place: str | os.PathLike[str]) -> Checkpoint | None:
    """Open a state-tuned file; None for a file of another kind.

    Raises StateError if there is no file, or it is a .pth that is damaged or holds other tensors.
    """
    check_is_file(place)
    path = Path(place)
    is_pth = False
    try:
        is_pth = pth.FORMAT.matches(path, read_head(path))
        stored = pth.open_pth(path) if is_pth else safetensors.open_safetensors(path)
    except CheckpointError as error:
        if is_pth:
            raise StateError(str(error)) from None
        return None
    if is_pth:
        return _checked(stored)
    if any(map(_NAME.fullmatch, stored.tensors)):
        return _checked(stored)
    stored.close()
    return None


def _checked(checkpoint: Checkpoint) -> Checkpoint:
    other = next((name for name in checkpoint.tensors if not _NAME.fullmatch(name)), None)
    if other is None:
        return checkpoint
    checkpoint.close()
    raise StateError(
        f"{checkpoint.path}: not a state file: it holds {other}, expected one that save_state "
        "wrote, or a state-tuned one that holds blocks.N.att.time_state alone"
    )


def read_tuned_state(checkpoint: Checkpoint, config: Config) -> NDArray[Any]:
    """Return the state for a model of these sizes, float64 [L, 2 + N, D].

    Raises StateError if the file is damaged, or is for a model of other sizes.
    """
    sizes, architecture = config.sizes, config.architecture
    if not {H, N} <= sizes.keys():
        raise StateError(
            f"{checkpoint.path}: a state-tuned file, expected a model of RWKV-5 to RWKV-7: "
            f"{architecture.title} has no state of this kind"
        )
    expected = (sizes[H], sizes[N], sizes[N])
    names = [f"blocks.{i}.att.time_state" for i in range(config.n_layer)]
    found = [tensor.shape for tensor in checkpoint.tensors.values()]
    if checkpoint.tensors.keys() != set(names) or set(found) != {expected}:
        raise StateError(
            f"{checkpoint.path}: a state-tuned file of {len(found)} layers of {list(found[0])}, "
            f"expected {config.n_layer} of {list(expected)} for this {architecture.title}; load "
            "the model that it was trained on"
        )
    state = config.empty_state()
    for i, name in enumerate(names):
        matrices = _read(checkpoint, name)  # [H, V, K]
        state[i, -sizes[N] :] = matrices.transpose(1, 0, 2).reshape(sizes[N], -1)
    return state


def _read(checkpoint: Checkpoint, name: str) -> NDArray[Any]:
    if checkpoint.tensors[name].dtype not in FLOATS:
        raise StateError(
            f"{checkpoint.path}: {name} is of type {checkpoint.tensors[name].dtype}, expected "
            "float16, bfloat16, float32 or float64"
        )
    array = checkpoint.read(name)
    try:
        check_tensor(checkpoint, name, array)
    except CheckpointError as error:
        raise StateError(str(error)) from None
    if checkpoint.format == safetensors.FORMAT.name:
        array = array.transpose(0, 2, 1)
    return array.astype(np.float64)
