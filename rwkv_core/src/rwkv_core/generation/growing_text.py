"""Text that grows by a token's bytes: how much of it is certain, and where a stop string begins.

Bytes are the ground truth. Text is given out in whole characters, and only up to where a stop
string may have begun; what is given out is never taken back.
"""

from __future__ import annotations

from collections.abc import Sequence

from rwkv_core.generation.stop_strings import first_stop, possible_stop
from rwkv_core.util.utf8 import unfinished_character


class GrowingText:
    """The bytes of one generation.

    Attributes:
        data: all of them. A character that was left unfinished before comes first.
        given_out: how many of them have been given out as text, always whole characters.
    """

    def __init__(self, pending: bytes, stops: Sequence[bytes]) -> None:
        """`pending` is the unfinished character; `stops` are the stop strings in UTF-8."""
        self.data = bytearray(pending)
        self.given_out = 0
        self._stops = stops

    def first_stop(self) -> int | None:
        """Where the first stop string begins; None if there is none."""
        return first_stop(self.data, self.given_out, self._stops)

    def certain_stop(self) -> int | None:
        """Where the first stop string begins; None too if an earlier one may still complete."""
        stop = self.first_stop()
        return stop if stop is not None and stop <= self.possible_stop() else None

    def possible_stop(self) -> int:
        """Where a stop string may have begun that is not complete; the end if nowhere."""
        return possible_stop(self.data, self.given_out, self._stops)

    def certain(self) -> int:
        """Up to where text can be given out while more is to come."""
        return self.whole(self.possible_stop())

    def end(self) -> int:
        """Where the last whole character ends."""
        return self.whole(len(self.data))

    def whole(self, place: int) -> int:
        """`place`, or where the character begins that is unfinished there."""
        return place - len(unfinished_character(self.data[max(0, place - 4) : place]))

    def text(self, start: int = 0) -> str:
        """What has been given out from byte `start` on."""
        return self.data[start : self.given_out].decode("utf-8", "replace")
