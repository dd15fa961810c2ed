"""Incomplete UTF-8 at the end of bytes."""

from __future__ import annotations

import codecs


def unfinished_character(data: bytes | bytearray) -> bytes:
    """Return the bytes of an incomplete UTF-8 character at the end of `data`; often empty."""
    # A character has at most four bytes, so only the last four are needed.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(bytes(data[-4:]))
    return decoder.getstate()[0]
