"""Draws a request's next token, and decides whether the request continues, prefills or ends."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from rwkv_core.generation.sampling_filters import check_vocabulary
from rwkv_core.generation.sampling_parameters import check_tokens
from rwkv_core.generation.transcript import bytes_of
from rwkv_core.serving.constraint import restricted
from rwkv_core.serving.logprobs import token_logprob
from rwkv_core.serving.results import FinishReason, TokenLogprob

# Forced tokens are prefilled if there are at least 6. Fewer go through the batch, one per step,
# where they delay no other request.
MIN_READ_AHEAD = 6

if TYPE_CHECKING:
    from rwkv_core.serving.request import Request
    from rwkv_core.tokenizer import Tokenizer


@dataclass(frozen=True)
class End:
    """How a request ends.

    Attributes:
        place: the byte at which the request's text ends; None for the end of all bytes.
        stop: the number of the stop token, or the stop string, that ended the text; else None.
    """

    reason: FinishReason
    place: int | None = None
    stop: int | str | None = None


@dataclass(frozen=True)
class Drawn:
    """A drawn token.

    Attributes:
        token: the token's number; None if the constraint allows no token.
        data: the token's bytes.
        logprob: the token's logprob, if asked for.
    """

    token: int | None
    data: bytes = b""
    logprob: TokenLogprob | None = None


def draw(tokenizer: Tokenizer, request: Request, logits: NDArray[Any]) -> Drawn:
    """Draw the next token of a request from `logits` [V].

    Changes only the request, so that threads may draw for different requests at the same time.
    Raises what the request's processors or constraint raise.
    """
    request.logits = logits
    token = request.forced.pop(0) if request.forced else _drawn(request, logits)
    if token is None:
        return Drawn(None)
    data = bytes_of(tokenizer, token)
    n_top = request.asked.top_logprobs
    return Drawn(token, data, None if n_top is None else token_logprob(logits, token, data, n_top))


def _drawn(request: Request, logits: NDArray[Any]) -> int | None:
    asked = request.asked
    mask = None if asked.constraint is None else asked.constraint.mask()
    if mask is not None:
        if not mask.any():
            return None
        logits = restricted(logits, mask)
    return asked.chooser.choose(logits, request.text.tokens)


def grow(request: Request, drawn: Drawn) -> End | None:
    """Add the drawn token to a request's text.

    Returns how the request ends; None if it continues. Raises the errors of the constraint.
    """
    asked, token = request.asked, drawn.token
    if token is None:
        return End("stop")
    if request.first_token is None:
        request.first_token = time.monotonic()
    if token in asked.chooser.stop_tokens:
        return End("stop", stop=token)
    request.text.add(token, drawn.data, drawn.logprob)
    request.next_token = token
    if asked.constraint is not None:
        asked.constraint.accept(token)
        if not request.forced:
            request.forced = _checked(asked.constraint.forced(), asked.n_vocab)
    return _end_after_token(request)


def _checked(tokens: Sequence[int], n_vocab: int) -> list[int]:
    """Check the tokens that a constraint forces. Raises OptionError.

    In the batch, a wrong token would fail every request.
    """
    check_tokens("constraint: forced", tokens)
    check_vocabulary("constraint: forced", tokens, n_vocab)
    return [int(token) for token in tokens]


def take_forced(tokenizer: Tokenizer, request: Request) -> End | None:
    """Add a request's forced tokens to its text and to its tokens to prefill, if they are many.

    A forced token is one that the constraint prescribes. Does nothing if there are few, or if
    logprobs are asked for: `draw` then takes them one by one. Returns how the request ends; None if
    it continues.
    """
    if len(request.forced) < MIN_READ_AHEAD or request.asked.top_logprobs is not None:
        return None
    request.unread = [request.next_token]
    while request.forced:
        token = request.forced.pop(0)
        end = grow(request, Drawn(token, bytes_of(tokenizer, token)))
        if end is not None:
            return end
        request.unread.append(token)
    return None


def _end_after_token(request: Request) -> End | None:
    text = request.text.text
    stop = text.certain_stop()
    if stop is not None:
        return end_at_stop(request, stop)
    if len(request.text.tokens) == request.asked.max_tokens:
        return end_of_all(request, "length")
    return None


def end_of_all(request: Request, reason: FinishReason) -> End:
    """Return an end with `reason` after all tokens, or before a stop string if there is one."""
    stop = request.text.text.first_stop()
    return End(reason) if stop is None else end_at_stop(request, stop)


def end_at_stop(request: Request, place: int) -> End:
    asked, data = request.asked, request.text.text.data
    found = [
        string
        for string, stop in zip(asked.stop_strings, asked.stops, strict=True)
        if data.startswith(stop, place)
    ]
    return End("stop", place, found[0])
