"""RWKV-4, over TensorOps: the one place with the equations.

Source: B. Peng et al., RWKV: Reinventing RNNs for the Transformer Era (2023), section 3 and its
appendix on the RNN cell; names and initial state as in BlinkDL's RWKV-LM, RWKV-4.
Shapes: B batch, T time, D width, F channel mixing's inner width, V vocabulary, L layers.
"""

from __future__ import annotations

from typing import NamedTuple

from rwkv_core.backends.tensor_ops import Array, Matrix, TensorOps, WKVState

# Rows of one layer's part of the state [B, L, 5, D], in BlinkDL's order: the last input of channel
# mixing and of time mixing (for their token shifts), then the WKV scan's aa, bb and pp.
CHANNEL_X, TIME_X, AA, BB, PP = range(5)
STATE_ROWS = 5
# "No exponent yet": below any real one, yet finite, so that pp - pp is 0 and not NaN.
EMPTY_PP = -1e30


class LayerNorm(NamedTuple):
    weight: Array  # [D]
    bias: Array  # [D]


class TimeMixing(NamedTuple):
    mix_k: Array  # [D]
    mix_v: Array  # [D]
    mix_r: Array  # [D]
    decay: Array  # [D], -exp(time_decay)
    first: Array  # [D]
    key: Matrix  # [D, D]
    value: Matrix  # [D, D]
    receptance: Matrix  # [D, D]
    output: Matrix  # [D, D]


class ChannelMixing(NamedTuple):
    mix_k: Array  # [D]
    mix_r: Array  # [D]
    key: Matrix  # [F, D]
    receptance: Matrix  # [D, D]
    value: Matrix  # [D, F]


class Block(NamedTuple):
    ln1: LayerNorm
    time: TimeMixing
    ln2: LayerNorm
    channel: ChannelMixing


class Parameters(NamedTuple):
    ln0: LayerNorm
    blocks: tuple[Block, ...]
    ln_out: LayerNorm
    head: Matrix  # [V, D]


def time_mixing(
    ops: TensorOps, p: TimeMixing, x: Array, last: Array, state: WKVState
) -> tuple[Array, WKVState]:
    """`x` [B, T, D], its predecessor `last` [B, D] and the scan's state to the block's output."""
    previous = ops.token_shift(x, last)
    k = ops.matmul(p.key, ops.mix(x, previous, p.mix_k))
    v = ops.matmul(p.value, ops.mix(x, previous, p.mix_v))
    r = ops.matmul(p.receptance, ops.mix(x, previous, p.mix_r))
    wkv, state = ops.wkv(k, v, p.decay, p.first, state)
    return ops.matmul(p.output, ops.sigmoid(r) * wkv), state


def channel_mixing(ops: TensorOps, p: ChannelMixing, x: Array, last: Array) -> Array:
    """`x` [B, T, D] and its predecessor `last` [B, D] to the block's output [B, T, D]."""
    previous = ops.token_shift(x, last)
    k = ops.matmul(p.key, ops.mix(x, previous, p.mix_k))  # [B, T, F]
    r = ops.matmul(p.receptance, ops.mix(x, previous, p.mix_r))
    return ops.sigmoid(r) * ops.matmul(p.value, ops.relu_squared(k))


def block(ops: TensorOps, p: Block, x: Array, state: Array) -> tuple[Array, Array]:
    """`x` [B, T, D] and this layer's part of the state [B, 5, D] through a block; the same shapes.

    Pure, and the same function for every layer: see `TensorOps.layers`.
    """
    rows = [state[:, j, :] for j in range(STATE_ROWS)]
    time_x = ops.layer_norm(x, *p.ln1)
    y, scan = time_mixing(ops, p.time, time_x, rows[TIME_X], (rows[AA], rows[BB], rows[PP]))
    x = x + y
    channel_x = ops.layer_norm(x, *p.ln2)
    x = x + channel_mixing(ops, p.channel, channel_x, rows[CHANNEL_X])
    return x, ops.xp.stack([channel_x[:, -1, :], time_x[:, -1, :], *scan], axis=1)


def blocks(ops: TensorOps, p: Parameters, x: Array, state: Array) -> tuple[Array, Array]:
    """Embeddings `x` [B, T, D] and state [B, L, 5, D] through all blocks; the same shapes."""
    return ops.layers(block, p.blocks, ops.layer_norm(x, *p.ln0), state)


def all_logits(ops: TensorOps, p: Parameters, x: Array, state: Array) -> tuple[Array, Array]:
    """Logits [B, T, V] after every token, and the state after the last."""
    x, state = blocks(ops, p, x, state)
    return ops.matmul(p.head, ops.layer_norm(x, *p.ln_out)), state


def last_logits(ops: TensorOps, p: Parameters, x: Array, state: Array) -> tuple[Array, Array]:
    """Logits [B, 1, V] after the last token, and the state there."""
    x, state = blocks(ops, p, x, state)
    return ops.matmul(p.head, ops.layer_norm(x[:, -1:, :], *p.ln_out)), state
