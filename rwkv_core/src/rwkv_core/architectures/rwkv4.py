"""RWKV-4, over TensorOps: its weights, its state and its equations.

The WKV scan is one of the contract's operations: its equation is in `TensorOps.wkv`.

Source: B. Peng et al., RWKV: Reinventing RNNs for the Transformer Era (2023), section 3 and its
appendix on the RNN cell; names and initial state as in BlinkDL's RWKV-LM, RWKV-4.
Shapes: B batch, T time, D width, F channel mixing's inner width, V vocabulary, L layers.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkv_core.architectures.base import Architecture, Config, D, F, Group, Shapes, V
from rwkv_core.architectures.head import LayerNorm
from rwkv_core.backends.tensor_ops import Array, Matrix, TensorOps, WKVState
from rwkv_core.weights import matrix, table, vector

# Rows of one layer's part of the state [B, L, 5, D], in BlinkDL's order: the last input of channel
# mixing and of time mixing (for their token shifts), then the WKV scan's aa, bb and pp.
CHANNEL_X, TIME_X, AA, BB, PP = range(5)
STATE_ROWS = 5
# Exponent before the first token: below any real one, but finite, so that pp - pp is 0, not NaN.
EMPTY_PP = -1e30
# With a larger time_decay a channel forgets each token at once: exp(-exp(40)) is 0 in every type.
# From 89 on, exp(time_decay) is infinite in float32, and 0 * inf is NaN.
MAX_TIME_DECAY = 40.0


def decay_of(time_decay: NDArray[Any]) -> NDArray[Any]:
    """Return the decay, which the scan adds to an exponent for each token."""
    return -np.exp(np.minimum(time_decay, MAX_TIME_DECAY))


_MIX = {"mean": 0.5, "spread": 0.1}
_SCAN = {"spread": 0.3}


class TimeMixing(NamedTuple):
    mix_k: Annotated[Array, vector("time_mix_k", 1, 1, D, alias="time_mix_key", **_MIX)]
    mix_v: Annotated[Array, vector("time_mix_v", 1, 1, D, alias="time_mix_value", **_MIX)]
    mix_r: Annotated[Array, vector("time_mix_r", 1, 1, D, alias="time_mix_receptance", **_MIX)]
    decay: Annotated[Array, vector("time_decay", D, transform=decay_of, **_SCAN)]
    first: Annotated[Array, vector("time_first", D, **_SCAN)]
    key: Annotated[Matrix, matrix("key.weight", D, D)]
    value: Annotated[Matrix, matrix("value.weight", D, D)]
    receptance: Annotated[Matrix, matrix("receptance.weight", D, D)]
    output: Annotated[Matrix, matrix("output.weight", D, D, feeds_stream=True)]


class ChannelMixing(NamedTuple):
    mix_k: Annotated[Array, vector("time_mix_k", 1, 1, D, alias="time_mix_key", **_MIX)]
    mix_r: Annotated[Array, vector("time_mix_r", 1, 1, D, alias="time_mix_receptance", **_MIX)]
    key: Annotated[Matrix, matrix("key.weight", F, D)]
    receptance: Annotated[Matrix, matrix("receptance.weight", D, D)]
    value: Annotated[Matrix, matrix("value.weight", D, F, feeds_stream=True)]


class Block(NamedTuple):
    ln1: Annotated[LayerNorm, Group("ln1.")]
    time: Annotated[TimeMixing, Group("att.", "attention.")]
    ln2: Annotated[LayerNorm, Group("ln2.")]
    channel: Annotated[ChannelMixing, Group("ffn.", "feed_forward.")]


class Parameters(NamedTuple):
    ln0: Annotated[LayerNorm, Group("blocks.0.ln0.", "blocks.0.pre_ln.", feeds_stream=True)]
    blocks: Annotated[tuple[Block, ...], Group("blocks.{}.")]
    ln_out: Annotated[LayerNorm, Group("ln_out.")]
    # With logits 4 apart, a random model of 50,277 tokens has the entropy of a trained one.
    head: Annotated[Matrix, matrix("head.weight", V, D, spread=4.0)]


def time_mixing(
    ops: TensorOps, p: TimeMixing, x: Array, last: Array, state: WKVState
) -> tuple[Array, WKVState]:
    """Return time mixing's output [B, T, D] and the scan's state after the last token.

    Arguments:
        x, last: the inputs of the tokens [B, T, D], and the input of the token before them [B, D].
        state: the scan's (aa, bb, pp), each [B, D].
    """
    previous = ops.token_shift(x, last)
    k = ops.matmul(p.key, ops.mix(x, previous, p.mix_k))
    v = ops.matmul(p.value, ops.mix(x, previous, p.mix_v))
    r = ops.matmul(p.receptance, ops.mix(x, previous, p.mix_r))
    wkv, state = ops.wkv(k, v, p.decay, p.first, state)
    return ops.matmul(p.output, ops.sigmoid(r) * wkv), state


def channel_mixing(ops: TensorOps, p: ChannelMixing, x: Array, last: Array) -> Array:
    """Return channel mixing's output [B, T, D] for `x` [B, T, D], preceded by `last` [B, D]."""
    previous = ops.token_shift(x, last)
    k = ops.matmul(p.key, ops.mix(x, previous, p.mix_k))  # [B, T, F]
    r = ops.matmul(p.receptance, ops.mix(x, previous, p.mix_r))
    return ops.sigmoid(r) * ops.matmul(p.value, ops.relu_squared(k))


