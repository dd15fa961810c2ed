"""A text that grows token by token, and knows which part of it can be shown to the user.

Text is given out in whole characters, and only up to the place where a stop string may have begun.
So text that was given out is never taken back.
"""

from __future__ import annotations

from collections.abc import Sequence

from rwkv_core.generation.stop_strings import first_stop, possible_stop
from rwkv_core.util.utf8 import unfinished_character


class GrowingText:
    """The bytes of one generation.

    Attributes:
        data: all bytes of the text. If the tokens before the generation ended inside a character,
            the bytes of this unfinished character come first.
        given_out: number of bytes that have been given out as text, always whole characters.
    """

    def __init__(self, pending: bytes, stops: Sequence[bytes]) -> None:
        """Begin with the unfinished character `pending`; `stops` are stop strings in UTF-8."""
        self.data = bytearray(pending)
        self.given_out = 0
        self._stops = stops

    def first_stop(self) -> int | None:
        """Return the byte at which the first stop string begins; None if there is none."""
        return first_stop(self.data, self.given_out, self._stops)

    def certain_stop(self) -> int | None:
        """Like `first_stop`, but None while an earlier stop string may still be completed."""
        stop = self.first_stop()
        return stop if stop is not None and stop <= self.possible_stop() else None

    def possible_stop(self) -> int:
        """Return the byte at which an incomplete stop string may begin; by default the end."""
        return possible_stop(self.data, self.given_out, self._stops)

    def certain(self) -> int:
        """Return the byte up to which text can be given out before the generation ends."""
        return self.whole(self.possible_stop())

    def end(self) -> int:
        """Return the byte at which the last whole character ends."""
        return self.whole(len(self.data))

    def whole(self, place: int) -> int:
        """Return byte `place`, or the start of the character that is unfinished at `place`."""
        return place - len(unfinished_character(self.data[max(0, place - 4) : place]))

    def text(self, start: int = 0) -> str:
        """Return the text that has been given out, from byte `start`."""
        return self.data[start : self.given_out].decode("utf-8", "replace")
