"""Finds stop strings in the bytes of a growing text: complete and incomplete stop strings."""

from __future__ import annotations

from collections.abc import Sequence

from rwkv_core.errors import OptionError


def encode_stop_strings(stop_strings: Sequence[str]) -> tuple[bytes, ...]:
    """Return the stop strings in UTF-8. Raises OptionError unless they are non-empty, in a list."""
    if isinstance(stop_strings, str):
        raise OptionError(
            f"stop_strings: found {stop_strings!r}, expected a list: [{stop_strings!r}]"
        )
    try:
        encoded = tuple(string.encode() for string in stop_strings)
    except (TypeError, AttributeError, UnicodeEncodeError):
        raise OptionError(
            f"stop_strings: found {stop_strings!r}, expected a list of strings"
        ) from None
    if b"" in encoded:
        raise OptionError("stop_strings: found an empty string, expected at least one character")
    return encoded


def first_stop(data: bytearray, start: int, stops: Sequence[bytes]) -> int | None:
    """Return the first place from `start` on where one of `stops` begins; None if none does."""
    places = [place for stop in stops if (place := data.find(stop, start)) >= 0]
    return min(places, default=None)


def possible_stop(data: bytearray, start: int, stops: Sequence[bytes]) -> int:
    """Return where an incomplete stop may begin at the end of `data`; len(data) if nowhere."""
    longest = max(map(len, stops), default=0)
    for place in range(max(start, len(data) - longest + 1), len(data)):
        tail = bytes(data[place:])
        if any(stop.startswith(tail) for stop in stops):
            return place
    return len(data)
