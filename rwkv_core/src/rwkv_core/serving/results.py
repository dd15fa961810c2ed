"""What a request gives: pieces while it runs, a completion at its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rwkv_core.state import State

FinishReason = Literal["stop", "length", "cancelled", "time"]


@dataclass(frozen=True)
class TokenLogprob:
    """A token's logarithm of probability, and those of the likeliest tokens at its place.

    They are the model's own: before penalties, temperature and a constraint.

    Attributes:
        token: its number.
        bytes: what it stands for; of a token in which a stop string begins, what comes before that.
        logprob: None for the first token of a prompt, which follows nothing.
        top: (token, logprob) of the likeliest, the likeliest first.
    """

    token: int
    bytes: bytes
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """Text that has become certain.

    Attributes:
        text: it may be empty in a last piece.
        tokens: those whose bytes end in this piece.
        logprobs: of each of `tokens`, if asked for.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Usage:
    """Counts of tokens.

    Attributes:
        prompt_tokens: of the prompt.
        cached_tokens: those of them that were not read, as their state was in the cache.
        completion_tokens: those generated, the ones of a stop string too, without a stop token.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Times:
    """Seconds since the request was submitted.

    Attributes:
        queued: until its prompt began to be read.
        first_token: until the first token was drawn; None without one.
        total: until its end.
    """

    queued: float
    first_token: float | None
    total: float


@dataclass(frozen=True, eq=False)
class Completion:
    """What a request gave.

    Attributes:
        text: the text, up to a stop string; without a character that is unfinished at its end.
        tokens: those that were drawn or forced, up to that in which a stop string begins.
        finish_reason: "stop", "length", "cancelled" or "time".
        stop: what it stopped at: the number of a stop token, a stop string, or None.
        usage, times: counts of tokens, and seconds.
        logprobs: of each of `tokens`, if asked for.
        prompt_logprobs: of each token of the prompt, if asked for.
        state: the state after exactly `text`, to go on from, if asked for.
        embedding: of `Engine.embed`: the prompt's last hidden state, float32 [D].
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    stop: int | str | None
    usage: Usage
    times: Times
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    state: State | None = None
    embedding: NDArray[np.float32] | None = None
