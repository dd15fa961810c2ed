"""From logits to the next token: one chain in NumPy, the same for every backend.

The order is fixed: logit bias and bans, penalties, processors (the user's own steps), temperature,
top-k, typical, top-p, min-p, one draw. The steps themselves are in `sampling_steps`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_core.errors import OptionError, RWKVError
from rwkv_core.generation import sampling_filters as steps
from rwkv_core.plugins.sampler import Logits, Processor


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The defaults draw from the model's own distribution.

    Attributes:
        temperature: logits are divided by it; 0 takes the likeliest token, with no draw.
        top_k: keep this many of the likeliest tokens; 0 keeps all.
        typical_p: keep the most typical tokens, up to this probability mass; 1 keeps all.
        top_p: keep the likeliest tokens, up to this probability mass; 1 keeps all.
        min_p: keep tokens at least this fraction as likely as the likeliest; 0 keeps all.
        repetition_penalty, presence_penalty, frequency_penalty: against tokens generated already
            in this call; see the functions of these names.
        logit_bias: token -> number added to its logit.
        banned_tokens: tokens that are never chosen.

    Raises OptionError for a value of the wrong type or out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    typical_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    banned_tokens: Collection[int] = ()

    def __post_init__(self) -> None:
        _check(self, "temperature", "a number >= 0", lambda x: x >= 0)
        _check(self, "top_p", "a number > 0 and <= 1", lambda x: 0 < x <= 1)
        _check(self, "typical_p", "a number > 0 and <= 1", lambda x: 0 < x <= 1)
        _check(self, "min_p", "a number from 0 to 1", lambda x: 0 <= x <= 1)
        _check(self, "repetition_penalty", "a number > 0", lambda x: x > 0)
        _check(self, "presence_penalty", "a number", lambda x: True)
        _check(self, "frequency_penalty", "a number", lambda x: True)
        if not is_whole(self.top_k) or self.top_k < 0:
            raise OptionError(f"top_k: found {self.top_k!r}, expected a whole number >= 0")
        _check_logit_bias(self.logit_bias)
        if isinstance(self.banned_tokens, str) or not isinstance(self.banned_tokens, Collection):
            raise OptionError(f"banned_tokens: found {self.banned_tokens!r}, expected tokens")
        check_tokens("banned_tokens", self.banned_tokens)
        object.__setattr__(self, "top_k", int(self.top_k))
        # Copies: what the caller changes later must not get past these checks.
        bias = {token: float(value) for token, value in self.logit_bias.items()}
        object.__setattr__(self, "logit_bias", bias)
        object.__setattr__(self, "banned_tokens", tuple(self.banned_tokens))

    # Kept, since the conversion of a long list takes longer than all else that a token needs.
    @cached_property
    def bias_arrays(self) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """The tokens of `logit_bias`, and what is added to their logits."""
        n = len(self.logit_bias)
        return np.fromiter(self.logit_bias, np.intp, n), np.fromiter(
            self.logit_bias.values(), np.float64, n
        )

    @cached_property
    def banned_array(self) -> NDArray[np.intp]:
        """`banned_tokens`."""
        return np.array(self.banned_tokens, np.intp)

    @property
    def has_penalties(self) -> bool:
        """Whether tokens generated already change the choice."""
        return bool(self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty)


def is_whole(value: object) -> bool:
    """Whether `value` is an integer of Python's or NumPy's, and not a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    try:
        float(value)
    except OverflowError:  # A whole number that no float holds.
        return False
    return True


def _check(sampling: Sampling, name: str, expected: str, fits: Callable[[Any], bool]) -> None:
    value = getattr(sampling, name)
    if not _is_number(value) or not math.isfinite(value) or not fits(value):
        raise OptionError(f"{name}: found {value!r}, expected {expected}")
    object.__setattr__(sampling, name, float(value))


def _check_logit_bias(bias: object) -> None:
    if not isinstance(bias, Mapping):
        raise OptionError(f"logit_bias: found {bias!r}, expected a mapping of tokens to numbers")
    check_tokens("logit_bias", bias)
    for token, value in bias.items():
        if not _is_number(value) or math.isnan(value) or float(value) == math.inf:
            raise OptionError(f"logit_bias of {token}: found {value!r}, expected a number or -inf")


def check_tokens(name: str, tokens: Collection[object]) -> None:
    """Raise OptionError unless the option `name` holds only whole numbers >= 0."""
    if not isinstance(tokens, Iterable):
        raise OptionError(f"{name}: found {tokens!r}, expected a list of token numbers")
    for token in tokens:
        if not is_whole(token) or not 0 <= token < 2**63:  # type: ignore[operator]
            raise OptionError(f"{name}: found {token!r}, expected token numbers >= 0")


def check_vocabulary(sampling: Sampling, stop_tokens: Collection[int], n_vocab: int) -> None:
    """Raise OptionError if one of the tokens that they name is not below `n_vocab`."""
    steps.check_vocabulary("logit_bias", sampling.logit_bias.keys(), n_vocab)
    steps.check_vocabulary("banned_tokens", sampling.banned_tokens, n_vocab)
    steps.check_vocabulary("stop_tokens", stop_tokens, n_vocab)


class TokenCounts:
    """How often each token occurs in a history that grows, such as one generation's.

    Recounting at each token would cost O(history).
    """

    def __init__(self) -> None:
        self._counts = np.zeros(0, np.int64)
        self._n_counted = 0

    def of(self, history: Sequence[int], n_vocab: int) -> NDArray[np.int64]:
        """Counts [V] of `history`, which begins with that of the call before."""
        if len(self._counts) != n_vocab:
            self._counts, self._n_counted = np.zeros(n_vocab, np.int64), 0
        np.add.at(self._counts, np.asarray(history[self._n_counted :], np.intp), 1)
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
    """The next token.

    Arguments:
        logits: [V], any float type.
        history: the tokens generated so far in this call, which the penalties go by.
        rng: gives one uniform number a token; none at temperature 0.
        processors: the user's own steps, run after the penalties.
        counts: where counts of this history are kept from token to token; None recounts.

    Raises RWKVError for logits that are not numbers, OptionError for ones of another shape, for
    penalties that make them no numbers, or if nothing is left to choose.
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
    weights = np.exp(scores)
    if sampling.typical_p < 1:
        weights = steps.typical(scores, weights, sampling.typical_p)
    if sampling.top_p < 1:
        weights = steps.top_p(weights, sampling.top_p)
    if sampling.min_p:
        weights = steps.min_p(weights, sampling.min_p)
    place = steps.draw(weights, rng)
    return place if tokens is None else int(tokens[place])


def _checked_top(
    scores: Logits, where: str, advice: str, error: type[RWKVError] = RWKVError
) -> float:
    """The largest. Raises `error` if it, or any, is no number that can be drawn by."""
    top = float(scores.max())
    if not is_drawable(top):
        raise error(f"{where} {top}, expected finite logits (or -inf): {advice}")
    return top


def is_drawable(logits: Any) -> bool:
    """Whether logits of any shape, or one, are finite or -inf, so that tokens can be drawn."""
    top = float(np.max(logits))
    return not math.isnan(top) and top < math.inf


def adjusted(
    logits: Logits, sampling: Sampling, history: Sequence[int], counts: TokenCounts
) -> Logits:
    """Bias, bans and penalties applied, those that are set; `logits` itself where none is."""
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
    tokens = np.flatnonzero(found)
    # An overflow to -inf rules the token out, as asked; one to inf, or NaN, is found by `sample`.
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
    """What the processors make of the scores, and the largest of that."""
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
