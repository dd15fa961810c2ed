"""RWKV-5 "Eagle", over TensorOps: its weights, its state and its equations.

There are three versions. 5.0 has no gate; 5.1 and 5.2 have a gate. 5.0 and 5.1 have one decay and
one bonus for all channels of a head; 5.2 has a decay and a bonus for each channel. The scan over
the heads' matrices S is `TensorOps.wkv6`.
Source: B. Peng et al., Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence
(arXiv 2404.05892), section 4; names as in BlinkDL's RWKV-LM, RWKV-v5.
Shapes: B batch, T time, D width, F channel mixing's inner width, V vocabulary, L layers, H heads of
N channels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkv_core.architectures.base import (
    ABSENT,
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
from rwkv_core.weights import matrix, table, vector

# Of the group norm. BlinkDL divides the scan's result by 8 and uses 1e-5, which is the same.
EPSILON = 64e-5


def decay_of(time_decay: NDArray[Any]) -> NDArray[Any]:
    """Return the decay, a factor of S for each token."""
    return np.exp(-np.exp(time_decay))


_DECAY = {"transform": decay_of, "mean": -2.0, "spread": 0.3}
_BONUS = {"spread": 0.3}


class TimeMixing(NamedTuple):
    """Weights of 5.2; the end of this file declares how 5.0 and 5.1 differ."""

    mix_k: Annotated[Array, vector("time_mix_k", 1, 1, D, alias="time_mix_key", **MIX)]
    mix_v: Annotated[Array, vector("time_mix_v", 1, 1, D, alias="time_mix_value", **MIX)]
    mix_r: Annotated[Array, vector("time_mix_r", 1, 1, D, alias="time_mix_receptance", **MIX)]
    mix_g: Annotated[Array, vector("time_mix_g", 1, 1, D, alias="time_mix_gate", **MIX)]
    decay: Annotated[Array, vector("time_decay", H, N, **_DECAY)]
    bonus: Annotated[Array, vector("time_faaaa", H, N, **_BONUS)]
    key: Annotated[Matrix, matrix("key.weight", D, D)]
    value: Annotated[Matrix, matrix("value.weight", D, D)]
    receptance: Annotated[Matrix, matrix("receptance.weight", D, D)]
    gate: Annotated[Matrix, matrix("gate.weight", D, D)]
    ln_x: Annotated[LayerNorm, Group("ln_x.")]
    output: Annotated[Matrix, matrix("output.weight", D, D, feeds_stream=True)]


class ChannelMixing(NamedTuple):
    mix_k: Annotated[Array, vector("time_mix_k", 1, 1, D, alias="time_mix_key", **MIX)]
    mix_r: Annotated[Array, vector("time_mix_r", 1, 1, D, alias="time_mix_receptance", **MIX)]
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
    previous, head_size = ops.token_shift(x, last), s.shape[1]
    k = ops.matmul(p.key, ops.mix(x, previous, p.mix_k))
    v = ops.matmul(p.value, ops.mix(x, previous, p.mix_v))
    r = ops.matmul(p.receptance, ops.mix(x, previous, p.mix_r))
    y, s = ops.wkv6(r, p.decay, k, v, p.bonus, s)
    y = ops.group_norm(y, *p.ln_x, head_size, EPSILON)
    if p.gate is not ABSENT:
        g = ops.matmul(p.gate, ops.mix(x, previous, p.mix_g))
        y = y * (g * ops.sigmoid(g))
    return ops.matmul(p.output, y), s


def channel_mixing(ops: TensorOps, p: ChannelMixing, x: Array, last: Array) -> Array:
    """Return channel mixing's output [B, T, D] for `x` [B, T, D], preceded by `last` [B, D]."""
    previous = ops.token_shift(x, last)
    k = ops.matmul(p.key, ops.mix(x, previous, p.mix_k))  # [B, T, F]
    r = ops.matmul(p.receptance, ops.mix(x, previous, p.mix_r))
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
    return ops.layers(block, p.blocks, ops.layer_norm(x, *p.ln0), state, kernel="rwkv5")


def _is_5_0(shapes: Shapes) -> bool:
    """Return whether the file has RWKV-5's group norm, which RWKV-4 lacks, and no gate."""
    return any(".att.ln_x." in name or name.endswith(".time_faaaa") for name in shapes)


def _is_5_1(shapes: Shapes) -> bool:
    return any(".att.gate." in name for name in shapes)


def _is_5_2(shapes: Shapes) -> bool:
    decays = [shape for name, shape in shapes.items() if name.endswith(".att.time_decay")]
    return _is_5_1(shapes) and any(sum(n > 1 for n in shape) == 2 for shape in decays)


RWKV5_2 = Architecture(
    name="rwkv5.2",
    title="RWKV-5.2",
    recognizes=_is_5_2,
    embedding=table("emb.weight", V, D, alias="embeddings.weight", feeds_stream=True),
    parameters=Parameters,
    blocks=blocks,
    empty_state=empty_state,
)
_DECAY_OF_HEADS = vector("time_decay", H, repeat=N, **_DECAY)
RWKV5_1 = replace(
    RWKV5_2,
    name="rwkv5.1",
    title="RWKV-5.1",
    recognizes=_is_5_1,
    differs={
        "time_decay": _DECAY_OF_HEADS,
        "time_faaaa": vector("time_faaaa", H, repeat=N, **_BONUS),
    },
)
RWKV5_0 = replace(
    RWKV5_2,
    name="rwkv5.0",
    title="RWKV-5.0",
    recognizes=_is_5_0,
    differs={
        "time_decay": _DECAY_OF_HEADS,
        "time_faaaa": vector("time_first", H, repeat=N, transform=np.exp, **_BONUS),
        "time_mix_g": None,
        "gate.weight": None,
    },
)
