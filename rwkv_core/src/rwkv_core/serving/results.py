"""The results of a request: pieces while it runs, and a completion at its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rwkv_core.state import State

FinishReason = Literal["stop", "length", "cancelled", "time"]


@dataclass(frozen=True)
class TokenLogprob:
    """A token's logprob (natural logarithm), and the likeliest tokens at its position.

    Logprobs are computed from the model's logits, before penalties, temperature and constraints.

    Attributes:
        token: the token's number.
        bytes: the token's bytes; if a stop string begins inside the token, only the bytes before.
        logprob: None for the first token of a prompt, before which there are no logits.
        top: (token, logprob) pairs, the likeliest first.
    """

    token: int
    bytes: bytes
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """A part of the text that will not change any more.

    Attributes:
        text: the new text; may be empty in the last piece.
        tokens: the tokens whose bytes end in this piece.
        logprobs: one for each of `tokens`, if asked for.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Usage:
    """Token counts.

    Attributes:
        prompt_tokens: number of tokens in the prompt.
        cached_tokens: number of prompt tokens that were not prefilled, because their state was
            cached.
        completion_tokens: number of generated tokens, including the tokens of a stop string, but
            not a stop token.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Times:
    """Durations in seconds, from the submission of the request.

    Attributes:
        queued: until the request left the queue.
        first_token: until the first token was drawn; None if no token was drawn.
        total: until the end of the request.
    """

    queued: float
    first_token: float | None
    total: float


@dataclass(frozen=True, eq=False)
class Completion:
    """The result of a request.

    Attributes:
        text: the generated text before any stop string, without an unfinished last character.
        tokens: the drawn and forced tokens, up to the one in which a stop string begins.
        finish_reason: "stop", "length", "cancelled" or "time".
        stop: the number of the stop token, or the stop string, that ended the text; else None.
        usage, times: token counts, and durations in seconds.
        logprobs: one for each of `tokens`, if asked for.
        prompt_logprobs: one for each token of the prompt, if asked for.
        state: the state after `text`, if asked for.
        embedding: the prompt's embedding, float32 [D], for `Engine.embed`.
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
