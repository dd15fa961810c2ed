"""Checks the bytes of a zip's members, such as a .pth's tensors, against their CRC-32."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rwkv_core.checkpoint.memory_map import MappedFile


class Member(NamedTuple):
    """Bytes of a file that have a CRC-32; a tensor is all or part of them."""

    start: int
    size: int
    crc: int


def is_intact(file: MappedFile, member: Member) -> bool:
    """Return whether the member's bytes match its CRC-32."""
    crc = 0
    for chunk in file.chunks(member.start, member.size):
        crc = zlib.crc32(chunk, crc)
    return crc == member.crc
