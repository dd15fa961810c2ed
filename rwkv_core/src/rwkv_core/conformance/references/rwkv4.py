"""Reference of RWKV-4 in float64, in the form of the paper.

Source: B. Peng et al., RWKV: Reinventing RNNs for the Transformer Era (2023), section 3:
token shift, WKV operator, output gating.
Every token attends to the whole past, with all weights as logarithms. So no state and no running
maximum can be wrong. This module uses no other code of rwkv_core.
T time, D width, F inner width of channel mixing, V vocabulary, L layers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Weights = dict[str, Floats]


class Sizes(NamedTuple):
    n_layer: int
    n_embd: int
    n_ffn: int
    n_vocab: int


# Vocabularies are odd, as those of published models are.
SMALL = Sizes(n_layer=3, n_embd=64, n_ffn=256, n_vocab=101)
# The number of layers of a published 169M model, and one layer; and more than 1024 columns, which
# is a block.
MEDIUM = Sizes(n_layer=5, n_embd=64, n_ffn=256, n_vocab=101)
DEEP = Sizes(n_layer=13, n_embd=64, n_ffn=128, n_vocab=101)
WIDE = Sizes(n_layer=1, n_embd=1088, n_ffn=1056, n_vocab=131)

MATRICES = (
    *("att.key", "att.value", "att.receptance", "att.output"),
    *("ffn.key", "ffn.receptance", "ffn.value"),
)


class Run(NamedTuple):
    """Logits and memory of a model after each of T tokens."""

    logits: Floats  # [T, V]
    channel_x: Floats  # [T, L, D], the input of channel mixing
    time_x: Floats  # [T, L, D], the input of time mixing
    mean: Floats  # [T, L, D], the weighted mean of all values so far
    log_weight: Floats  # [T, L, D], the logarithm of the sum of their weights


def random_weights(sizes: Sizes = SMALL, seed: int = 0) -> Weights:
    """Return random float32 values as float64 by BlinkDL's names; none is 0."""
    n_layer, n_embd, n_ffn, n_vocab = sizes
    rng = np.random.default_rng(seed)
    weights: Weights = {
        "emb.weight": rng.normal(size=(n_vocab, n_embd)),
        "head.weight": rng.normal(size=(n_vocab, n_embd)) * 3 / np.sqrt(n_embd),
    }
    norms = ["blocks.0.ln0", "ln_out"]
    for i in range(n_layer):
        block = f"blocks.{i}."
        norms += [block + "ln1", block + "ln2"]
        # Decays from a memory of thousands of tokens to one of a single token.
        weights[block + "att.time_decay"] = rng.permutation(np.linspace(-8.0, 3.0, n_embd))
        weights[block + "att.time_first"] = rng.normal(size=n_embd)
        for name in ("att.time_mix_k", "att.time_mix_v", "att.time_mix_r"):
            weights[block + name] = rng.uniform(0.1, 0.9, (1, 1, n_embd))
        for name in ("ffn.time_mix_k", "ffn.time_mix_r"):
            weights[block + name] = rng.uniform(0.1, 0.9, (1, 1, n_embd))
        for name in MATRICES:
            n_out = n_ffn if name == "ffn.key" else n_embd
            n_in = n_ffn if name == "ffn.value" else n_embd
            weights[f"{block}{name}.weight"] = rng.normal(size=(n_out, n_in)) / np.sqrt(n_in)
    for norm in norms:
        weights[norm + ".weight"] = rng.normal(1.0, 0.2, n_embd)
        weights[norm + ".bias"] = rng.normal(0.0, 0.2, n_embd)
    return {name: array.astype(np.float32).astype(float) for name, array in weights.items()}


def run(weights: Weights, tokens: list[int]) -> Run:
    """Run a model on `tokens` from the empty state; `weights` determine the number of layers."""
    n_layer = sum(name.endswith(".ln1.weight") for name in weights)
    x = layer_norm(weights, "blocks.0.ln0", weights["emb.weight"][tokens])  # [T, D]
    memories = []
    for i in range(n_layer):
        block = f"blocks.{i}."
        time_x = layer_norm(weights, block + "ln1", x)
        y, mean, log_weight = time_mixing(weights, block + "att.", time_x)
        x = x + y
        channel_x = layer_norm(weights, block + "ln2", x)
        x = x + channel_mixing(weights, block + "ffn.", channel_x)
        memories.append((channel_x, time_x, mean, log_weight))
    logits = layer_norm(weights, "ln_out", x) @ weights["head.weight"].T
    return Run(logits, *(np.stack(rows, axis=1) for rows in zip(*memories, strict=True)))


def layer_norm(weights: Weights, name: str, x: Floats) -> Floats:
    """Return the layer norm of each row of `x` [T, D], with epsilon 1e-5."""
    standard = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return standard * weights[name + ".weight"] + weights[name + ".bias"]


def projection(weights: Weights, block: str, kind: str, x: Floats) -> Floats:
    """Return W (mu x_t + (1 - mu) x_{t-1}) for each token, a token shift; x_{-1} is zero."""
    before = np.concatenate([np.zeros_like(x[:1]), x[:-1]])
    mu = weights[f"{block}time_mix_{kind[0]}"].reshape(-1)
    return (mu * x + (1 - mu) * before) @ weights[f"{block}{kind}.weight"].T


def time_mixing(weights: Weights, block: str, x: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the output [T, D] for `x` [T, D], and the memory's means and log-weights [T, D]."""
    r, k, v = (projection(weights, block, kind, x) for kind in ("receptance", "key", "value"))
    decay = np.exp(weights[block + "time_decay"])
    means, *memory = wkv(k, v, decay, weights[block + "time_first"])
    return (sigmoid(r) * means) @ weights[block + "output.weight"].T, memory[0], memory[1]


def channel_mixing(weights: Weights, block: str, x: Floats) -> Floats:
    """Return the output [T, D] for `x` [T, D]: gated, with the squared ReLU."""
    k, r = (projection(weights, block, kind, x) for kind in ("key", "receptance"))
    return sigmoid(r) * (np.maximum(k, 0) ** 2 @ weights[block + "value.weight"].T)


def wkv(k: Floats, v: Floats, decay: Floats, first: Floats) -> tuple[Floats, Floats, Floats]:
    """Compute the WKV operator: the mean of all values so far, weighted by exp(key - age * decay).

    `k`, `v` are [T, D]; `decay` [D] is positive; `first` [D] is the current token's bonus. Returns
    the means [T, D], and the mean and log-weight [T, D] of the past as the next token sees it.
    """
    faded = np.arange(len(k))[:, None] * decay
    # Weights are relative to the first token's, so that they do not change later, and logarithms,
    # so that they cannot overflow. Positive and negative values have separate sums.
    exponents = k + faded
    total = np.logaddexp.accumulate(exponents)
    with np.errstate(divide="ignore"):
        positive = np.logaddexp.accumulate(exponents + np.log(np.maximum(v, 0)))
        negative = np.logaddexp.accumulate(exponents + np.log(np.maximum(-v, 0)))
    memory_means = np.exp(positive - total) - np.exp(negative - total)
    # After the token before, the past was one token younger.
    now = first + k + faded - decay
    nothing = np.zeros_like(k[:1])
    past = np.concatenate([nothing - np.inf, total[:-1]])
    share = np.exp(now - np.logaddexp(past, now))
    means = share * v + (1 - share) * np.concatenate([nothing, memory_means[:-1]])
    return means, memory_means, total - faded


def sigmoid(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -x))
