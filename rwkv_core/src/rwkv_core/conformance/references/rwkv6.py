"""Reference of RWKV-6 in float64.

Source: B. Peng et al., Eagle and Finch (arXiv 2404.05892), section 4, in the form of attention: see
`rwkv5`.
T time, D width, H heads of N channels.
"""

from __future__ import annotations

import numpy as np

from rwkv_core.conformance.references.blocks import (
    Run,
    Sizes,
    before,
    group_norm,
    random_matrix,
    random_pair,
    random_shares,
)
from rwkv_core.conformance.references.blocks import random_weights as with_block
from rwkv_core.conformance.references.blocks import run as read
from rwkv_core.conformance.references.rwkv4 import Floats, Weights, sigmoid
from rwkv_core.conformance.references.rwkv5 import wkv

# The order of the five shares in time_maa_w1 and time_maa_w2.
ORDER = "wkvrg"


def random_weights(sizes: Sizes, seed: int = 0) -> Weights:
    """Return random weights; see `blocks.random_weights`."""
    width, head_size = sizes.n_embd, sizes.head_size
    rank, decay_rank = sizes.ranks[:2]

    def of_block(rng: np.random.Generator) -> Weights:
        up = [random_matrix(rng, width, rank).T for _ in ORDER]
        return {
            **random_shares(rng, "att.time_maa_", "x" + ORDER, width),
            **random_shares(rng, "ffn.time_maa_", "kr", width),
            "att.time_maa_w1": random_matrix(rng, 5 * rank, width).T,
            "att.time_maa_w2": np.stack(up),
            # Decays from a memory of hundreds of tokens to one of a single token.
            "att.time_decay": rng.permutation(np.linspace(-6, 2, width)).reshape(1, 1, width),
            **random_pair(rng, "att.time_decay_w", width, decay_rank),
            "att.time_faaaa": rng.normal(1.0, 1.0, (width // head_size, head_size)),
        }

    return with_block(sizes, of_block, gate=True, gated_channels=True, seed=seed)


def run(weights: Weights, tokens: list[int]) -> Run:
    """Run a model on `tokens` from the empty state."""
    return read(weights, tokens, time_mixing, channel_mixing)


def time_mixing(weights: Weights, block: str, x: Floats) -> tuple[Floats, Floats]:
    """Return the output [T, D] for `x` [T, D], and S after each token [T, H, N, N]."""
    w = {name[len(block) :]: array for name, array in weights.items() if name.startswith(block)}
    n_time, past = len(x), before(x)
    hidden = np.tanh(((1 - w["time_maa_x"][0]) * x + w["time_maa_x"][0] * past) @ w["time_maa_w1"])
    shares = np.stack([w["time_maa_" + name][0] for name in ORDER])  # [5, 1, D]
    shares = shares + np.einsum("tir,ird->itd", hidden.reshape(n_time, 5, -1), w["time_maa_w2"])
    xw, xk, xv, xr, xg = (1 - shares) * x + shares * past
    decay = w["time_decay"][0] + np.tanh(xw @ w["time_decay_w1"]) @ w["time_decay_w2"]
    r, k, v, g = (
        one @ w[f"{name}.weight"].T
        for one, name in ((xr, "receptance"), (xk, "key"), (xv, "value"), (xg, "gate"))
    )
    bonus = w["time_faaaa"]
    head_size = bonus.shape[1]
    y, s = wkv(r, np.exp(-np.exp(decay)), k, v, bonus.reshape(-1), head_size)
    y = group_norm(weights, block + "ln_x", y, head_size)
    return (y * g * sigmoid(g)) @ w["output.weight"].T, s


def channel_mixing(weights: Weights, block: str, x: Floats) -> Floats:
    """Return the output [T, D] for `x` [T, D]: gated, with the squared ReLU."""
    k, r = (
        ((1 - share) * x + share * before(x)) @ weights[f"{block}{name}.weight"].T
        for name in ("key", "receptance")
        for share in [weights[f"{block}time_maa_{name[0]}"][0]]
    )
    return sigmoid(r) * (np.maximum(k, 0) ** 2 @ weights[block + "value.weight"].T)
