"""The steps of the sampling chain, each a pure function: float64 logits [V] in, logits [V] out.

A token that a step rules out has the logit -inf. `sampling` puts the steps in order.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from rwkv_core.errors import OptionError

Logits = NDArray[np.float64]


def check_vocabulary(name: str, tokens: Collection[int], n_vocab: int) -> None:
    """Raise OptionError if the option `name` holds a token that is not below `n_vocab`."""
    if tokens and max(tokens) >= n_vocab:
        raise OptionError(f"{name}: found token {max(tokens)}, expected 0 to {n_vocab - 1}")


def bias(logits: Logits, added: Mapping[int, float]) -> Logits:
    """logits[t] + added[t] for each token t of `added`."""
    if not added:
        return logits
    check_vocabulary("logit_bias", added.keys(), len(logits))
    logits = logits.copy()
    logits[list(added)] += list(added.values())
    return logits


def ban(logits: Logits, tokens: Collection[int]) -> Logits:
    """-inf for each of `tokens`."""
    if not tokens:
        return logits
    check_vocabulary("banned_tokens", tokens, len(logits))
    logits = logits.copy()
    logits[list(tokens)] = -np.inf
    return logits


def repetition_penalty(logits: Logits, history: Sequence[int], penalty: float) -> Logits:
    """x / penalty where x > 0, x * penalty elsewhere, for tokens of `history`.

    Keskar et al. 2019 (CTRL, section 4.1) divide by the penalty. That would favour tokens whose
    logit is negative, so these are multiplied, as has become usual.
    """
    tokens = np.unique(history)
    logits = logits.copy()
    old = logits[tokens]
    logits[tokens] = np.where(old > 0, old / penalty, old * penalty)
    return logits


def presence_penalty(logits: Logits, history: Sequence[int], penalty: float) -> Logits:
    """x - penalty for tokens of `history`, however often they occur (OpenAI's API reference)."""
    tokens = np.unique(history)
    logits = logits.copy()
    logits[tokens] -= penalty
    return logits


def frequency_penalty(logits: Logits, history: Sequence[int], penalty: float) -> Logits:
    """x - penalty * the token's count in `history` (OpenAI's API reference)."""
    tokens, counts = np.unique(history, return_counts=True)
    logits = logits.copy()
    logits[tokens] -= penalty * counts
    return logits


def temperature(logits: Logits, value: float) -> Logits:
    """(x - max x) / value: softmax of it is softmax of x / value, and it cannot overflow up."""
    scaled = logits - logits.max()
    with np.errstate(over="ignore"):
        scaled /= value
    return scaled


def softmax(logits: Logits) -> Logits:
    """Probabilities [V], which sum to 1."""
    weights = _weights(logits)
    weights /= weights.sum()
    return weights


def _weights(logits: Logits) -> Logits:
    """exp(x - max x). In place: fresh memory of a vocabulary's size costs more than the exp."""
    weights = logits - logits.max()
    np.exp(weights, out=weights)
    return weights


def top_k(logits: Logits, k: int) -> Logits:
    """Keep the `k` largest; among equal ones the lowest token numbers."""
    if k >= len(logits):
        return logits
    edge = np.partition(logits, -k)[-k]
    above = np.flatnonzero(logits > edge)
    level = np.flatnonzero(logits == edge)[: k - len(above)]
    return _keep(logits, np.concatenate([above, level]))


def top_p(logits: Logits, mass: float) -> Logits:
    """Keep the likeliest tokens, as few as have together at least `mass` of the probability.

    Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration", section 3.1.
    """
    probabilities = softmax(logits)
    return _keep(logits, _first_of_mass(-probabilities, probabilities, mass))


def typical(logits: Logits, mass: float) -> Logits:
    """Keep the tokens whose surprise is nearest the expected one, as few as have `mass`.

    Surprise is -log p, its expectation the entropy. Meister et al. 2022, "Locally Typical
    Sampling", section 3.
    """
    probabilities = softmax(logits)
    with np.errstate(divide="ignore"):
        surprise = -np.log(probabilities)
    possible = probabilities > 0
    entropy = (probabilities[possible] * surprise[possible]).sum()
    return _keep(logits, _first_of_mass(np.abs(surprise - entropy), probabilities, mass))


def min_p(logits: Logits, fraction: float) -> Logits:
    """Keep tokens at least `fraction` as likely as the likeliest (Nguyen et al. 2024)."""
    return np.where(logits >= logits.max() + math.log(fraction), logits, -np.inf)


def _first_of_mass(key: Logits, probabilities: Logits, mass: float) -> NDArray[np.intp]:
    """The first tokens by ascending `key`, then by number, as few as have `mass` together.

    Sorting a vocabulary takes milliseconds, and few tokens are wanted as a rule: so only the
    smallest keys are sorted, as many as have the mass.
    """
    size = 64
    while size < len(key):
        candidates = np.flatnonzero(key <= np.partition(key, size)[size])
        if probabilities[candidates].sum() > mass:
            break
        size *= 8
    else:
        candidates = np.arange(len(key))
    ranked = candidates[np.argsort(key[candidates])]
    cumulative = np.cumsum(probabilities[ranked])
    count = min(int(np.searchsorted(cumulative, mass)) + 1, len(ranked))
    # The sort leaves equal keys in any order: of those at the edge, take the lowest numbers.
    edge = key[ranked[count - 1]]
    before = np.flatnonzero(key < edge)
    level = np.flatnonzero(key == edge)[: count - len(before)]
    return np.concatenate([before, level])


def _keep(logits: Logits, tokens: NDArray[np.intp]) -> Logits:
    kept = np.full_like(logits, -np.inf)
    kept[tokens] = logits[tokens]
    return kept


def draw(logits: Logits, rng: np.random.Generator) -> int:
    """A token at random, by inverse CDF in the order of token numbers.

    That order does not depend on the logits, so logits that agree to rounding give the same
    token for the same random number.
    """
    cumulative = _weights(logits)
    np.cumsum(cumulative, out=cumulative)
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
