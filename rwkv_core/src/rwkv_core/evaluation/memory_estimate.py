"""How much memory a model takes, computed from its shape."""

from __future__ import annotations

import os
from dataclasses import dataclass

from rwkv_core.backends.tensor_ops import MOST_TOKENS
from rwkv_core.config import Shape, count_parameters, known_shapes
from rwkv_core.dtypes import BYTES_PER_WEIGHT

_FLOAT32 = 4


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


def memory_of_known_models() -> list[Memory]:
    """The memory of the published RWKV-4 Pile models."""
    return [memory(name, shape) for name, shape in known_shapes().items()]


def memory_of_file(path: str | os.PathLike[str]) -> Memory:
    """The memory of the model in a file, of which no matrix is read.

    Raises CheckpointError, and DownloadError for an address.
    """
    from rwkv_core.checkpoint import diagnose
    from rwkv_core.model_file import open_model
    from rwkv_core.util.addresses import without_secrets

    with open_model(path) as checkpoint:
        shape = diagnose(checkpoint)
        return memory(
            without_secrets(str(path)), shape, checkpoint.tensors["emb.weight"].dtype.itemsize
        )
