"""One request's text: the tokens drawn, and what of their text has been given out."""

from __future__ import annotations

from collections.abc import Sequence

from rwkv_core.generation.growing_text import GrowingText
from rwkv_core.serving.results import Piece, TokenLogprob


class Continuation:
    """Grows by tokens, is given out in pieces, and may end within a token.

    Attributes:
        text: the bytes.
        tokens: all of them.
        ends: where in the bytes each ends.
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
        """Add a token, which stands for `data`."""
        self.text.data += data
        self.tokens.append(token)
        self.ends.append(len(self.text.data))
        if logprob is not None:
            self.logprobs.append(logprob)

    @property
    def holds_back(self) -> bool:
        """Whether bytes are there that are not given out yet."""
        return self.text.given_out < len(self.text.data)

    def next_piece(self) -> Piece | None:
        """Give out what is certain; None if that is nothing."""
        place = self.text.certain()
        return self._give_out(place, self._n_ended_at(place))

    def last_piece(self, place: int | None) -> Piece | None:
        """Give out all text up to byte `place`, by default up to the last whole character.

        With a place, the tokens end with the one that it is in.
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
        """How many tokens stand for whole characters and end at byte `place` or before it."""
        n_tokens = self._n_ended_at(place)
        while n_tokens and self.text.whole(self.ends[n_tokens - 1]) < self.ends[n_tokens - 1]:
            n_tokens -= 1
        return n_tokens

    def bytes_of(self, n_tokens: int) -> int:
        """Where the bytes of the first `n_tokens` end."""
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
