"""The cache folder and its files: opened without following links, with stamps and digests."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import BinaryIO, Literal

from rwkv_core.errors import DownloadError


def cache_folder() -> Path:
    """Return the folder for downloads: RWKV_CACHE, or rwkv-core in the user's cache folder.

    Raises DownloadError if the user has no home folder.
    """
    if named := os.environ.get("RWKV_CACHE"):
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rwkv-core"
    except RuntimeError:
        raise DownloadError(
            "this user has no home folder to keep files in; set RWKV_CACHE to another folder"
        ) from None


def stamp_of(path: Path) -> tuple[int, ...]:
    """Return the size and times of a file, which change whenever a program writes to it."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def is_own(path: Path) -> bool:
    """Return whether there is a regular file without other hard links. Raises OSError."""
    there = path.lstat() if os.path.lexists(path) else None
    return there is not None and stat.S_ISREG(there.st_mode) and there.st_nlink == 1


def open_own(path: Path, mode: Literal["rb", "wb", "ab"]) -> BinaryIO:
    """Open a file of the cache. A link or device in its place is removed, not followed.

    Raises OSError.
    """
    if os.path.lexists(path) and not is_own(path):
        path.unlink()
    no_link = getattr(os, "O_NOFOLLOW", 0)
    return open(path, mode, opener=lambda name, flags: os.open(name, flags | no_link, 0o666))


def digest_of(path: Path, algorithm: str, prefix: bytes = b"") -> str:
    """Return the hex digest of `prefix` and the file's content. Raises OSError."""
    with path.open("rb") as file:
        digest = hashlib.new(algorithm, prefix, usedforsecurity=False)
        return hashlib.file_digest(file, lambda: digest).hexdigest()
