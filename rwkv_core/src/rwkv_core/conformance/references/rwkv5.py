"""Reference of RWKV-5.0, 5.1 and 5.2 in float64.

Source: B. Peng et al., Eagle and Finch (arXiv 2404.05892), section 4, in the form of attention: a
token's output is a sum over all tokens before it, whose keys are weighted by the decays in between.
T time, D width, H heads of N channels.
"""

from __future__ import annotations

import numpy as np

from rwkv_core.conformance.references.blocks import (
    Run,
    Sizes,
    before,
    by_head,
    group_norm,
    random_shares,
)
from rwkv_core.conformance.references.blocks import random_weights as with_block
from rwkv_core.conformance.references.blocks import run as read
from rwkv_core.conformance.references.rwkv4 import Floats, Weights, sigmoid


def random_weights(sizes: Sizes, version: str = "5.2", seed: int = 0) -> Weights:
    """Return random weights; see `blocks.random_weights`."""
    width, head_size = sizes.n_embd, sizes.head_size
    n_head, gate = width // head_size, version != "5.0"
    shape = (n_head, head_size) if version == "5.2" else (n_head,)

    def of_block(rng: np.random.Generator) -> Weights:
        return {
            **random_shares(rng, "att.time_mix_", "kvrg" if gate else "kvr", width),
            **random_shares(rng, "ffn.time_mix_", "kr", width),
            # Decays from a memory of hundreds of tokens to one of a single token.
            "att.time_decay": rng.permutation(np.linspace(-6, 2, np.prod(shape))).reshape(shape),
            "att.time_faaaa" if gate else "att.time_first": rng.normal(1.0, 1.0, shape),
        }

    return with_block(sizes, of_block, gate, gated_channels=True, seed=seed)


def run(weights: Weights, tokens: list[int]) -> Run:
    """Run a model on `tokens` from the empty state; `weights` determine the version."""
    return read(weights, tokens, time_mixing, channel_mixing)


def projection(weights: Weights, block: str, kind: str, x: Floats) -> Floats:
    """Return W (mu x_t + (1 - mu) x_{t-1}) for each token, a token shift; x_{-1} is zero."""
    mu = weights[f"{block}time_mix_{kind[0]}"].reshape(-1)
    return (mu * x + (1 - mu) * before(x)) @ weights[f"{block}{kind}.weight"].T


def time_mixing(weights: Weights, block: str, x: Floats) -> tuple[Floats, Floats]:
    """Return the output [T, D] for `x` [T, D], and S after each token [T, H, N, N]."""
    r, k, v = (projection(weights, block, kind, x) for kind in ("receptance", "key", "value"))
    decay, width = weights[block + "time_decay"], x.shape[1]
    head_size = width // len(decay)
    if block + "time_first" in weights:
        bonus = np.exp(weights[block + "time_first"])
    else:
        bonus = weights[block + "time_faaaa"]
    # A value for each channel, or one for all of a head.
    w, bonus = (
        np.broadcast_to(one.reshape(len(decay), -1), (len(decay), head_size)).reshape(-1)
        for one in (np.exp(-np.exp(decay)), bonus)
    )
    y, s = wkv(r, np.broadcast_to(w, k.shape), k, v, bonus, head_size)
    y = group_norm(weights, block + "ln_x", y, head_size)
    if block + "gate.weight" in weights:
        g = projection(weights, block, "gate", x)
        y = y * g * sigmoid(g)
    return y @ weights[block + "output.weight"].T, s


def channel_mixing(weights: Weights, block: str, x: Floats) -> Floats:
    """Return the output [T, D] for `x` [T, D]: gated, with the squared ReLU."""
    k, r = (projection(weights, block, kind, x) for kind in ("key", "receptance"))
    return sigmoid(r) * (np.maximum(k, 0) ** 2 @ weights[block + "value.weight"].T)


def wkv(
    r: Floats, w: Floats, k: Floats, v: Floats, bonus: Floats, head_size: int
) -> tuple[Floats, Floats]:
    """Compute attention with decays: y_t = sum over i < t of v_i (r_t . k_i w_i+1..w_t-1).

    This is the scan of RWKV-5 and 6. `r`, `w`, `k`, `v` are [T, D]; `bonus` [D] weights the current
    token's key instead of decays. Returns y [T, D], and S after each token [T, H, N, N]: the sum
    over i <= t of v_i (k_i w_i+1..w_t)^T.
    """
    values = by_head(v, head_size)
    y = values * by_head(r * k * bonus, head_size).sum(axis=-1, keepdims=True)
    keys, s = np.zeros((values.shape[1], 0, head_size)), []  # [H, t, N]: of all tokens before
    for t, now in enumerate(by_head(r, head_size)[..., None]):
        so_far = values[: t + 1].transpose(1, 2, 0)  # [H, N, t + 1]
        y[t] += (so_far[..., :t] @ (keys @ now))[..., 0]
        keys = by_head(faded(k[: t + 1], w[: t + 1]), head_size).transpose(1, 0, 2)
        s.append(so_far @ keys)
    return y.reshape(k.shape), np.stack(s)


def faded(k: Floats, w: Floats) -> Floats:
    """Return each key of `k` [T, D] times the decays `w` [T, D] of all tokens after it."""
    left = np.ones_like(k)
    left[:-1] = np.cumprod(w[:0:-1], axis=0)[::-1]
    return k * left
