"""UTF-8 that arrives in pieces."""

from __future__ import annotations

import codecs


def unfinished_character(data: bytes | bytearray) -> bytes:
    """The end of `data` that begins a UTF-8 character and does not end it; often empty."""
    # A character has at most four bytes, so what comes before them cannot matter.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(bytes(data[-4:]))
    return decoder.getstate()[0]
