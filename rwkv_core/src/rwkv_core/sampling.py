"""From logits to the next token: one chain in NumPy, the same for every backend.

The order is fixed: logit bias and bans, penalties, processors (the user's own steps), temperature,
top-k, typical, top-p, min-p, one draw. The steps themselves are in `sampling_steps`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_core import sampling_steps as steps
from rwkv_core.errors import OptionError, RWKVError
from rwkv_core.sampling_steps import Logits

Processor = Callable[[Logits, Sequence[int]], Logits]


@dataclass(frozen=True)
class Sampler:
    """A step of the chain that a plugin offers by name.

    `process` takes float64 logits [V] and the tokens generated so far, and returns logits [V].
    """

    name: str
    summary: str
    process: Processor


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
        # Copies: what the caller changes later must not get past these checks.
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))
        object.__setattr__(self, "banned_tokens", tuple(self.banned_tokens))


def is_whole(value: object) -> bool:
    """Whether `value` is an integer of Python's or NumPy's, and not a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _check(sampling: Sampling, name: str, expected: str, fits: Callable[[Any], bool]) -> None:
    value = getattr(sampling, name)
    if not _is_number(value) or not math.isfinite(value) or not fits(value):
        raise OptionError(f"{name}: found {value!r}, expected {expected}")


def _check_logit_bias(bias: object) -> None:
    if not isinstance(bias, Mapping):
        raise OptionError(f"logit_bias: found {bias!r}, expected a mapping of tokens to numbers")
    check_tokens("logit_bias", bias)
    for token, value in bias.items():
        if not _is_number(value) or math.isnan(value) or value == math.inf:
            raise OptionError(f"logit_bias of {token}: found {value!r}, expected a number or -inf")


def check_tokens(name: str, tokens: Collection[object]) -> None:
    """Raise OptionError unless the option `name` holds only whole numbers >= 0."""
    if not isinstance(tokens, Iterable):
        raise OptionError(f"{name}: found {tokens!r}, expected a list of token numbers")
    for token in tokens:
        if not is_whole(token) or token < 0:  # type: ignore[operator]
            raise OptionError(f"{name}: found {token!r}, expected token numbers >= 0")


def sample(
    logits: NDArray[Any],
    sampling: Sampling,
    history: Sequence[int],
    rng: np.random.Generator,
    processors: Sequence[Processor] = (),
) -> int:
    """The next token.

    Arguments:
        logits: [V], any float type.
        history: the tokens generated so far in this call, which the penalties go by.
        rng: gives one uniform number a token; none at temperature 0.
        processors: the user's own steps, run after the penalties.

    Raises RWKVError for logits that are not numbers, OptionError for penalties that make them so,
    or if nothing is left to choose.
    """
    scores = np.asarray(logits, np.float64)
    _check_scores(scores, "the model's logits hold", "the model file or its dtype is at fault")
    scores = adjusted(scores, sampling, history)
    _check_scores(
        scores, "bias and penalties gave", "use values nearer 0 (repetition: 1)", OptionError
    )
    if processors:
        scores = scores.copy()  # a processor may work in place
    for process in processors:
        size = scores.shape
        scores = np.asarray(process(scores, history), np.float64)
        if scores.shape != size:
            raise OptionError(
                f"processors: found logits of shape {list(scores.shape)}, expected {list(size)}"
            )
    _check_scores(
        scores, "processors gave", "rule a token out with -inf, and all others to force one"
    )
    if scores.max() == -np.inf:
        raise OptionError("every token is banned, expected at least one to be left")
    if sampling.temperature == 0:
        return int(np.argmax(scores))
    tokens = None  # None for all of them
    scores = steps.temperature(scores, sampling.temperature)
    for keep in filters(sampling):
        scores = keep(scores)
        # What is ruled out goes, so that the next filter has little to do.
        left = np.flatnonzero(scores > -np.inf)
        tokens, scores = left if tokens is None else tokens[left], scores[left]
    place = steps.draw(scores, rng)
    return place if tokens is None else int(tokens[place])


def _check_scores(
    scores: Logits, where: str, advice: str, error: type[RWKVError] = RWKVError
) -> None:
    top = scores.max()
    if np.isnan(top) or top == np.inf:
        raise error(f"{where} {top}, expected finite logits (or -inf): {advice}")


def adjusted(logits: Logits, sampling: Sampling, history: Sequence[int]) -> Logits:
    """Bias, bans and penalties applied, those that are set."""
    logits = steps.bias(logits, sampling.logit_bias)
    logits = steps.ban(logits, sampling.banned_tokens)
    if not history:
        return logits
    # An overflow to -inf rules the token out, as asked; one to inf, or NaN, is found by `sample`.
    with np.errstate(over="ignore", invalid="ignore"):
        if sampling.repetition_penalty != 1:
            logits = steps.repetition_penalty(logits, history, sampling.repetition_penalty)
        if sampling.presence_penalty:
            logits = steps.presence_penalty(logits, history, sampling.presence_penalty)
        if sampling.frequency_penalty:
            logits = steps.frequency_penalty(logits, history, sampling.frequency_penalty)
    return logits


def filters(sampling: Sampling) -> list[Callable[[Logits], Logits]]:
    """The filters that are set, in their order."""
    chain: list[Callable[[Logits], Logits]] = []
    if sampling.top_k:
        chain.append(partial(steps.top_k, k=sampling.top_k))
    if sampling.typical_p < 1:
        chain.append(partial(steps.typical, mass=sampling.typical_p))
    if sampling.top_p < 1:
        chain.append(partial(steps.top_p, mass=sampling.top_p))
    if sampling.min_p:
        chain.append(partial(steps.min_p, fraction=sampling.min_p))
    return chain
