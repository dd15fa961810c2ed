"""RWKV-7 "Goose", over TensorOps: its weights, its state and its equations.

A head's state is a matrix S with a row for each value channel and a column for each key channel. A
token removes part of the value stored under the key `kk`, and stores v under k:

    S <- S diag(w) - (S kk) (a kk)^T + v k^T,    y = S r

That is `TensorOps.wkv7`. Source: B. Peng et al., RWKV-7 "Goose" with Expressive Dynamic State
Evolution (arXiv 2503.14456), section 4; names as in BlinkDL's RWKV-LM, RWKV-v7.
Shapes: B batch, T time, D width, F channel mixing's inner width, V vocabulary, L layers, H heads of
N channels.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, NamedTuple

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

# Epsilon of the group norm; it does not depend on the head size.
EPSILON = 64e-5
# In the decay exp(-SLOWEST * sigmoid(.)), which is therefore at least 0.545.
SLOWEST = math.exp(-0.5)

_SPREAD = {"spread": 0.3}


class TimeMixing(NamedTuple):
    mix_r: Annotated[Array, vector("x_r", 1, 1, D, **MIX)]
    mix_w: Annotated[Array, vector("x_w", 1, 1, D, **MIX)]
    mix_k: Annotated[Array, vector("x_k", 1, 1, D, **MIX)]
    mix_v: Annotated[Array, vector("x_v", 1, 1, D, **MIX)]
    mix_a: Annotated[Array, vector("x_a", 1, 1, D, **MIX)]
    mix_g: Annotated[Array, vector("x_g", 1, 1, D, **MIX)]
    receptance: Annotated[Matrix, matrix("receptance.weight", D, D, alias="r_proj.weight")]
    key: Annotated[Matrix, matrix("key.weight", D, D, alias="k_proj.weight")]
    value: Annotated[Matrix, matrix("value.weight", D, D, alias="v_proj.weight")]
    # The decay w, the removal rate a, the share of layer 0's values, and the gate g.
    w0: Annotated[Array, vector("w0", 1, 1, D, alias="w_lora.lora.2.bias", mean=-2.0, **_SPREAD)]
    w1: Annotated[Matrix, low_rank("w1", D, "rank_w", alias="w_lora.lora.0.weight")]
    w2: Annotated[Matrix, low_rank("w2", "rank_w", D, alias="w_lora.lora.2.weight")]
    a0: Annotated[Array, vector("a0", 1, 1, D, alias="a_lora.lora.2.bias", **_SPREAD)]
    a1: Annotated[Matrix, low_rank("a1", D, "rank_a", alias="a_lora.lora.0.weight")]
    a2: Annotated[Matrix, low_rank("a2", "rank_a", D, alias="a_lora.lora.2.weight")]
    v0: Annotated[
        Array, vector("v0", 1, 1, D, alias="v_lora.lora.2.bias", first_layer=1, **_SPREAD)
    ]
    v1: Annotated[Matrix, low_rank("v1", D, "rank_v", alias="v_lora.lora.0.weight", first_layer=1)]
    v2: Annotated[Matrix, low_rank("v2", "rank_v", D, alias="v_lora.lora.2.weight", first_layer=1)]
    g1: Annotated[Matrix, low_rank("g1", D, "rank_g", alias="g_lora.lora.0.weight")]
    g2: Annotated[Matrix, low_rank("g2", "rank_g", D, alias="g_lora.lora.2.weight")]
    k_k: Annotated[Array, vector("k_k", 1, 1, D, mean=0.7, spread=0.1)]
    k_a: Annotated[Array, vector("k_a", 1, 1, D, mean=1.0, spread=0.1)]
    r_k: Annotated[Array, vector("r_k", H, N, **_SPREAD)]
    ln_x: Annotated[LayerNorm, Group("ln_x.", "g_norm.")]
    output: Annotated[
        Matrix, matrix("output.weight", D, D, alias="o_proj.weight", feeds_stream=True)
    ]


class ChannelMixing(NamedTuple):
    mix_k: Annotated[Array, vector("x_k", 1, 1, D, **MIX)]
    key: Annotated[Matrix, matrix("key.weight", F, D)]
    value: Annotated[Matrix, matrix("value.weight", D, F, feeds_stream=True)]


class Block(NamedTuple):
    ln1: Annotated[LayerNorm, Group("ln1.", "attn_norm.")]
    time: Annotated[TimeMixing, Group("att.", "attn.")]
    ln2: Annotated[LayerNorm, Group("ln2.", "ffn_norm.")]
    channel: Annotated[ChannelMixing, Group("ffn.")]


class Parameters(NamedTuple):
    ln0: Annotated[LayerNorm, Group("blocks.0.ln0.", "blocks.0.pre_norm.", feeds_stream=True)]
    blocks: Annotated[tuple[Block, ...], Group("blocks.{}.")]
    ln_out: Annotated[LayerNorm, Group("ln_out.", "norm.")]
    # With logits 4 apart, a random model of 65,536 tokens has the entropy of a trained one.
    head: Annotated[Matrix, matrix("head.weight", V, D, alias="lm_head.weight", spread=4.0)]


def time_mixing(
    ops: TensorOps, p: TimeMixing, x: Array, last: Array, s: Array, v_first: tuple[Array, ...]
) -> tuple[Array, Array, Array]:
    """Return time mixing's output [B, T, D], the heads' matrices [B, N, D], and layer 0's values.

    The matrices are those after the last token. Layer 0's values are its v, [B, T, D].

    Arguments:
        x, last: the inputs of the tokens [B, T, D], and the input of the token before them [B, D].
        s: the heads' matrices before the first token, side by side: [B, N, D].
        v_first: a tuple of layer 0's values v [B, T, D]; an empty tuple in layer 0.
    """
    xp, head_size = ops.xp, s.shape[1]
    previous = ops.token_shift(x, last)

    def mixed(share: Array) -> Array:
        return ops.mix(previous, x, share)  # x moved towards its predecessor

    r = ops.matmul(p.receptance, mixed(p.mix_r))
    k = ops.matmul(p.key, mixed(p.mix_k))
    xv = mixed(p.mix_v)
    v = ops.matmul(p.value, xv)
    w = p.w0 + ops.matmul(p.w2, xp.tanh(ops.matmul(p.w1, mixed(p.mix_w))))
    w = xp.exp(-SLOWEST * ops.sigmoid(w))
    a = ops.sigmoid(p.a0 + ops.matmul(p.a2, ops.matmul(p.a1, mixed(p.mix_a))))
    g = ops.matmul(p.g2, ops.sigmoid(ops.matmul(p.g1, mixed(p.mix_g))))
    if v_first:
        share = ops.sigmoid(p.v0 + ops.matmul(p.v2, ops.matmul(p.v1, xv)))
        v = v + (v_first[0] - v) * share
    kk = ops.normalize_heads(k * p.k_k, head_size)
    k = k * (1.0 + (a - 1.0) * p.k_a)
    y, s = ops.wkv7(r, w, k, v, kk, a * kk, s)
    y = ops.group_norm(y, *p.ln_x, head_size, EPSILON)
    y = y + ops.head_sums(r * k * p.r_k, head_size) * v  # the present token's bonus
    return ops.matmul(p.output, y * g), s, (v_first or (v,))[0]


def channel_mixing(ops: TensorOps, p: ChannelMixing, x: Array, last: Array) -> Array:
    """Return channel mixing's output [B, T, D] for `x` [B, T, D], preceded by `last` [B, D]."""
    k = ops.matmul(p.key, ops.mix(ops.token_shift(x, last), x, p.mix_k))  # [B, T, F]
    return ops.matmul(p.value, ops.relu_squared(k))


