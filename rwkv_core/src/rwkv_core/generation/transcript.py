"""Records the tokens and bytes that a generation has read, and goes back to earlier states.

Each token leaves a mark: the state after the token, and the number of bytes so far. To go back to a
place, the model starts from the last mark before the place and reads the text in between again.
Text that was given out is never taken back, so the marks before such text are dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from rwkv_core.generation.growing_text import GrowingText
from rwkv_core.state import State
from rwkv_core.util.progress import OnProgress
from rwkv_core.util.utf8 import unfinished_character

if TYPE_CHECKING:
    from rwkv_core.model import Model
    from rwkv_core.tokenizer import Tokenizer


def read(
    model: Model,
    tokenizer: Tokenizer,
    state: State,
    tokens: Sequence[int],
    on_progress: OnProgress | None = None,
) -> State:
    """Return the state after `tokens`, with the unfinished character at their end in its `pending`.

    `on_progress` is that of `Model.forward`.

    Raises OptionError for tokens, and StateError for a state, that do not fit the model.
    """
    _, after = model.forward(tokens, state, on_progress=on_progress)
    data = b"".join(bytes_of(tokenizer, token) for token in tokens)
    return replace(after, pending=unfinished_character(state.pending + data))


def bytes_of(tokenizer: Tokenizer, token: int) -> bytes:
    """Return a token's bytes; none for a number that only pads the model's vocabulary."""
    return tokenizer.token_bytes(token) if token < tokenizer.n_vocab else b""


class _Mark(NamedTuple):
    """The state after `n_tokens` tokens and `n_bytes` bytes."""

    n_tokens: int
    n_bytes: int
    state: State

    def starts_text_at(self, place: int) -> bool:
        """Return whether this mark is at or before byte `place`, and not inside a character.

        If so, the text from this mark to `place` can be encoded and read again from the mark's
        state.
        """
        return self.n_bytes <= place and not self.state.pending


class Transcript(GrowingText):
    """The tokens of one generation as they are read.

    Attributes:
        tokens: the tokens read so far.
    """

    def __init__(
        self, model: Model, tokenizer: Tokenizer, state: State, stops: Sequence[bytes]
    ) -> None:
        super().__init__(state.pending, stops)
        self.tokens: list[int] = []
        self._model, self._tokenizer = model, tokenizer
        self._marks = deque([_Mark(0, len(self.data), state)])

    @property
    def state(self) -> State:
        """The state after the last token."""
        return self._marks[-1].state

    def begin(self, token: int) -> None:
        """Read a token that belongs to no text, before all others."""
        state = read(self._model, self._tokenizer, self.state, [token])
        self._marks[-1] = self._marks[-1]._replace(state=replace(state, pending=b""))

    def read(self, token: int) -> None:
        """Read a token. After an exception here, call `drop_unread`."""
        self._drop_old_marks()
        state = read(self._model, self._tokenizer, self.state, [token])
        self.tokens.append(token)
        self.data += bytes_of(self._tokenizer, token)
        self._marks.append(_Mark(len(self.tokens), len(self.data), state))

    def drop_unread(self) -> None:
        """Drop what a `read` that did not finish added after the last mark."""
        last = self._marks[-1]
        del self.data[last.n_bytes :], self.tokens[last.n_tokens :]

    def _drop_old_marks(self) -> None:
        """Drop marks, except the last one before all text not yet given out, and later marks."""
        usable = [i for i, m in enumerate(self._marks) if m.starts_text_at(self.given_out)]
        for _ in range(usable[-1] if usable else 0):
            self._marks.popleft()

    def go_back(self, place: int) -> tuple[list[int], State]:
        """Return the tokens of the text up to byte `place`, and the state after this text.

        If no token ends at `place`, the text from the last mark to `place` is encoded again; a mark
        is the state after a token. A character that was unfinished before this generation stays in
        the state.
        """
        usable = [mark for mark in self._marks if mark.starts_text_at(place)]
        mark = usable[-1] if usable else self._marks[0]
        tokens, state = self.tokens[: mark.n_tokens], mark.state
        missing = bytes(self.data[mark.n_bytes : place])
        if missing:
            again = self._tokenizer.encode_bytes(missing)
            state = replace(read(self._model, self._tokenizer, state, again), pending=b"")
            tokens += again
        return tokens, state
