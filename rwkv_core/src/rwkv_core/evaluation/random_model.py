"""Writes random models of any size, for timing, without holding them in memory."""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from rwkv_core.architectures.base import Config

# A prime, so that repeats of the block never line up with the rows of a matrix.
_BLOCK = 1_000_003


def random_values(count: int, seed: int) -> NDArray[np.float32]:
    """Return float32 [count] of mean 0 and variance 1: a block of a million values, repeated."""
    rng = np.random.default_rng(seed)
    return np.resize(rng.standard_normal(min(count, _BLOCK), np.float32), count)


def write_random_model(path: str | os.PathLike[str], config: Config) -> None:
    """Write a random model of these sizes as float16 safetensors, 2 bytes per parameter."""
    weights = config.weights()
    header, offset = {}, 0
    for name, weight in weights.items():
        end = offset + 2 * weight.size
        header[name] = {"dtype": "F16", "shape": weight.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with Path(path).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for i, weight in enumerate(weights.values()):
            spread = weight.spread
            if weight.role != "vector":
                n_in = weight.shape[-2] if weight.role == "low_rank" else weight.shape[1]
                spread /= math.sqrt(n_in)
            block = weight.mean + spread * random_values(min(weight.size, _BLOCK), seed=i)
            _write_repeated(file, block.astype("<f2").tobytes(), 2 * weight.size)


def _write_repeated(file: BinaryIO, block: bytes, n_bytes: int) -> None:
    for start in range(0, n_bytes, len(block)):
        file.write(block[: n_bytes - start])