def block(ops: TensorOps, p: Block, carry: Any, state: Array) -> tuple[Any, Array]:
    """Run one block: return the carry and the layer's state [B, 2 + N, D] after it.

    The carry is (x [B, T, D],) before layer 0, and (x, layer 0's values [B, T, D]) after it.
    """
    x, *v_first = carry
    time_x = ops.layer_norm(x, *p.ln1)
    y, s, values = time_mixing(
        ops, p.time, time_x, state[:, TIME_X, :], state[:, FIRST_OF_S:, :], tuple(v_first)
    )
    x = x + y
    channel_x = ops.layer_norm(x, *p.ln2)
    x = x + channel_mixing(ops, p.channel, channel_x, state[:, CHANNEL_X, :])
    after = [ops.last(channel_x, state), ops.last(time_x, state), s]
    return (x, values), ops.xp.concat(after, axis=1)


def blocks(ops: TensorOps, p: Parameters, x: Array, state: Array) -> tuple[Array, Array]:
    """Run all blocks: return x [B, T, D] and the state [B, L, 2 + N, D] after them."""
    carry = (ops.layer_norm(x, *p.ln0),)
    (x, _), state = ops.layers(block, p.blocks, carry, state, kernel="rwkv7")
    return x, state


def recognizes(shapes: Shapes) -> bool:
    """Return whether a file has tensors that only RWKV-7 has."""
    return any(re.search(r"\.(r_k|att\.(x_[rwkvag]|[wav][012]))$", name) for name in shapes)


RWKV7 = Architecture(
    name="rwkv7",
    title="RWKV-7",
    recognizes=recognizes,
    embedding=table("emb.weight", V, D, alias="embeddings.weight", feeds_stream=True),
    parameters=Parameters,
    blocks=blocks,
    empty_state=empty_state,
)
