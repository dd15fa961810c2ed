"""Named states, in a folder or in memory. A name is a plain word: no request chooses a path."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rwkv_core.errors import OptionError
from rwkv_core.server.errors import ApiError, invalid
from rwkv_core.util.printable import printable

if TYPE_CHECKING:
    from rwkv_core.model import Model
    from rwkv_core.state import State

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_SUFFIX = ".state"
# State-tuned files that the operator put into the folder.
_TUNED = (".pth", ".safetensors")


@dataclass(frozen=True)
class StateInfo:
    """What is told of a stored state: `created` is in seconds since 1970."""

    name: str
    nbytes: int
    created: int
    is_tuned: bool = False


class StatesStore:
    """Used from several threads."""

    def __init__(self, model: Model, folder: Path | None, max_bytes: int) -> None:
        """Raises OptionError for a folder that cannot be used."""
        self._model, self._folder, self._max_bytes = model, folder, max_bytes
        self._lock = threading.Lock()
        self._held: dict[str, tuple[State, StateInfo]] = {}
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OptionError(f"--state-folder {folder}: {error.strerror}") from None

    def infos(self) -> list[StateInfo]:
        """All states that there are, by name."""
        with self._lock:
            held = [info for _, info in self._held.values()]
            return sorted([*held, *self._files()], key=lambda info: info.name)

    def get(self, name: str) -> State:
        """Raises ApiError if there is none of that name, StateError if it is damaged."""
        with self._lock:
            if name in self._held:
                return self._held[name][0]
            return self._model.load_state(self._path(name))

    def info(self, name: str) -> StateInfo:
        """Raises ApiError if there is none of that name."""
        found = [info for info in self.infos() if info.name == name]
        if not found:
            raise missing(name)
        return found[0]

    def check_name(self, name: str) -> None:
        """Raise ApiError for a name that no state can have."""
        if not _NAME.fullmatch(name):
            raise invalid(
                f"name: found {printable(name, 80)!r}, expected 1 to 64 letters, digits, - and _",
                "name",
            )

    def save(self, name: str, state: State, created: int) -> StateInfo:
        """Store a state, in place of the one of that name. Raises ApiError and StateError."""
        self.check_name(name)
        nbytes = int(self._model.to_numpy(state).nbytes)
        with self._lock:
            if self._folder is not None:
                self._model.save_state(self._folder / f"{name}{_SUFFIX}", state)
                return StateInfo(name, nbytes, created)
            others = sum(info.nbytes for _, info in self._held.values() if info.name != name)
            if others + nbytes > self._max_bytes:
                raise ApiError(413, "There is no more room for states: delete one first.")
            info = StateInfo(name, nbytes, created)
            self._held[name] = state, info
            return info

    def delete(self, name: str) -> None:
        """Raises ApiError if there is none of that name, or the operator put it there."""
        with self._lock:
            if self._held.pop(name, None) is not None:
                return
            path = self._path(name)
            if path.suffix != _SUFFIX:
                raise ApiError(403, f"The state {name!r} is a file of the operator's.")
            path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        if self._folder is not None and _NAME.fullmatch(name):
            for suffix in (_SUFFIX, *_TUNED):
                path = self._folder / f"{name}{suffix}"
                if path.is_file():
                    return path
        raise missing(name)

    def _files(self) -> Iterator[StateInfo]:
        if self._folder is None:
            return
        names = set()
        for suffix in (_SUFFIX, *_TUNED):
            for path in self._folder.glob(f"*{suffix}"):
                if path.stem in names or not _NAME.fullmatch(path.stem):
                    continue
                names.add(path.stem)
                try:
                    found = path.stat()
                except OSError:
                    continue  # deleted just now
                tuned = suffix != _SUFFIX
                yield StateInfo(path.stem, found.st_size, int(found.st_mtime), tuned)


def missing(name: str) -> ApiError:
    """The error for a state that is not there."""
    return ApiError(
        404, f"There is no state {printable(name, 80)!r}.", code="state_not_found", param="state"
    )
