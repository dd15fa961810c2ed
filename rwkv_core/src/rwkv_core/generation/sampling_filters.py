"""The steps of the sampling chain, each a pure function over a vocabulary of V tokens.

Up to top-k they take logits, float64 [V], and a token that is ruled out has the logit -inf. The
filters after it take weights, float64 [V]: probabilities but for a factor, at most 1, and a token
that is ruled out has 0. `sampling` puts the steps in order.

A vocabulary has 50,000 tokens and more, and to sort them takes milliseconds a token. So the filters
narrow down where their edge is by sums over the whole, and sort the few tokens that are near it.
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
"""Tokens that are sorted as they are."""
_BUCKET_BITS = 10
_MAX_BUCKETS = 4 << _BUCKET_BITS
_BLOCK = 256
_MIN_LOGIT = -745.0
"""Of weight 0, as are all below it."""
_ONE = np.float64(1).view(np.int64)


def check_vocabulary(name: str, tokens: Collection[int], n_vocab: int) -> None:
    """Raise OptionError if the option `name` holds a token that is not below `n_vocab`."""
    if len(tokens) and (top := max(tokens)) >= n_vocab:
        raise OptionError(f"{name}: found token {top}, expected 0 to {n_vocab - 1}")


def bias(logits: Logits, tokens: Tokens, added: NDArray[np.float64]) -> Logits:
    """logits[t] + a for each token t of `tokens` [n], which differ, and its a of `added` [n]."""
    logits = logits.copy()
    logits[tokens] += added
    return logits


def ban(logits: Logits, tokens: Tokens) -> Logits:
    """-inf for each of `tokens` [n]."""
    logits = logits.copy()
    logits[tokens] = -np.inf
    return logits


def repetition_penalty(logits: Logits, tokens: Tokens, penalty: float) -> Logits:
    """x / penalty where x > 0, x * penalty elsewhere, for `tokens` [n], which have occurred.

    Keskar et al. 2019 (CTRL, section 4.1) divide by the penalty. That would favour tokens whose
    logit is negative, so these are multiplied, as has become usual.
    """
    logits = logits.copy()
    old = logits[tokens]
    logits[tokens] = np.where(old > 0, old / penalty, old * penalty)
    return logits


def presence_penalty(logits: Logits, tokens: Tokens, penalty: float) -> Logits:
    """x - penalty for `tokens` [n], which have occurred, however often (OpenAI's API reference)."""
    logits = logits.copy()
    logits[tokens] -= penalty
    return logits


def frequency_penalty(logits: Logits, tokens: Tokens, counts: Tokens, penalty: float) -> Logits:
    """x - penalty * the token's count, for `tokens` [n] and their `counts` [n] (OpenAI's API
    reference)."""
    logits = logits.copy()
    logits[tokens] -= penalty * counts
    return logits


def temperature(logits: Logits, value: float, top: float) -> Logits:
    """(x - top) / value, `top` being the largest: softmax of it is softmax of x / value, and it
    cannot overflow up."""
    with np.errstate(over="ignore"):
        scaled = logits - top
        if value != 1:
            scaled /= value
    return scaled


def top_k(logits: Logits, k: int) -> Tokens:
    """The `k` likeliest tokens, k <= V, ascending; among equal ones the lowest numbers."""
    # The k-th of these maxima is a lower bound: k of them reach it.
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


def top_p(weights: Weights, mass: float) -> Weights:
    """Keep the likeliest tokens, as few as have together at least `mass` of the probability.

    Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1.
    """
    total = float(weights.sum())
    # The bits of a positive float, read as an integer, grow with it, about as its logarithm does.
    key = _ONE - weights.view(np.int64)
    last = _ONE - np.float64(_least_that_matters(weights, total, mass)).view(np.int64)
    return weights * _first_of_mass(key, weights, mass * total, int(last))


def typical(logits: Logits, weights: Weights, mass: float) -> Weights:
    """Keep the tokens whose surprise is nearest the expected one, as few as have `mass`.

    `logits` are the logarithms of `weights`.

    Surprise is -log p, its expectation the entropy. Meister et al. 2022, "Locally Typical
    Sampling", section 3.
    """
    logs = np.maximum(logits, _MIN_LOGIT)
    # Surprise and entropy are both off by the logarithm of the sum, their difference is not.
    total = float(weights.sum())
    mean = float(np.einsum("i,i->", weights, logs)) / total
    last = max(abs(math.log(_least_that_matters(weights, total, mass)) - mean), abs(mean))
    # Whole numbers of 2**-52, the rounding of a logarithm.
    logs -= mean
    np.abs(logs, out=logs)
    logs *= 2.0**52
    key = logs.astype(np.int64)
    return weights * _first_of_mass(key, weights, mass * total, int(last * 2.0**52))


def min_p(weights: Weights, fraction: float) -> Weights:
    """Keep tokens at least `fraction` as likely as the likeliest (Nguyen et al. 2024)."""
    return weights * (weights >= fraction * weights.max())


def _least_that_matters(weights: Weights, total: float, mass: float) -> float:
    """Tokens of less weight than this have together less than 1 - `mass` of the probability."""
    return (1 - mass) * total / len(weights)


def _first_of_mass(
    key: NDArray[np.int64], weights: Weights, wanted: float, last: int
) -> NDArray[np.bool]:
    """Mask of the smallest prefix, in (key, token) order, whose weights reach `wanted`.

    They reach it at a key of at most `last`.
    """
    # By sums over buckets of keys: the tokens among which it is reached.
    near, keys, masses, before = None, key, weights, 0.0
    # Mostly few are needed at all: then the sums are over those.
    needed = key <= last
    if 4 * np.count_nonzero(needed) < len(key):
        near = np.flatnonzero(needed)
        keys, masses = key[near], weights[near]
    while len(keys) > _MAX_SORTED and (low := int(keys.min())) < min(high := int(keys.max()), last):
        buckets = keys - low
        shift = max(0, (min(high, last) - low).bit_length() - _BUCKET_BITS)
        buckets >>= shift
        # Buckets after the last are not needed, but adding all the rest to one would be slow.
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
    """A token at random, by inverse CDF in the order of token numbers.

    That order does not depend on the logits, so logits that agree to rounding give the same
    token for the same random number.
    """
    # A running sum over the whole takes as long as all else here: first which block, then where.
    blocks = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK)))
    target = rng.random() * blocks[-1]
    block = int(np.searchsorted(blocks, target, side="right"))
    start = block * _BLOCK
    within = np.cumsum(weights[start : start + _BLOCK])
    target -= blocks[block - 1] if block else 0.0
    # The two sums of a block differ by rounding: a target beyond its end is at its end.
    target = min(target, np.nextafter(within[-1], 0.0))
    return start + int(np.searchsorted(within, target, side="right"))
