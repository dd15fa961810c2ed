"""A request inside the engine: its checked arguments, and its progress."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rwkv_core.serving.continuation import Continuation
from rwkv_core.serving.results import TokenLogprob
from rwkv_core.state import State

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rwkv_core.generation.choosing import TokenChooser
    from rwkv_core.serving.constraint import Constraint
    from rwkv_core.serving.handle import Handle


@dataclass(eq=False)
class Asked:
    """A request's arguments, checked.

    Attributes:
        prompt: the prompt's tokens.
        start: the state before the prompt; None for the empty state.
        chooser: draws the tokens.
        n_vocab: the size of the model's vocabulary.
        stop_strings, stops: the stop strings, and the same in UTF-8.
        pending: the bytes of a character that the prompt leaves unfinished.
        top_logprobs: number of likeliest tokens to return with each token; None for no logprobs.
        prompt_logprobs: the same for each token of the prompt.
        seconds: time limit, after which the request ends with finish reason "time"; None for no
            limit.
        marks: numbers of prompt tokens after which the state is cached.
        embeds: whether to compute the prompt's embedding instead of a text.
    """

    prompt: list[int]
    start: State | None
    max_tokens: int
    chooser: TokenChooser
    n_vocab: int
    stop_strings: tuple[str, ...] = ()
    stops: tuple[bytes, ...] = ()
    pending: bytes = b""
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
    constraint: Constraint | None = None
    keep_state: bool = False
    seconds: float | None = None
    marks: frozenset[int] = frozenset()
    embeds: bool = False


@dataclass
class Mark:
    """The state after `n_tokens` tokens of the continuation."""

    n_tokens: int
    state: State


class Request:
    """One request in the engine. Only the engine changes it.

    Attributes:
        asked, handle: the arguments, and the handle that receives the results.
        text: the continuation.
        unread: tokens to prefill before the next token is drawn.
        n_read: number of tokens read so far, of the prompt and the continuation.
        n_cached: number of prompt tokens whose state came from the cache or from another request.
        state: the state after the tokens read, while the request is not in the batch.
        logits: the last logits [V], on the host.
        next_token: the token to decode next, while the request is in the batch.
        root: the `Entry.root` of the request's states.
        marks: numbers of prompt tokens after which the state is cached.
        leader, awaited: another request that prefills the same tokens, and the number of tokens
            after which this request takes over the leader's state.
        forced: the next tokens of the continuation, which the constraint forces.
        mark: the state before text that is held back, for requests with `keep_state`.
    """

    def __init__(self, asked: Asked, handle: Handle) -> None:
        self.asked, self.handle = asked, handle
        self.text = Continuation(asked.pending, asked.stops)
        self.unread: list[int] = list(asked.prompt)
        self.n_read = 0
        self.n_cached = 0
        self.state: State | None = asked.start
        self.logits: NDArray[np.floating[Any]] | None = None
        self.next_token = -1
        self.forced: list[int] = []
        self.mark: Mark | None = None
        self.root = b""
        self.marks = set(asked.marks)
        self.leader: Request | None = None
        self.awaited = 0
        self.embedding: NDArray[np.float32] | None = None
        self.prompt_logprobs: list[TokenLogprob] = []
        self.submitted = time.monotonic()
        self.started: float | None = None
        self.first_token: float | None = None

    @property
    def n_prompt(self) -> int:
        return len(self.asked.prompt)

    @property
    def n_fed(self) -> int:
        """Number of tokens of the continuation that the state has read."""
        return max(0, self.n_read - self.n_prompt)

    @property
    def is_late(self) -> bool:
        seconds = self.asked.seconds
        return seconds is not None and time.monotonic() - self.submitted >= seconds
