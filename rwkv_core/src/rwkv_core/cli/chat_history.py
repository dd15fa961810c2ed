"""Keeps the messages typed in earlier chats, in a file of the user's state folder."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from rwkv_core.util.atomic_write import atomic_write

_MAX_ENTRIES = 1000


def history_file() -> Path | None:
    """Return the path of the history file; None if the user has no home folder."""
    try:
        return _state_folder() / "rwkv-core" / "chat_history.jsonl"
    except RuntimeError:
        return None


def _state_folder() -> Path:
    """Return the platform's folder for programs' state. Raises RuntimeError without a home."""
    named = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(named):
        return Path(named)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support"
    return Path.home() / ".local" / "state"


class ChatHistory:
    """What a user typed in earlier chats, and the file to which new entries are written.

    An entry is a message or a command. Each line of the file is a JSON string, since an entry may
    have several lines. If the file cannot be read or written, the chat prints a line on stderr and
    continues without history.
    """

    def __init__(self, path: Path | None) -> None:
        """Read the entries in the file `path`; with None no history is kept."""
        self.entries: list[str] = []
        self._path = path
        try:
            self._read()
        except OSError as error:
            self._give_up(error)

    def add(self, text: str) -> None:
        """Append an entry."""
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "a", encoding="ascii", opener=_open_private) as file:
                file.write(json.dumps(text) + "\n")
        except OSError as error:
            self._give_up(error)

    def _read(self) -> None:
        if self._path is None or not self._path.exists():
            return
        entries = list(_parsed(self._path.read_bytes().splitlines()))
        self.entries = entries[-_MAX_ENTRIES:]
        if len(entries) > 2 * _MAX_ENTRIES:
            with atomic_write(self._path) as file:
                file.writelines(json.dumps(entry).encode() + b"\n" for entry in self.entries)

    def _give_up(self, error: OSError) -> None:
        print(f"history is not kept: {self._path}: {error.strerror or error}", file=sys.stderr)
        self._path = None


def _open_private(path: str, flags: int) -> int:
    """Open a file. Only the user can read a new file, since people type private things."""
    return os.open(path, flags, 0o600)


def _parsed(lines: Iterable[bytes]) -> Iterable[str]:
    """Yield the entries. Skip damaged lines, such as a line that a full disk cut off."""
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        # Characters that line editors do not accept.
        if isinstance(entry, str) and not re.search("[\0\ud800-\udfff]", entry):
            yield entry
