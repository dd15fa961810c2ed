"""The steps of the sampling chain, each a pure function over a vocabulary of V tokens.

Steps up to top-k take logits, float64 [V]; an excluded token has the logit -inf. The later filters
take weights, float64 [V]: probabilities times a constant factor, at most 1; an excluded token has
the weight 0. `sampling` runs the steps in order.

Sorting a vocabulary of 50,000 tokens or more takes milliseconds. So a filter does not sort all
tokens. Sums over all tokens first show which tokens are certainly kept or dropped, and only the
remaining tokens are sorted.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_core.errors import OptionError
from rwkv_core.plugins.sampler import Logits

Weights = NDArray[np.float64]
Tokens = NDArray[np.integer[Any]]

_MAX_SORTED = 1024
"""Number of tokens that are sorted without narrowing down first."""
_BUCKET_BITS = 10
_MAX_BUCKETS = 4 << _BUCKET_BITS
_BLOCK = 256
_MIN_LOGIT = -745.0
"""The weight of this logit, and of smaller ones, is 0 in float64."""
_ONE = np.float64(1).view(np.int64)


def check_vocabulary(name: str, tokens: Collection[int], n_vocab: int) -> None:
    """Raise OptionError if the option `name` holds a token that is not below `n_vocab`."""
    if len(tokens) and (top := max(tokens)) >= n_vocab:
        raise OptionError(f"{name}: found token {top}, expected 0 to {n_vocab - 1}")


def bias(logits: Logits, tokens: Tokens, added: NDArray[np.float64]) -> Logits:
    """Return `logits` [V] with `added` [n] added at `tokens` [n], which are distinct."""
    logits = logits.copy()
    logits[tokens] += added
    return logits


def ban(logits: Logits, tokens: Tokens) -> Logits:
    """Return `logits` [V] with -inf at `tokens` [n]."""
    logits = logits.copy()
    logits[tokens] = -np.inf
    return logits


def repetition_penalty(logits: Logits, tokens: Tokens, penalty: float) -> Logits:
    """Return `logits` [V] with x / penalty (if x > 0) or x * penalty at `tokens` [n].

    `tokens` are the tokens that have occurred. Keskar et al. 2019 (CTRL, section 4.1) divide every
    logit by the penalty. That would favour tokens with a negative logit, so negative logits are
    multiplied, as is usual today.
    """
    logits = logits.copy()
    old = logits[tokens]
    logits[tokens] = np.where(old > 0, old / penalty, old * penalty)
    return logits


def presence_penalty(logits: Logits, tokens: Tokens, penalty: float) -> Logits:
    """Return `logits` [V] with `penalty` subtracted at `tokens` [n], which have occurred.

    Source: OpenAI's API reference.
    """
    logits = logits.copy()
    logits[tokens] -= penalty
    return logits


def frequency_penalty(logits: Logits, tokens: Tokens, counts: Tokens, penalty: float) -> Logits:
    """Return `logits` [V] with `penalty * counts` subtracted at `tokens` [n].

    `counts` [n] tells how often each token has occurred. Source: OpenAI's API reference.
    """
    logits = logits.copy()
    logits[tokens] -= penalty * counts
    return logits


def temperature(logits: Logits, value: float, top: float) -> Logits:
    """Return (logits - top) / value, where `top` is the largest logit.

    The result has the same softmax as logits / value, and cannot overflow to +inf.
    """
    with np.errstate(over="ignore"):
        scaled = logits - top
        if value != 1:
            scaled /= value
    return scaled


def top_k(logits: Logits, k: int) -> Tokens:
    """Return the `k` likeliest tokens, k <= V, ascending; among equals the lowest numbers."""
    # The k-th largest of these maxima is a lower bound: k tokens reach it.
    width = max(1, len(logits) // (8 * k))
    rows = len(logits) // width
    maxima = logits[: rows * width].reshape(width, rows).max(axis=0)
    candidates = np.flatnonzero(logits >= np.partition(maxima, -k)[-k])
    values = logits[candidates]
    edge = np.partition(values, -k)[-k]
    kept = values > edge
    level = np.flatnonzero(values == edge)
    kept[level[: k - np.count_nonzero(kept)]] = True
    return candidates[kept]


def top_p(weights: Weights, mass: float, total: float | None = None) -> Weights:
    """Keep the smallest set of the likeliest tokens whose probability is at least `mass`.

    `total` is the sum of the weights of all tokens. `weights` may leave out tokens that would not
    be kept.

    Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1.
    """
    total = float(weights.sum()) if total is None else total
    # The bits of a positive float, read as an integer, grow roughly with its logarithm.
    key = _ONE - weights.view(np.int64)
    last = _ONE - np.float64(_least_that_matters(weights, total, mass)).view(np.int64)
    return weights * _first_of_mass(key, weights, mass * total, int(last))


def typical(logits: Logits, weights: Weights, mass: float) -> Weights:
    """Keep the smallest set of tokens with a typical surprise whose probability is at least `mass`.

    Surprise is -log p, and its expectation is the entropy. Tokens whose surprise is nearest to the
    entropy are kept first.
    `logits` are the logarithms of `weights`. Source: Meister et al. 2022, "Locally Typical
    Sampling", section 3.
    """
    logs = np.maximum(logits, _MIN_LOGIT)
    # Weights are not normalized, which shifts surprise and entropy by the same amount.
    total = float(weights.sum())
    mean = float(np.einsum("i,i->", weights, logs)) / total
    last = max(abs(math.log(_least_that_matters(weights, total, mass)) - mean), abs(mean))
    # In units of 2**-52, the rounding error of a logarithm.
    logs -= mean
    np.abs(logs, out=logs)
    logs *= 2.0**52
    key = logs.astype(np.int64)
    return weights * _first_of_mass(key, weights, mass * total, int(last * 2.0**52))


def min_p(weights: Weights, fraction: float) -> Weights:
    """Keep tokens at least `fraction` as likely as the likeliest (Nguyen et al. 2024)."""
    return weights * (weights >= fraction * weights.max())


def candidates(weights: Weights, mass: float, fraction: float) -> tuple[Tokens, float]:
    """Return the tokens that `top_p` of `mass` and then `min_p` of `fraction` may keep, ascending.

    Usually these are few tokens, so that the filters become fast. Also returns the sum of all
    weights.
    """
    total = float(weights.sum())
    least = _least_that_matters(weights, total, mass)
    if fraction:
        least = max(least, fraction * float(weights.max()))
    return np.flatnonzero(weights >= least), total


def _least_that_matters(weights: Weights, total: float, mass: float) -> float:
    """Return a weight: all tokens below it together have less than 1 - `mass` of `total`."""
    return (1 - mass) * total / len(weights)


def _first_of_mass(
    key: NDArray[np.int64], weights: Weights, wanted: float, last: int
) -> NDArray[np.bool]:
    """Return the mask [V] of the smallest prefix whose weights reach `wanted`.

    The prefix is one of the tokens in (key, token) order. `last` is a key whose tokens, together
    with all tokens of smaller keys, certainly weigh `wanted` or more.
    """
    # Sums over buckets of keys narrow down the tokens among which the edge is.
    near, keys, masses, before = None, key, weights, 0.0
    # Usually few tokens are needed; then only those are summed.
    needed = key <= last
    if 4 * np.count_nonzero(needed) < len(key):
        near = np.flatnonzero(needed)
        keys, masses = key[near], weights[near]
    while len(keys) > _MAX_SORTED and (low := int(keys.min())) < min(high := int(keys.max()), last):
        buckets = keys - low
        shift = max(0, (min(high, last) - low).bit_length() - _BUCKET_BITS)
        buckets >>= shift
        # Buckets beyond the limit are not needed. They share several, as one would be slow.
        if (high - low) >> shift > _MAX_BUCKETS:
            np.minimum(buckets, _MAX_BUCKETS, out=buckets)
        reached = before + np.cumsum(np.bincount(buckets, masses))
        edge = min(int(np.searchsorted(reached, wanted)), len(reached) - 1)
        before = reached[edge - 1] if edge else before
        inside = buckets == edge
        near = np.flatnonzero(inside) if near is None else near[inside]
        keys, masses = keys[inside], masses[inside]
    order = np.argsort(keys, kind="stable")
    reached = before + np.cumsum(masses[order])
    ranked = order[: np.searchsorted(reached, wanted) + 1]
    kept = key < keys[ranked[-1]]
    kept[ranked if near is None else near[ranked]] = True
    return kept


def draw(weights: Weights, rng: np.random.Generator) -> int:
    """Draw a token at random, by inverse CDF in the order of token numbers.

    This order does not depend on the logits, so logits that differ only by rounding give the same
    token for the same random number.
    """
    # A cumulative sum over all tokens would double the time: the block is found first.
    blocks = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK)))
    target = rng.random() * blocks[-1]
    block = int(np.searchsorted(blocks, target, side="right"))
    start = block * _BLOCK
    within = np.cumsum(weights[start : start + _BLOCK])
    target -= blocks[block - 1] if block else 0.0
    # The two sums of a block differ by rounding, so the target is limited to the block's end.
    target = min(target, np.nextafter(within[-1], 0.0))
    return start + int(np.searchsorted(within, target, side="right"))
