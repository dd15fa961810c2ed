"""RWKV-6 "Finch", over TensorOps: its weights, its state and its equations.

Decay and token shifts depend on the token, through low-rank matrices. The scan over the heads'
matrices S is `TensorOps.wkv6`. Source: B. Peng et al., Eagle and Finch: RWKV with Matrix-Valued
States and Dynamic Recurrence (arXiv 2404.05892), section 4; names as in BlinkDL's RWKV-LM, RWKV-v5.
Shapes: B batch, T time, D width, F channel mixing's inner width, V vocabulary, L layers, H heads of
N channels.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

from rwkv_core.architectures.base import (
    MIX,
    Architecture,
    D,
    F,
    Group,
    H,
    N,
    Shapes,
    V,
)
from rwkv_core.architectures.head import LayerNorm
from rwkv_core.architectures.matrix_state import CHANNEL_X, FIRST_OF_S, TIME_X, empty_state
from rwkv_core.backends.tensor_ops import Array, Matrix, TensorOps
from rwkv_core.weights import low_rank, matrix, table, vector

# Of the group norm. BlinkDL divides the scan's result by 8 and uses 1e-5, which is the same.
EPSILON = 64e-5

_SPREAD = {"spread": 0.3}


class TimeMixing(NamedTuple):
    # Shares of the token shifts: maa_x comes first; then one each for w, k, v, r and g. The product
    # with maa_w1 and one of the five matrices in maa_w2, in the same order, is added to each.
    maa_x: Annotated[Array, vector("time_maa_x", 1, 1, D, **MIX)]
    maa_w1: Annotated[Matrix, low_rank("time_maa_w1", D, "rank_maa_5")]
    maa_w2: Annotated[tuple[Matrix, ...], low_rank("time_maa_w2", 5, "rank_maa", D)]
    maa_w: Annotated[Array, vector("time_maa_w", 1, 1, D, **MIX)]
    maa_k: Annotated[Array, vector("time_maa_k", 1, 1, D, **MIX)]
    maa_v: Annotated[Array, vector("time_maa_v", 1, 1, D, **MIX)]
    maa_r: Annotated[Array, vector("time_maa_r", 1, 1, D, **MIX)]
    maa_g: Annotated[Array, vector("time_maa_g", 1, 1, D, **MIX)]
    decay: Annotated[Array, vector("time_decay", 1, 1, D, mean=-2.0, **_SPREAD)]
    decay_w1: Annotated[Matrix, low_rank("time_decay_w1", D, "rank_decay")]
    decay_w2: Annotated[Matrix, low_rank("time_decay_w2", "rank_decay", D)]
    key: Annotated[Matrix, matrix("key.weight", D, D)]
    value: Annotated[Matrix, matrix("value.weight", D, D)]
    receptance: Annotated[Matrix, matrix("receptance.weight", D, D)]
    gate: Annotated[Matrix, matrix("gate.weight", D, D)]
    bonus: Annotated[Array, vector("time_faaaa", H, N, **_SPREAD)]
    ln_x: Annotated[LayerNorm, Group("ln_x.")]
    output: Annotated[Matrix, matrix("output.weight", D, D, feeds_stream=True)]


class ChannelMixing(NamedTuple):
    maa_k: Annotated[Array, vector("time_maa_k", 1, 1, D, **MIX)]
    maa_r: Annotated[Array, vector("time_maa_r", 1, 1, D, **MIX)]
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
    # With logits 4 apart, a random model of 65,536 tokens has the entropy of a trained one.
    head: Annotated[Matrix, matrix("head.weight", V, D, spread=4.0)]


def time_mixing(
    ops: TensorOps, p: TimeMixing, x: Array, last: Array, s: Array
) -> tuple[Array, Array]:
    """Return time mixing's output [B, T, D], and the heads' matrices after the last token.

    Arguments:
        x, last: the inputs of the tokens [B, T, D], and the input of the token before them [B, D].
        s: the heads' matrices before the first token, side by side: [B, N, D].
    """
    xp, head_size = ops.xp, s.shape[1]
    previous = ops.token_shift(x, last)
    shift = xp.tanh(ops.matmul(p.maa_w1, ops.mix(previous, x, p.maa_x)))  # [B, T, 5 rank]
    rank = shift.shape[2] // 5

    def mixed(i: int, share: Array) -> Array:
        """Return `x` moved towards its predecessor, by a share that depends on the token."""
        part = shift[:, :, i * rank : (i + 1) * rank]
        return ops.mix(previous, x, share + ops.matmul(p.maa_w2[i], part))

    w = p.decay + ops.matmul(p.decay_w2, xp.tanh(ops.matmul(p.decay_w1, mixed(0, p.maa_w))))
    w = xp.exp(-xp.exp(w))
    k = ops.matmul(p.key, mixed(1, p.maa_k))
    v = ops.matmul(p.value, mixed(2, p.maa_v))
    r = ops.matmul(p.receptance, mixed(3, p.maa_r))
    g = ops.matmul(p.gate, mixed(4, p.maa_g))
    y, s = ops.wkv6(r, w, k, v, p.bonus, s)
    y = ops.group_norm(y, *p.ln_x, head_size, EPSILON)
    return ops.matmul(p.output, y * (g * ops.sigmoid(g))), s


def channel_mixing(ops: TensorOps, p: ChannelMixing, x: Array, last: Array) -> Array:
    """Return channel mixing's output [B, T, D] for `x` [B, T, D], preceded by `last` [B, D]."""
    previous = ops.token_shift(x, last)
    k = ops.matmul(p.key, ops.mix(previous, x, p.maa_k))  # [B, T, F]
    r = ops.matmul(p.receptance, ops.mix(previous, x, p.maa_r))
    return ops.sigmoid(r) * ops.matmul(p.value, ops.relu_squared(k))


def block(ops: TensorOps, p: Block, x: Array, state: Array) -> tuple[Array, Array]:
    """Run one block: return x [B, T, D] and the layer's state [B, 2 + N, D] after it."""
    time_x = ops.layer_norm(x, *p.ln1)
    y, s = time_mixing(ops, p.time, time_x, state[:, TIME_X, :], state[:, FIRST_OF_S:, :])
    x = x + y
    channel_x = ops.layer_norm(x, *p.ln2)
    x = x + channel_mixing(ops, p.channel, channel_x, state[:, CHANNEL_X, :])
    return x, ops.xp.concat([ops.last(channel_x, state), ops.last(time_x, state), s], axis=1)


def blocks(ops: TensorOps, p: Parameters, x: Array, state: Array) -> tuple[Array, Array]:
    """Run all blocks: return x [B, T, D] and the state [B, L, 2 + N, D] after them."""
    return ops.layers(block, p.blocks, ops.layer_norm(x, *p.ln0), state, kernel="rwkv6")


def recognizes(shapes: Shapes) -> bool:
    """Return whether a file has tensors that only RWKV-6 has."""
    return any(".time_maa_" in name for name in shapes)


RWKV6 = Architecture(
    name="rwkv6",
    title="RWKV-6",
    recognizes=recognizes,
    embedding=table("emb.weight", V, D, alias="embeddings.weight", feeds_stream=True),
    parameters=Parameters,
    blocks=blocks,
    empty_state=empty_state,
)
