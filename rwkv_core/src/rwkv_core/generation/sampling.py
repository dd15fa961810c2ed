"""Samples the next token from logits, in NumPy, the same for every backend.

The order is fixed: logit bias and bans, penalties, processors (the user's own steps), temperature,
top-k, typical, top-p, min-p, one draw. The parameters are in `sampling_parameters`,
the steps themselves in `sampling_filters`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_core.errors import OptionError, RWKVError
from rwkv_core.generation import sampling_filters as steps
from rwkv_core.generation.sampling_parameters import Sampling
from rwkv_core.plugins.sampler import Logits, Processor


def check_vocabulary(sampling: Sampling, stop_tokens: Collection[int], n_vocab: int) -> None:
    """Raise OptionError if `sampling` or `stop_tokens` name a token that is not below `n_vocab`."""
    steps.check_vocabulary("logit_bias", sampling.logit_bias.keys(), n_vocab)
    steps.check_vocabulary("banned_tokens", sampling.banned_tokens, n_vocab)
    steps.check_vocabulary("stop_tokens", stop_tokens, n_vocab)


class TokenCounts:
    """Counts of each token in a growing history, such as one generation's.

    Recounting at each token would cost O(history), and searching for tokens that occur,
    O(vocabulary).

    Attributes:
        tokens: the tokens that occur, each once.
    """

    def __init__(self) -> None:
        self._counts = np.zeros(0, np.int64)
        self._n_counted = 0
        self.tokens: list[int] = []

    def of(self, history: Sequence[int], n_vocab: int) -> NDArray[np.int64]:
        """Return counts [V] of `history`, which must begin with the last call's history."""
        if len(self._counts) != n_vocab:
            self._counts, self._n_counted, self.tokens = np.zeros(n_vocab, np.int64), 0, []
        for token in history[self._n_counted :]:
            if not self._counts[token]:
                self.tokens.append(token)
            self._counts[token] += 1
        self._n_counted = len(history)
        return self._counts


@np.errstate(all="ignore")
def sample(
    logits: NDArray[Any],
    sampling: Sampling,
    history: Sequence[int],
    rng: np.random.Generator,
    processors: Sequence[Processor] = (),
    counts: TokenCounts | None = None,
) -> int:
    """Return the next token.

    Arguments:
        logits: [V], any float type.
        history: the tokens generated so far, for the penalties.
        rng: draws one uniform number per token, but no number at temperature 0.
        processors: the user's own steps, run after the penalties.
        counts: keeps the counts of this history between calls; None recounts.

    Raises RWKVError if the model's logits hold NaN or +inf. Raises OptionError if they have another
    shape, if penalties or processors make them NaN or +inf, or if every token is excluded.
    """
    given = np.asarray(logits, np.float64)
    if given.ndim != 1 or not given.size:
        raise OptionError(f"logits: found shape {list(given.shape)}, expected [V]")
    top = _checked_top(given, "the model's logits hold", "the model file or its dtype is at fault")
    scores = adjusted(given, sampling, history, counts or TokenCounts())
    if scores is not given:
        top = _checked_top(
            scores, "bias and penalties gave", "use values nearer 0 (repetition: 1)", OptionError
        )
    if processors:
        scores, top = _processed(scores, processors, history)
    if top == -np.inf:
        raise OptionError("every token is banned, expected at least one to be left")
    if sampling.temperature == 0:
        return int(np.argmax(scores))
    scores = steps.temperature(scores, sampling.temperature, top)
    tokens = None  # None for all of them
    if 0 < sampling.top_k < len(scores):
        tokens = steps.top_k(scores, sampling.top_k)
        scores = scores[tokens]
    weights, total = np.exp(scores), None
    if sampling.typical_p < 1:
        weights = steps.typical(scores, weights, sampling.typical_p)
    elif tokens is None and (sampling.top_p < 1 or sampling.min_p):
        tokens, total = steps.candidates(weights, sampling.top_p, sampling.min_p)
        weights = weights[tokens]
    if sampling.top_p < 1:
        weights = steps.top_p(weights, sampling.top_p, total)
    if sampling.min_p:
        weights = steps.min_p(weights, sampling.min_p)
    place = steps.draw(weights, rng)
    return place if tokens is None else int(tokens[place])


def _checked_top(
    scores: Logits, where: str, advice: str, error: type[RWKVError] = RWKVError
) -> float:
    """Return the largest of `scores` [V]. Raises `error` unless all are finite or -inf."""
    top = float(scores.max())
    if not is_drawable(top):
        raise error(f"{where} {top}, expected finite logits (or -inf): {advice}")
    return top


def is_drawable(logits: Any) -> bool:
    """Return whether all logits, of any shape, are finite or -inf, as drawing needs them."""
    top = float(np.max(logits))
    return not math.isnan(top) and top < math.inf


def adjusted(
    logits: Logits, sampling: Sampling, history: Sequence[int], counts: TokenCounts
) -> Logits:
    """Return `logits` [V] with bias, bans and penalties applied; `logits` itself if none is set."""
    if sampling.logit_bias:
        tokens, added = sampling.bias_arrays
        steps.check_vocabulary("logit_bias", tokens, len(logits))
        logits = steps.bias(logits, tokens, added)
    if sampling.banned_tokens:
        steps.check_vocabulary("banned_tokens", sampling.banned_array, len(logits))
        logits = steps.ban(logits, sampling.banned_array)
    if not history or not sampling.has_penalties:
        return logits
    found = counts.of(history, len(logits))
    tokens = np.array(counts.tokens, np.intp)
    # An overflow to -inf excludes the token, as intended; `sample` finds inf and NaN.
    with np.errstate(over="ignore", invalid="ignore"):
        if sampling.repetition_penalty != 1:
            logits = steps.repetition_penalty(logits, tokens, sampling.repetition_penalty)
        if sampling.presence_penalty:
            logits = steps.presence_penalty(logits, tokens, sampling.presence_penalty)
        if sampling.frequency_penalty:
            logits = steps.frequency_penalty(
                logits, tokens, found[tokens], sampling.frequency_penalty
            )
    return logits


def _processed(
    scores: Logits, processors: Sequence[Processor], history: Sequence[int]
) -> tuple[Logits, float]:
    """Return the scores [V] after all processors, and the largest of them."""
    size, top = scores.shape, 0.0
    scores = scores.copy()  # a processor may work in place
    for process in processors:
        given = process(scores, history)
        name = getattr(process, "__name__", type(process).__name__)
        try:
            scores = np.asarray(given, np.float64)
        except (TypeError, ValueError):
            raise OptionError(
                f"processors: found a {type(given).__name__} from {name}, expected logits [V]"
            ) from None
        if scores.shape != size:
            raise OptionError(
                f"processors: found logits of shape {list(scores.shape)}, expected {list(size)} "
                f"(from {name})"
            )
        advice = f"rule a token out with -inf, and all others to force one (from {name})"
        top = _checked_top(scores, "processors gave", advice)
    return scores, top
