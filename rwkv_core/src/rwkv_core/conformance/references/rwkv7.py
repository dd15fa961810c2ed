"""Reference of RWKV-7 in float64.

Source: B. Peng et al., RWKV-7 "Goose" (arXiv 2503.14456), section 4. A head's S is written out as a
sum over the past, with a product of transition matrices in each term:

    S_t = sum over i <= t of v_i k_i^T A_i+1 ... A_t,    A = diag(w) - kk b^T,    y_t = S_t r_t

T time, D width, H heads of N channels.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from rwkv_core.conformance.references.blocks import (
    Run,
    Sizes,
    before,
    by_head,
    group_norm,
    random_pair,
    random_shares,
)
from rwkv_core.conformance.references.blocks import random_weights as with_block
from rwkv_core.conformance.references.blocks import run as read
from rwkv_core.conformance.references.rwkv4 import Floats, Weights, sigmoid


def random_weights(sizes: Sizes, seed: int = 0) -> Weights:
    """Return random weights; see `blocks.random_weights`. Layer 0 has unused v0, v1 and v2."""
    width, head_size = sizes.n_embd, sizes.head_size

    def of_block(rng: np.random.Generator) -> Weights:
        weights = random_shares(rng, "att.x_", "rwkvag", width)
        weights |= random_shares(rng, "ffn.x_", "k", width)
        for name, rank in zip("wavg", sizes.ranks, strict=True):
            # Decays have a narrow range, so only large changes of their input have an effect.
            size = 3.0 if name == "w" else 1.0
            weights |= random_pair(rng, "att." + name, width, rank, size)
        return weights | {
            # Decays from 0.999 to 0.55.
            "att.w0": rng.permutation(np.linspace(-6, 2, width)).reshape(1, 1, width),
            "att.a0": rng.normal(0.0, 1.0, (1, 1, width)),
            "att.v0": rng.normal(0.0, 1.0, (1, 1, width)),
            "att.k_k": rng.normal(0.7, 0.3, (1, 1, width)),
            "att.k_a": rng.normal(1.0, 0.3, (1, 1, width)),
            "att.r_k": rng.normal(0.0, 0.5, (width // head_size, head_size)),
        }

    return with_block(sizes, of_block, gate=False, gated_channels=False, seed=seed)


def run(weights: Weights, tokens: list[int]) -> Run:
    """Run a model on `tokens` from the empty state."""
    values_of_first: list[Floats] = []
    return read(weights, tokens, partial(time_mixing, values_of_first), channel_mixing)


def time_mixing(
    values_of_first: list[Floats], weights: Weights, block: str, x: Floats
) -> tuple[Floats, Floats]:
    """Return the output [T, D] for `x` [T, D], and S after each token [T, H, N, N].

    `values_of_first` is empty in the first layer, which adds its values [T, D] to it.
    """
    w = {name[len(block) :]: array for name, array in weights.items() if name.startswith(block)}
    mixed = {name: (1 - w[f"x_{name}"][0]) * x + w[f"x_{name}"][0] * before(x) for name in "rwkvag"}
    r, k, v = (mixed[name[0]] @ w[f"{name}.weight"].T for name in ("receptance", "key", "value"))
    decay = np.exp(-np.exp(-0.5) * sigmoid(w["w0"][0] + np.tanh(mixed["w"] @ w["w1"]) @ w["w2"]))
    a = sigmoid(w["a0"][0] + mixed["a"] @ w["a1"] @ w["a2"])
    g = sigmoid(mixed["g"] @ w["g1"]) @ w["g2"]
    if values_of_first:
        share = sigmoid(w["v0"][0] + mixed["v"] @ w["v1"] @ w["v2"])
        v = (1 - share) * v + share * values_of_first[0]
    else:
        values_of_first.append(v)
    bonus = w["r_k"]
    head_size = bonus.shape[1]
    kk = unit_heads(k * w["k_k"][0], head_size)
    k = (1 - w["k_a"][0]) * k + w["k_a"][0] * a * k
    y, s = wkv(r, decay, k, v, kk, a * kk, head_size)
    y = group_norm(weights, block + "ln_x", y, head_size)
    present = by_head(r * k, head_size) * bonus
    extra = present.sum(-1, keepdims=True) * by_head(v, head_size)
    return ((y + extra.reshape(y.shape)) * g) @ w["output.weight"].T, s


def unit_heads(x: Floats, head_size: int) -> Floats:
    """Return `x` [T, D], each head divided by its length; a head of zeros is unchanged."""
    heads = by_head(x, head_size)
    return (heads / np.maximum(np.linalg.norm(heads, axis=-1, keepdims=True), 1e-12)).reshape(
        x.shape
    )


def channel_mixing(weights: Weights, block: str, x: Floats) -> Floats:
    """Return the output [T, D] for `x` [T, D], with the squared ReLU."""
    share = weights[block + "x_k"][0]
    k = ((1 - share) * x + share * before(x)) @ weights[block + "key.weight"].T
    return np.maximum(k, 0) ** 2 @ weights[block + "value.weight"].T


def wkv(
    r: Floats, w: Floats, k: Floats, v: Floats, kk: Floats, b: Floats, head_size: int
) -> tuple[Floats, Floats]:
    """Return y [T, D], and S after each token [T, H, N, N]. All arrays are [T, D]."""
    r, w, k, v, kk, b = (by_head(one, head_size) for one in (r, w, k, v, kk, b))
    transitions = w[:, :, None] * np.eye(head_size) - kk[..., None] * b[:, :, None]
    keys = np.zeros((k.shape[1], 0, head_size))  # [H, t, N]: k_i^T times the A of all later tokens
    y, s = [], []
    for t in range(len(k)):
        keys = np.concatenate([keys @ transitions[t], k[t][:, None]], axis=1)
        values = v[: t + 1].transpose(1, 2, 0)  # [H, N, t + 1]
        y.append((values @ (keys @ r[t][..., None])).reshape(-1))
        s.append(values @ keys)
    return np.stack(y), np.stack(s)
