"""An invented RWKV version, as a plugin: each block adds a product with the inputs' mean."""

from typing import Annotated, Any, NamedTuple

import numpy as np

import rwkv_core
from rwkv_core.architectures.base import Architecture, D, F, Group, V
from rwkv_core.architectures.head import LayerNorm
from rwkv_core.weights import matrix, table, vector

# Rows of a layer's part of the state [B, L, 2, D]: the sum of the inputs, and how many there were.
SUM, COUNT = range(2)


class Block(NamedTuple):
    ln1: Annotated[LayerNorm, Group("ln1.")]
    share: Annotated[Any, vector("share", D)]
    inner: Annotated[Any, matrix("inner.weight", F, D)]
    outer: Annotated[Any, matrix("outer.weight", D, F, feeds_stream=True)]


class Parameters(NamedTuple):
    blocks: Annotated[tuple[Block, ...], Group("blocks.{}.")]
    ln_out: Annotated[LayerNorm, Group("ln_out.")]
    head: Annotated[Any, matrix("head.weight", V, D)]


def block(ops, p, x, state):
    total, count, means = state[:, SUM, :], state[:, COUNT, :], []
    inputs = ops.layer_norm(x, *p.ln1)
    for t in range(x.shape[1]):
        total, count = total + inputs[:, t, :], count + 1.0
        means.append(p.share * total / count)
    y = ops.matmul(p.outer, ops.relu_squared(ops.matmul(p.inner, ops.xp.stack(means, axis=1))))
    return x + y, ops.xp.stack([total, count], axis=1)


def blocks(ops, p, x, state):
    return ops.layers(block, p.blocks, x, state)


MEAN = Architecture(
    name="mean1",
    title="Mean-1",
    recognizes=lambda shapes: "blocks.0.inner.weight" in shapes,
    embedding=table("emb.weight", V, D),
    parameters=Parameters,
    blocks=blocks,
    empty_state=lambda config: np.zeros((config.n_layer, 2, config.n_embd)),
)


@rwkv_core.hookimpl
def rwkv_architectures():
    return [MEAN]
