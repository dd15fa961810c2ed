"""Common parts of the references of RWKV-5 to 7: sizes, random weights, everything but time mixing.

T time, D width, F inner width of channel mixing, V vocabulary, L layers, H heads of N channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from rwkv_core.conformance.references.rwkv4 import Floats, Weights, layer_norm


class Sizes(NamedTuple):
    n_layer: int
    n_embd: int
    head_size: int
    n_ffn: int
    n_vocab: int
    ranks: tuple[int, int, int, int]
    """Ranks of the low-rank matrices: RWKV-6's shares and decay, or RWKV-7's w, a, v and g."""


# Widths are not powers of two, and inner widths not multiples of 64.
MEDIUM = Sizes(3, 96, 32, 336, 101, (8, 12, 16, 20))
WIDE = Sizes(2, 192, 64, 672, 131, (24, 16, 8, 40))
SMALL = Sizes(2, 96, 32, 208, 101, (8, 8, 8, 8))


class Run(NamedTuple):
    """Logits and memory of a model after each of T tokens."""

    logits: Floats  # [T, V]
    channel_x: Floats  # [T, L, D], the input of channel mixing
    time_x: Floats  # [T, L, D], the input of time mixing
    s: Floats  # [T, L, H, N, N], a row for each value channel


# Takes (weights, the block's prefix, x [T, D]); returns the output [T, D] and S after each token,
# [T, H, N, N].
TimeMixing = Callable[[Weights, str, Floats], tuple[Floats, Floats]]
ChannelMixing = Callable[[Weights, str, Floats], Floats]


def run(
    weights: Weights, tokens: list[int], time_mixing: TimeMixing, channel_mixing: ChannelMixing
) -> Run:
    """Run a model on `tokens` from the empty state; `weights` determine the number of layers."""
    x = layer_norm(weights, "blocks.0.ln0", weights["emb.weight"][tokens])  # [T, D]
    memories = []
    for i in range(sum(name.endswith(".ln1.weight") for name in weights)):
        block = f"blocks.{i}."
        time_x = layer_norm(weights, block + "ln1", x)
        y, s = time_mixing(weights, block + "att.", time_x)
        x = x + y
        channel_x = layer_norm(weights, block + "ln2", x)
        x = x + channel_mixing(weights, block + "ffn.", channel_x)
        memories.append((channel_x, time_x, s))
    logits = layer_norm(weights, "ln_out", x) @ weights["head.weight"].T
    return Run(logits, *(np.stack(rows, axis=1) for rows in zip(*memories, strict=True)))


def before(x: Floats) -> Floats:
    """Return each token's predecessor [T, D] in `x` [T, D]; zeros for the first token."""
    return np.concatenate([np.zeros_like(x[:1]), x[:-1]])


def by_head(x: Floats, head_size: int) -> Floats:
    """Return `x` [T, D] as [T, H, N]."""
    return x.reshape(len(x), x.shape[1] // head_size, head_size)


def group_norm(weights: Weights, name: str, y: Floats, head_size: int) -> Floats:
    """Return the group norm of `y` / 8, [T, D], with epsilon 1e-5 as in training."""
    y = by_head(y, head_size) / 8
    standard = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
    return standard.reshape(len(y), -1) * weights[name + ".weight"] + weights[name + ".bias"]


def random_matrix(rng: np.random.Generator, n_out: int, n_in: int) -> Floats:
    return rng.normal(size=(n_out, n_in)) / np.sqrt(n_in)


def random_pair(
    rng: np.random.Generator, name: str, width: int, rank: int, size: float = 1.0
) -> Weights:
    """Return two low-rank matrices, [D, rank] and [rank, D], whose product has values of `size`."""
    return {
        f"{name}1": random_matrix(rng, rank, width).T,
        f"{name}2": random_matrix(rng, width, rank).T * size,
    }


def random_weights(
    sizes: Sizes,
    of_block: Callable[[np.random.Generator], Weights],
    gate: bool,
    gated_channels: bool,
    seed: int = 0,
) -> Weights:
    """Return random weights by BlinkDL's names: float32 values, as float64.

    No weight is 0, since a weight of 0 could make a term of the equations vanish.

    Arguments:
        of_block: returns those weights of a block that only this version has.
        gate: whether time mixing has a gate matrix.
        gated_channels: whether channel mixing has a receptance.
    """
    n_embd, n_ffn, n_vocab = sizes.n_embd, sizes.n_ffn, sizes.n_vocab
    rng = np.random.default_rng(seed)
    weights: Weights = {
        "emb.weight": rng.normal(size=(n_vocab, n_embd)),
        "head.weight": 3 * random_matrix(rng, n_vocab, n_embd),
    }
    norms = ["blocks.0.ln0", "ln_out"]
    for i in range(sizes.n_layer):
        block = f"blocks.{i}."
        norms += [block + "ln1", block + "ln2", block + "att.ln_x"]
        square = ["att.key", "att.value", "att.receptance", "att.output"]
        square += ["att.gate"] * gate + ["ffn.receptance"] * gated_channels
        for name in square:
            weights[f"{block}{name}.weight"] = random_matrix(rng, n_embd, n_embd)
        # Receptances resemble keys: if r . k were near 0, group norm would magnify rounding errors.
        key, receptance = weights[f"{block}att.key.weight"], f"{block}att.receptance.weight"
        weights[receptance] = (key + weights[receptance]) / np.sqrt(2)
        weights[f"{block}ffn.key.weight"] = random_matrix(rng, n_ffn, n_embd)
        weights[f"{block}ffn.value.weight"] = random_matrix(rng, n_embd, n_ffn)
        weights |= {block + name: array for name, array in of_block(rng).items()}
    for norm in norms:
        weights[norm + ".weight"] = rng.normal(1.0, 0.2, n_embd)
        weights[norm + ".bias"] = rng.normal(0.0, 0.2, n_embd)
    return {name: array.astype(np.float32).astype(float) for name, array in weights.items()}


def random_shares(rng: np.random.Generator, prefix: str, names: str, width: int) -> Weights:
    """Return shares of token shifts, from 0.1 to 0.9, one vector for each letter of `names`."""
    return {prefix + name: rng.uniform(0.1, 0.9, (1, 1, width)) for name in names}
