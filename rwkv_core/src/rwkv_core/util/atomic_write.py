"""Writes a file atomically: a failure leaves the old file.

The new file is written in a temporary folder. A killed process leaves its folder behind. The next
process that makes a temporary folder in the same place removes the old folder. Each process holds a
lock on its own folder until the process ends.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be removed
    fcntl = None  # type: ignore[assignment]

# Short, since the name of the replaced file may have the maximal length.
_PREFIX, _SUFFIX = ".rwkv-core-", ".partial"
_LOCK = "lock"


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a new file, which replaces `path` when the `with` block ends without an error.

    Symbolic links are followed, and the replaced file's permissions are kept. Raises OSError, also
    if `path` exists and is not a regular file.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "not a regular file")
    with temporary_folder(target.parent) as folder:
        with (folder / "new").open("wb") as file:
            yield file
        if target.exists():
            os.chmod(folder / "new", stat.S_IMODE(target.stat().st_mode))
        os.replace(folder / "new", target)


@contextmanager
def temporary_folder(parent: str | os.PathLike[str]) -> Iterator[Path]:
    """Make a folder in `parent` and remove it at the end. Also removes killed processes' folders.

    Raises OSError.
    """
    _remove_abandoned(Path(parent))
    made: list[Path] = []
    lock = None
    try:
        while lock is None:
            # The name is stored before the folder is made: a signal in between leaves nothing.
            made.append(Path(parent, f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}"))
            lock = _make_locked(made[-1])
        yield made[-1]
    finally:
        if lock is not None:
            lock.close()
        for folder in made:
            shutil.rmtree(folder, ignore_errors=True)


def _make_locked(folder: Path) -> BinaryIO | None:
    """Make the folder and lock it. Returns None if another process has just removed the folder."""
    folder.mkdir(mode=0o700)
    try:
        lock = (folder / _LOCK).open("wb")
    except FileNotFoundError:
        return None
    _wait_for(lock)
    if os.fstat(lock.fileno()).st_nlink:
        return lock
    lock.close()
    return None


def _wait_for(lock: BinaryIO) -> None:
    if fcntl is not None:
        with suppress(OSError):  # a file system without locks, where nothing is removed
            fcntl.flock(lock, fcntl.LOCK_EX)


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{_PREFIX}*{_SUFFIX}"):
        # Another user's folder, one in use, or one that another process removes.
        with suppress(OSError), _claimed(folder / _LOCK):
            shutil.rmtree(folder)
        with suppress(OSError):
            folder.rmdir()  # Its process was killed before it could make the lock.


@contextmanager
def _claimed(lock: Path) -> Iterator[None]:
    """Hold the lock. Raises OSError if another process holds it."""
    if fcntl is None:
        lock.unlink()
        yield
        return
    with lock.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