def block(ops: TensorOps, p: Block, x: Array, state: Array) -> tuple[Array, Array]:
    """Run one block: return x [B, T, D] and the layer's state [B, 5, D] after it.

    Pure, and the same function for every layer: see `TensorOps.layers`.
    """
    rows = [state[:, j, :] for j in range(STATE_ROWS)]
    time_x = ops.layer_norm(x, *p.ln1)
    y, scan = time_mixing(ops, p.time, time_x, rows[TIME_X], (rows[AA], rows[BB], rows[PP]))
    x = x + y
    channel_x = ops.layer_norm(x, *p.ln2)
    x = x + channel_mixing(ops, p.channel, channel_x, rows[CHANNEL_X])
    last = (ops.last(channel_x, state), ops.last(time_x, state))
    return x, ops.xp.concat([*last, *(part[:, None, :] for part in scan)], axis=1)


def blocks(ops: TensorOps, p: Parameters, x: Array, state: Array) -> tuple[Array, Array]:
    """Run all blocks: return x [B, T, D] and the state [B, L, 5, D] after them."""
    return ops.layers(block, p.blocks, ops.layer_norm(x, *p.ln0), state, kernel="rwkv4")


def empty_state(config: Config) -> NDArray[Any]:
    """Return the initial state, float64 [L, 5, D]."""
    state = np.zeros((config.n_layer, STATE_ROWS, config.n_embd))
    state[:, PP] = EMPTY_PP
    return state


def is_state(array: NDArray[Any]) -> bool:
    """Return whether `array` [L, 5, D] can be a state: bb, the denominator, must be positive.

    Before the first token aa and bb are 0, and pp is EMPTY_PP.
    """
    aa, bb, pp = (array[:, row] for row in (AA, BB, PP))
    empty = (aa == 0) & (bb == 0) & (pp <= EMPTY_PP / 2)
    return bool(((bb > 0) | empty).all())


def recognizes(shapes: Shapes) -> bool:
    """Return whether a file's tensors are RWKV-4's, whose time mixing has no group norm."""
    return "emb.weight" in shapes or any(".att." in name for name in shapes)


RWKV4 = Architecture(
    name="rwkv4",
    title="RWKV-4",
    recognizes=recognizes,
    embedding=table("emb.weight", V, D, alias="embeddings.weight", feeds_stream=True),
    parameters=Parameters,
    blocks=blocks,
    empty_state=empty_state,
    is_state=is_state,
)
