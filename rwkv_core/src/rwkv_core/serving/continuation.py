"""One request's text: its tokens, and how much of the text has been given out."""

from __future__ import annotations

from collections.abc import Sequence

from rwkv_core.generation.growing_text import GrowingText
from rwkv_core.serving.results import Piece, TokenLogprob


class Continuation:
    """A text that grows by tokens, is given out in pieces, and may end inside a token.

    Attributes:
        text: the bytes.
        tokens: all tokens.
        ends: for each token, the byte offset at which it ends.
        logprobs: for each token, if asked for.
    """

    def __init__(self, pending: bytes, stops: Sequence[bytes]) -> None:
        """See `GrowingText`."""
        self.text = GrowingText(pending, stops)
        self.tokens: list[int] = []
        self.ends: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self._begin = len(pending)
        self._n_given_out = 0

    def add(self, token: int, data: bytes, logprob: TokenLogprob | None) -> None:
        """Add a token, whose bytes are `data`."""
        self.text.data += data
        self.tokens.append(token)
        self.ends.append(len(self.text.data))
        if logprob is not None:
            self.logprobs.append(logprob)

    @property
    def holds_back(self) -> bool:
        """Whether some bytes have not been given out yet."""
        return self.text.given_out < len(self.text.data)

    def next_piece(self) -> Piece | None:
        """Give out the text that is certain. Returns None if there is none."""
        place = self.text.certain()
        return self._give_out(place, self._n_ended_at(place))

    def last_piece(self, place: int | None) -> Piece | None:
        """Give out all text up to byte `place`, by default up to the last whole character.

        If `place` is given, the token that contains it is the last one.
        """
        if place is None:
            return self._give_out(self.text.end(), len(self.tokens))
        n_tokens = self._n_ended_at(place)
        begin = self._end_of(n_tokens)
        if begin < place:
            if self.logprobs:
                cut = self.logprobs[n_tokens]
                left = bytes(self.text.data[begin:place])
                self.logprobs[n_tokens] = TokenLogprob(cut.token, left, cut.logprob, cut.top)
            n_tokens += 1
        n_tokens = max(n_tokens, self._n_given_out)
        del self.tokens[n_tokens:], self.logprobs[n_tokens:]
        return self._give_out(place, n_tokens)

    def tokens_up_to(self, place: int) -> int:
        """Return how many tokens end at or before byte `place`, and at a whole character."""
        n_tokens = self._n_ended_at(place)
        while n_tokens and self.text.whole(self.ends[n_tokens - 1]) < self.ends[n_tokens - 1]:
            n_tokens -= 1
        return n_tokens

    def bytes_of(self, n_tokens: int) -> int:
        """Return the byte offset at which the first `n_tokens` tokens end."""
        return self._end_of(n_tokens)

    def _end_of(self, n_tokens: int) -> int:
        return self.ends[n_tokens - 1] if n_tokens else self._begin

    def _n_ended_at(self, place: int) -> int:
        n_tokens = len(self.tokens)
        while n_tokens and self.ends[n_tokens - 1] > place:
            n_tokens -= 1
        return n_tokens

    def _give_out(self, place: int, n_tokens: int) -> Piece | None:
        start, first = self.text.given_out, self._n_given_out
        self.text.given_out, self._n_given_out = place, n_tokens
        text, tokens = self.text.text(start), tuple(self.tokens[first:n_tokens])
        if not text and not tokens:
            return None
        return Piece(text, tokens, tuple(self.logprobs[first:n_tokens]))
