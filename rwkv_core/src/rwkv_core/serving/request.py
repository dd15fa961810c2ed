"""A request as the engine sees it: what was asked for, and how far it has come."""

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
    """What a request asks for, checked.

    Attributes:
        prompt: the tokens to read first.
        start: the state to begin from; None for the empty one.
        chooser: draws its tokens.
        n_vocab: the size of the model's vocabulary.
        stop_strings, stops: what ends the text, and the same in UTF-8.
        pending: the bytes of a character that the prompt leaves unfinished.
        top_logprobs: how many of the likeliest tokens are wanted with each; None for no logprobs.
        prompt_logprobs: the same of each token of the prompt.
        seconds: until it ends with finish reason "time"; None for no limit.
        marks: numbers of tokens of the prompt after which the state is kept.
        embeds: whether the last hidden state of the prompt is wanted, and no text.
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
    """One request on its way through the engine, whose thread alone changes it.

    Attributes:
        asked, handle: what it asks for, and where its results go.
        text: its continuation.
        unread: tokens that are still to be read before the next one is drawn.
        n_read: tokens read so far of the prompt and the continuation.
        state: the state after these, while the request is not in the batch.
        logits: the last ones [V], on the host.
        next_token: drawn and not read, while the request is in the batch.
        root: what the prompt is read after: the `Entry.root` of its states.
        marks: numbers of tokens of the prompt after which its state is kept.
        leader, awaited: a request that reads the same tokens, and after how many of them this one
            takes its state over.
        forced: tokens of the continuation that come next by its constraint.
        mark: the state before text that is held back, for requests whose state is wanted.
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
        """How many tokens of the continuation its state has read."""
        return max(0, self.n_read - self.n_prompt)

    @property
    def is_late(self) -> bool:
        seconds = self.asked.seconds
        return seconds is not None and time.monotonic() - self.submitted >= seconds
