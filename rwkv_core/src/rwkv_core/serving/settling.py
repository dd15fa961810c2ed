"""Computes the state after the text of a request that has ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from rwkv_core.generation.transcript import read
from rwkv_core.serving.request import Mark
from rwkv_core.state import State
from rwkv_core.util.utf8 import unfinished_character

if TYPE_CHECKING:
    from rwkv_core.model import Model
    from rwkv_core.serving.request import Request
    from rwkv_core.tokenizer import Tokenizer


def mark_held_text(request: Request, state_of: Callable[[Request], State]) -> None:
    """Keep the request's present state in `request.mark` when text begins to be held back.

    Text is held back while it may be the beginning of a stop string. If it is one, the result ends
    before it, and later states have read too much. `state_of` returns the request's present state,
    which has read all tokens but the last.
    """
    if not request.text.holds_back:
        request.mark = None
    elif request.mark is None:
        request.mark = Mark(request.n_fed, state_of(request))


def settled(
    model: Model, tokenizer: Tokenizer, request: Request, state: State, place: int | None
) -> State:
    """Return the state after the text up to byte `place`, by default after all tokens.

    `state` is the state after the tokens read so far. Raises what `Model.forward` raises.
    """
    text = request.text
    now = Mark(request.n_fed, replace(state, pending=b""))
    if place is None:
        rest = text.tokens[now.n_tokens :]
        after = read(model, tokenizer, now.state, rest) if rest else now.state
        return replace(after, pending=unfinished_character(text.text.data))
    marks = [mark for mark in (request.mark, now) if mark is not None]
    usable = [mark for mark in marks if text.bytes_of(mark.n_tokens) <= place]
    mark = (usable or marks)[-1]
    n_tokens = max(mark.n_tokens, text.tokens_up_to(place))
    missing = bytes(text.text.data[text.bytes_of(n_tokens) : place])
    rest = [*text.tokens[mark.n_tokens : n_tokens], *tokenizer.encode_bytes(missing)]
    after = read(model, tokenizer, mark.state, rest) if rest else mark.state
    return replace(after, pending=b"")
