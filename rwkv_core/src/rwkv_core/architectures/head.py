"""Layers that all versions share: the layer norm, and the head that computes logits.

Shapes: B batch, T time, D width, V vocabulary, L layers, R rows of a layer's state.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

from rwkv_core.architectures.base import Architecture, D
from rwkv_core.backends.tensor_ops import Array, TensorOps
from rwkv_core.weights import vector


class LayerNorm(NamedTuple):
    weight: Annotated[Array, vector("weight", D, mean=1.0, spread=0.1)]
    bias: Annotated[Array, vector("bias", D, spread=0.3)]


def all_logits(
    architecture: Architecture, ops: TensorOps, p: Any, x: Array, state: Array
) -> tuple[Array, Array]:
    """Run a model on embeddings `x` [B, T, D]. Return all logits [B, T, V] and the last state."""
    x, state = architecture.blocks(ops, p, x, state)
    return ops.matmul(p.head, ops.layer_norm(x, *p.ln_out)), state


def last_logits(
    architecture: Architecture, ops: TensorOps, p: Any, x: Array, state: Array
) -> tuple[Array, Array]:
    """Run a model on embeddings `x` [B, T, D]. Return the last logits [B, 1, V] and state."""
    x, state = architecture.blocks(ops, p, x, state)
    return ops.matmul(p.head, ops.layer_norm(ops.last(x, state), *p.ln_out)), state


def last_hidden(
    architecture: Architecture, ops: TensorOps, p: Any, x: Array, state: Array
) -> tuple[Array, Array]:
    """Return the final norm's result [B, 1, D] for the last token, and the state after it."""
    x, state = architecture.blocks(ops, p, x, state)
    return ops.layer_norm(ops.last(x, state), *p.ln_out), state
