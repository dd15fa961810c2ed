"""How much memory a model takes, computed from its shape."""

from __future__ import annotations

import os
from dataclasses import dataclass

from rwkv_core.architectures.base import Config
from rwkv_core.architectures.published import published_configs
from rwkv_core.backends.tensor_ops import MAX_TOKENS
from rwkv_core.dtypes import BYTES_PER_WEIGHT

_FLOAT32 = round(BYTES_PER_WEIGHT["float32"])


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
    config: Config
    parameters: int
    weights: dict[str, int]
    state: int
    prefill: int


def memory(name: str, config: Config, embedding_bytes: int = 2) -> Memory:
    """The memory of a model of these sizes.

    Its embedding stays as the file has it, of `embedding_bytes` a value, and vectors are float32,
    whatever the matrices are.
    """
    counts = config.count_parameters()
    fixed = counts.embedding * embedding_bytes + counts.vectors * _FLOAT32
    # Beside four vectors of a token, time mixing holds about twelve at its fullest (k, v, r and
    # the scan's), and channel mixing three of the inner width.
    widest = 4 * config.n_embd + max(12 * config.n_embd, 3 * config.n_ffn)
    return Memory(
        name,
        config,
        counts.total,
        {
            # Low-rank matrices are not quantized.
            dtype: round(counts.matrices * size + counts.low_rank * max(size, 2)) + fixed
            for dtype, size in BYTES_PER_WEIGHT.items()
        },
        (config.empty_state().size + config.n_vocab) * _FLOAT32,
        MAX_TOKENS * widest * _FLOAT32,
    )


def memory_of_known_models() -> list[Memory]:
    """The memory of the published models."""
    return [memory(name, config) for name, config in published_configs().items()]


def memory_of_file(path: str | os.PathLike[str]) -> Memory:
    """The memory of the model in a file, of which no matrix is read.

    Raises CheckpointError, and DownloadError for an address.
    """
    from rwkv_core.checkpoint import diagnose
    from rwkv_core.model_file import known_versions, open_model
    from rwkv_core.util.addresses import without_secrets

    with open_model(path) as checkpoint:
        config = diagnose(checkpoint, known_versions())
        embedding = checkpoint.tensors[config.architecture.embedding.name]
        return memory(without_secrets(str(path)), config, embedding.dtype.itemsize)
