"""RWKV-4 in float64 as the paper states it, to hold backends against.

Source: B. Peng et al., RWKV: Reinventing RNNs for the Transformer Era (2023), section 3:
token shift, WKV operator, output gating.
It is the form that attends over the whole past at every token: each mean is summed up anew from
all keys and values, so there is no state, no scan and no running maximum to get wrong. Nothing here
comes from rwkv_core. T time, D width, F inner width of channel mixing, V vocabulary, L layers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Weights = dict[str, Floats]

N_LAYER, N_EMBD, N_FFN = 3, 64, 256
# Odd, as the vocabularies of published models are.
N_VOCAB = 101


class Run(NamedTuple):
    """What a model gives after each of T tokens, and what it then has to remember."""

    logits: Floats  # [T, V]
    channel_x: Floats  # [T, L, D], the input of channel mixing
    time_x: Floats  # [T, L, D], the input of time mixing
    mean: Floats  # [T, L, D], the weighted mean of all values so far
    log_weight: Floats  # [T, L, D], the logarithm of the sum of their weights


def random_weights(seed: int = 0) -> Weights:
    """Float32 values as float64, by BlinkDL's names; none is zero, so that every term shows."""
    rng = np.random.default_rng(seed)
    weights: Weights = {
        "emb.weight": rng.normal(size=(N_VOCAB, N_EMBD)),
        "head.weight": rng.normal(size=(N_VOCAB, N_EMBD)) * 3 / np.sqrt(N_EMBD),
    }
    norms = ["blocks.0.ln0", "ln_out"]
    for i in range(N_LAYER):
        block = f"blocks.{i}."
        norms += [block + "ln1", block + "ln2"]
        # From memories of thousands of tokens to one that is gone with the next.
        weights[block + "att.time_decay"] = rng.permutation(np.linspace(-8.0, 3.0, N_EMBD))
        weights[block + "att.time_first"] = rng.normal(size=N_EMBD)
        for name in ("att.time_mix_k", "att.time_mix_v", "att.time_mix_r"):
            weights[block + name] = rng.uniform(0.1, 0.9, (1, 1, N_EMBD))
        for name in ("ffn.time_mix_k", "ffn.time_mix_r"):
            weights[block + name] = rng.uniform(0.1, 0.9, (1, 1, N_EMBD))
        for name, shape in MATRICES.items():
            weights[f"{block}{name}.weight"] = rng.normal(size=shape) / np.sqrt(shape[1])
    for norm in norms:
        weights[norm + ".weight"] = rng.normal(1.0, 0.2, N_EMBD)
        weights[norm + ".bias"] = rng.normal(0.0, 0.2, N_EMBD)
    return {name: array.astype(np.float32).astype(float) for name, array in weights.items()}


MATRICES = {
    "att.key": (N_EMBD, N_EMBD),
    "att.value": (N_EMBD, N_EMBD),
    "att.receptance": (N_EMBD, N_EMBD),
    "att.output": (N_EMBD, N_EMBD),
    "ffn.key": (N_FFN, N_EMBD),
    "ffn.receptance": (N_EMBD, N_EMBD),
    "ffn.value": (N_EMBD, N_FFN),
}


def run(weights: Weights, tokens: list[int]) -> Run:
    """Read `tokens` from the beginning; the number of layers is that of the weights."""
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
    """Over each row, with epsilon 1e-5."""
    standard = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return standard * weights[name + ".weight"] + weights[name + ".bias"]


def projection(weights: Weights, block: str, kind: str, x: Floats) -> Floats:
    """Token shift: W (mu x_t + (1 - mu) x_{t-1}), where x_{-1} is zero."""
    before = np.concatenate([np.zeros_like(x[:1]), x[:-1]])
    mu = weights[f"{block}time_mix_{kind[0]}"].reshape(-1)
    return (mu * x + (1 - mu) * before) @ weights[f"{block}{kind}.weight"].T


def time_mixing(weights: Weights, block: str, x: Floats) -> tuple[Floats, Floats, Floats]:
    """[T, D] in and out; and the memory's means and log-weights [T, D]."""
    r, k, v = (projection(weights, block, kind, x) for kind in ("receptance", "key", "value"))
    decay = np.exp(weights[block + "time_decay"])
    means, *memory = wkv(k, v, decay, weights[block + "time_first"])
    return (sigmoid(r) * means) @ weights[block + "output.weight"].T, memory[0], memory[1]


def channel_mixing(weights: Weights, block: str, x: Floats) -> Floats:
    """[T, D] in and out, gated, with the squared ReLU."""
    k, r = (projection(weights, block, kind, x) for kind in ("key", "receptance"))
    return sigmoid(r) * (np.maximum(k, 0) ** 2 @ weights[block + "value.weight"].T)


def wkv(k: Floats, v: Floats, decay: Floats, first: Floats) -> tuple[Floats, Floats, Floats]:
    """The WKV operator: the mean of all values so far, weighted by exp(key - age * decay).

    `k`, `v` [T, D]; `decay` [D], positive; `first` [D], the present token's bonus. Returns the
    means [T, D], and mean and log-weight [T, D] of what the next token finds as its past.
    """
    rows = []
    for t in range(len(k)):
        age = np.arange(t, -1, -1)[:, None]  # [t + 1, 1]: t for the first token, 0 for the present
        # The past was one token younger when the token before had been read.
        past = k[:t] - (age[:t] - 1) * decay
        mean, _ = weighted_mean(np.concatenate([past, first + k[t : t + 1]]), v[: t + 1])
        rows.append((mean, *weighted_mean(k[: t + 1] - age * decay, v[: t + 1])))
    means, memory_means, log_weights = (np.stack(row) for row in zip(*rows, strict=True))
    return means, memory_means, log_weights


def weighted_mean(exponents: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Mean over the first axis with weights exp(`exponents`), and the log of the weights' sum."""
    top = exponents.max(axis=0)
    weights = np.exp(exponents - top)
    total = weights.sum(axis=0)
    return (weights * values).sum(axis=0) / total, top + np.log(total)


def sigmoid(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -x))
