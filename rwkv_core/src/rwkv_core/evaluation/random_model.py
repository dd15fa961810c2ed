"""Random models of any shape, for timing: quick to make, written without holding them in memory."""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from rwkv_core.checkpoint.validation import expected_shapes
from rwkv_core.config import Shape

# A prime: repeats of the block never line up with the rows of a matrix.
_BLOCK = 1_000_003


def random_values(count: int, seed: int) -> NDArray[np.float32]:
    """`count` float32 of mean 0 and variance 1, a block of a million of them repeated."""
    rng = np.random.default_rng(seed)
    return np.resize(rng.standard_normal(min(count, _BLOCK), np.float32), count)


def write_random_model(path: str | os.PathLike[str], shape: Shape) -> None:
    """Write a random RWKV-4 of `shape` as float16 safetensors, 2 bytes a parameter."""
    sizes = expected_shapes(shape)
    header, offset = {}, 0
    for name, size in sizes.items():
        end = offset + 2 * math.prod(size)
        header[name] = {"dtype": "F16", "shape": size, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with Path(path).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for i, (name, size) in enumerate(sizes.items()):
            center, spread = _distribution(name, size)
            count = math.prod(size)
            block = center + spread * random_values(min(count, _BLOCK), seed=i)
            _write_repeated(file, block.astype("<f2").tobytes(), 2 * count)


def _distribution(name: str, size: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation that keep activations in the range of a trained model's."""
    if name.endswith(("time_decay", "time_first", ".bias")):
        return 0.0, 0.3
    if "time_mix" in name:
        return 0.5, 0.1
    if len(size) == 1:
        return 1.0, 0.1
    # Logits this far apart have, at 50,277 tokens, the entropy that a trained model's have, so that
    # sampling meets as many likely tokens as there.
    gain = 4.0 if name == "head.weight" else 1.0
    return 0.0, gain * size[1] ** -0.5


def _write_repeated(file: BinaryIO, block: bytes, n_bytes: int) -> None:
    for start in range(0, n_bytes, len(block)):
        file.write(block[: n_bytes - start])
