"""How much memory a model takes, computed from its shape."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from rwkv_core.backends.tensor_ops import MOST_TOKENS

if TYPE_CHECKING:
    from rwkv_core.checkpoint import Shape

_PILE_VOCAB = 50277
# Layers and width of the RWKV-4 models that BlinkDL published, trained on the Pile.
_KNOWN = {
    "169M": (12, 768),
    "430M": (24, 1024),
    "1.5B": (24, 2048),
    "3B": (32, 2560),
    "7B": (32, 4096),
    "14B": (40, 5120),
}
# A group of 64 quantized weights shares a scale and an offset of 16 bits each.
_PER_GROUP = 4 / 64
BYTES_PER_WEIGHT: Mapping[str, float] = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int8": 1 + _PER_GROUP,
    "int4": 0.5 + _PER_GROUP,
}
"""Bytes that one weight of a matrix takes, by dtype; of int8 and int4 in groups of 64, which a
backend need not keep to: see `TensorOps.matrix_bytes`."""
_FLOAT32 = 4


class Counts(NamedTuple):
    """Numbers of parameters, by how they are kept."""

    embedding: int
    vectors: int
    block_matrices: int
    head: int

    @property
    def matrices(self) -> int:
        """Parameters in the matrices that every token is multiplied with."""
        return self.block_matrices + self.head

    @property
    def total(self) -> int:
        return self.embedding + self.vectors + self.matrices


@dataclass(frozen=True)
class Memory:
    """What a model takes, in bytes.

    Attributes:
        parameters: their number.
        weights: for each dtype of the matrices: matrices, vectors and embedding together.
        state: one sequence's state with its logits, in float32.
        prefill: the most that the vectors of a chunk of 512 tokens take beside the weights.
    """

    name: str
    shape: Shape
    parameters: int
    weights: dict[str, int]
    state: int
    prefill: int


def count_parameters(shape: Shape) -> Counts:
    """The parameters of an RWKV-4 of this shape."""
    n_layer, d, f, v = shape
    # A block: 5 token-shift mixes, decay and first, and two layer norms of a weight and a bias.
    vectors = n_layer * (5 + 2 + 4) * d + 4 * d
    return Counts(v * d, vectors, n_layer * (5 * d * d + 2 * d * f), v * d)


def memory(name: str, shape: Shape, embedding_bytes: int = 2) -> Memory:
    """The memory of a model of `shape` whose embedding has `embedding_bytes` a value in its file.

    The embedding stays as the file has it and vectors are float32, whatever the matrices are.
    """
    counts = count_parameters(shape)
    fixed = counts.embedding * embedding_bytes + counts.vectors * _FLOAT32
    # Beside four vectors of a token, time mixing holds about twelve at its fullest (k, v, r and
    # the scan's), and channel mixing three of the inner width.
    widest = 4 * shape.n_embd + max(12 * shape.n_embd, 3 * shape.n_ffn)
    return Memory(
        name,
        shape,
        counts.total,
        {
            dtype: round(counts.matrices * size) + fixed
            for dtype, size in BYTES_PER_WEIGHT.items()
            if dtype != "float64"
        },
        (shape.n_layer * 5 * shape.n_embd + shape.n_vocab) * _FLOAT32,
        MOST_TOKENS * widest * _FLOAT32,
    )


def known_shapes() -> dict[str, Shape]:
    """The published RWKV-4 Pile models' shapes, by size."""
    from rwkv_core.checkpoint import Shape

    return {
        name: Shape(n_layer, n_embd, 4 * n_embd, _PILE_VOCAB)
        for name, (n_layer, n_embd) in _KNOWN.items()
    }


def memory_of_known_models() -> list[Memory]:
    """The memory of the published RWKV-4 Pile models."""
    return [memory(name, shape) for name, shape in known_shapes().items()]


def memory_of_file(path: str | os.PathLike[str]) -> Memory:
    """The memory of the model in a file, of which no matrix is read.

    Raises CheckpointError, and DownloadError for an address.
    """
    from rwkv_core.checkpoint import diagnose
    from rwkv_core.loading import open_model
    from rwkv_core.util.addresses import without_secrets

    with open_model(path) as checkpoint:
        shape = diagnose(checkpoint)
        return memory(
            without_secrets(str(path)), shape, checkpoint.tensors["emb.weight"].dtype.itemsize
        )
