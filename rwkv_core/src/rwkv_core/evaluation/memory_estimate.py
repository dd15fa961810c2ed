"""Estimates the memory of a model from its sizes."""

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
    """Memory of a model, in bytes.

    Attributes:
        parameters: number of parameters.
        weights: for each dtype of the matrices, size of matrices, vectors and embedding together.
        state: size of one sequence's state and logits, in float32.
        prefill: largest size of the vectors of a chunk of 512 tokens.
    """

    name: str
    config: Config
    parameters: int
    weights: dict[str, int]
    state: int
    prefill: int


def memory(name: str, config: Config, embedding_bytes: int = 2) -> Memory:
    """Return the memory of a model of these sizes.

    The embedding has the file's dtype, of `embedding_bytes` bytes per value; vectors are float32.
    """
    counts = config.count_parameters()
    fixed = counts.embedding * embedding_bytes + counts.vectors * _FLOAT32
    # Four vectors per token are always held. Time mixing adds up to about twelve (k, v, r and those
    # of the scan), channel mixing three of the inner width.
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
    """Return the memory of the published models."""
    return [memory(name, config) for name, config in published_configs().items()]


def memory_of_file(path: str | os.PathLike[str]) -> Memory:
    """Return the memory of the model in a file, without reading its matrices.

    Raises CheckpointError if the file is not a model, and DownloadError for an address that cannot
    be downloaded.
    """
    from rwkv_core.checkpoint import diagnose
    from rwkv_core.model_file import known_versions, open_model
    from rwkv_core.util.addresses import without_secrets

    with open_model(path) as checkpoint:
        config = diagnose(checkpoint, known_versions())
        embedding = checkpoint.tensors[config.architecture.embedding.name]
        return memory(without_secrets(str(path)), config, embedding.dtype.itemsize)
