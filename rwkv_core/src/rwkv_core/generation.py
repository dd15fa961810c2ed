"""Generation: samples tokens, gives out text as it becomes certain, keeps the state in step with it.

Bytes are the ground truth. A token adds bytes; text is given out up to the point where a stop
string may have begun or a character is unfinished. Each token leaves a mark (the state after it),
so that the state can go back to where the text ends. Marks from before text that has been given
out are dropped: no stop string can begin there any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rwkv_core.errors import OptionError, StateError
from rwkv_core.sampling import Processor, Sampling, check_tokens, is_whole, sample
from rwkv_core.sampling_steps import check_vocabulary
from rwkv_core.state import State
from rwkv_core.stop_strings import (
    encode_stop_strings,
    first_stop,
    possible_stop,
    unfinished_character,
)

if TYPE_CHECKING:
    from rwkv_core.model import Model
    from rwkv_core.tokenizer import Tokenizer

# <|endoftext|> of the Pile and World vocabularies: what documents begin after.
FIRST_TOKEN = 0

Seed = int | np.random.Generator | None


@dataclass(frozen=True, eq=False)
class Generated:
    """What a generation gave.

    Attributes:
        text: the text, up to a stop string; an unfinished last character is not in it, but in
            `state.pending`, from where the next generation continues it.
        tokens: what `state` has read since the generation began; tokens of exactly this text.
        state: the state after the text, and `logits` its logits (float32, the backend's array).
        stop_reason: "length", "stop_string", "stop_token" or "interrupted".
    """

    text: str
    tokens: list[int]
    state: State
    logits: Any
    stop_reason: str


@dataclass(frozen=True, eq=False)
class Progress:
    """What `on_progress` is told after each token.

    Attributes:
        logits, state: the model's after this token.
        output: the text given out so far; `progress`: what this token added to it, often "".
        tokens: the tokens so far; `current`: how many; `total`: how many at most.
    """

    logits: Any
    state: State
    output: str
    progress: str
    tokens: list[int]
    total: int
    current: int


OnProgress = Callable[[Progress], object]


class _Mark(NamedTuple):
    """The state after `n_tokens` tokens, which have brought `n_bytes` bytes."""

    n_tokens: int
    n_bytes: int
    state: State


def read(model: Model, tokenizer: Tokenizer, state: State, tokens: Sequence[int]) -> State:
    """The state after `tokens`, with the unfinished character at their end in its `pending`.

    Raises OptionError for tokens, and StateError for a state, that do not fit the model.
    """
    _, after = model.forward(tokens, state)
    ends = b"".join(_bytes_of(tokenizer, token) for token in tokens[-4:])
    return replace(after, pending=unfinished_character(state.pending + ends))


def _bytes_of(tokenizer: Tokenizer, token: int) -> bytes:
    """A token's bytes; none for a number that only pads the model's vocabulary."""
    return tokenizer.token_bytes(token) if token < tokenizer.n_vocab else b""


class GenerationStream:
    """An iterator over pieces of text; `stream` makes one. No piece is empty.

    `result` is None while it runs. After the last piece, or `close()`, it is a Generated.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer,
        state: State,
        max_tokens: int,
        sampling: Sampling,
        stops: tuple[bytes, ...],
        stop_tokens: frozenset[int],
        rng: np.random.Generator,
        on_progress: OnProgress | None,
        processors: Sequence[Processor],
    ) -> None:
        self.result: Generated | None = None
        self._model, self._tokenizer, self._max_tokens = model, tokenizer, max_tokens
        self._sampling, self._processors, self._rng = sampling, processors, rng
        self._stops, self._stop_tokens, self._on_progress = stops, stop_tokens, on_progress
        # Tokens without bytes say nothing: never sampled, unless they are asked for as a stop.
        padding = range(tokenizer.n_vocab, model.n_vocab)
        self._silent = [t for t in (*tokenizer.holes, *padding) if t not in stop_tokens]
        self._tokens: list[int] = []
        self._data = bytearray(state.pending)
        self._marks = deque([_Mark(0, len(state.pending), state)])
        self._released = 0  # the bytes of data that have been given out as text
        self._running = False
        if max_tokens == 0:
            self._end("length")

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while self.result is None:
            piece = self._advance()
            if piece:
                return piece
        raise StopIteration

    def close(self) -> None:
        """End here: `result` is what has been given out, and the state of exactly that."""
        if self._running:
            raise StateError(
                "the state is not settled while on_progress runs: use its argument's .state"
            )
        if self.result is None:
            self._roll_back(self._released, "interrupted")

    def interrupt(self) -> str:
        """End with all that has been read, as Ctrl-C does; the text not given out before."""
        return self._end("interrupted") if self.result is None else ""

    def _advance(self) -> str:
        """One token on: the text it adds. On an error, back to what has been given out."""
        given_out = self._released
        self._running = True
        try:
            piece = self._step()
            self._report(piece)
        except KeyboardInterrupt:
            piece = self.interrupt()
        except BaseException:
            self._roll_back(given_out, "interrupted")
            raise
        finally:
            self._running = False
        return piece

    def _step(self) -> str:
        self._drop_old_marks()
        if self._marks[-1].state.logits is None:
            first = read(self._model, self._tokenizer, self._marks[-1].state, [FIRST_TOKEN])
            self._marks[-1] = self._marks[-1]._replace(state=replace(first, pending=b""))
        token = self._sample()
        if token in self._stop_tokens:
            return self._end("stop_token")
        state = read(self._model, self._tokenizer, self._marks[-1].state, [token])
        self._tokens.append(token)
        self._data += _bytes_of(self._tokenizer, token)
        # Last, because what comes after the last mark does not count if Ctrl-C strikes before.
        self._marks.append(_Mark(len(self._tokens), len(self._data), state))
        return self._release()

    def _sample(self) -> int:
        logits = np.array(self._model.to_numpy(self._marks[-1].state.logits), np.float64)
        logits[self._silent] = -np.inf
        return sample(logits, self._sampling, self._tokens, self._rng, self._processors)

    def _report(self, piece: str) -> None:
        if self._on_progress is None:
            return
        state, tokens = self._marks[-1].state, self._tokens
        if self.result:
            state, tokens = self.result.state, self.result.tokens
        output = self._data[: self._released].decode("utf-8", "replace")
        self._on_progress(
            Progress(
                state.logits, state, output, piece, list(tokens), self._max_tokens, len(tokens)
            )
        )

    def _release(self) -> str:
        """Give out the text that no stop string can reach; end at a stop or at the length."""
        data, stops = self._data, self._stops
        stop = first_stop(data, self._released, stops)
        possible = possible_stop(data, self._released, stops)
        # A stop that may have begun before the one found would cut earlier: wait for it.
        if stop is not None and stop <= possible:
            return self._end("stop_string")
        if len(self._tokens) == self._max_tokens:
            return self._end("length")
        return self._give_out(possible - len(unfinished_character(data[:possible])))

    def _give_out(self, end: int) -> str:
        piece = self._data[self._released : end].decode("utf-8", "replace")
        self._released = max(end, self._released)
        return piece

    def _drop_old_marks(self) -> None:
        """Keep the last mark from which all text not given out can be read again, and later."""
        marks = self._marks
        usable = [i for i, mark in enumerate(marks) if self._is_clean_before(mark, self._released)]
        for _ in range(usable[-1] if usable else 0):
            marks.popleft()

    @staticmethod
    def _is_clean_before(mark: _Mark, end: int) -> bool:
        return mark.n_bytes <= end and not mark.state.pending

    def _end(self, reason: str) -> str:
        """End after the last mark, or at a stop string before it."""
        last = self._marks[-1]
        del self._data[last.n_bytes :], self._tokens[last.n_tokens :]
        stop = first_stop(self._data, self._released, self._stops)
        if stop is not None:
            return self._roll_back(stop, "stop_string")
        piece = self._give_out(last.n_bytes - len(last.state.pending))
        self._finish(last.state, self._tokens, reason)
        return piece

    def _roll_back(self, end: int, reason: str) -> str:
        """End after `end` bytes: from the last mark before it, read again what is missing."""
        usable = [mark for mark in self._marks if self._is_clean_before(mark, end)]
        mark = usable[-1] if usable else self._marks[0]
        state, tokens = mark.state, self._tokens[: mark.n_tokens]
        missing = bytes(self._data[mark.n_bytes : end])
        if missing:
            again = self._tokenizer.encode_bytes(missing)
            state = replace(read(self._model, self._tokenizer, state, again), pending=b"")
            tokens += again
        piece = self._data[self._released : end].decode("utf-8", "replace")
        self._released = end
        self._finish(state, tokens, reason)
        return piece

    def _finish(self, state: State, tokens: list[int], reason: str) -> None:
        text = self._data[: self._released].decode("utf-8", "replace")
        self.result = Generated(text, tokens, state, state.logits, reason)
