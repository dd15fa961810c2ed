"""Stores named states in a folder or in memory. A name cannot contain a path."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rwkv_core.errors import OptionError, StateError
from rwkv_core.server.errors import ApiError, invalid
from rwkv_core.util.printable import printable

if TYPE_CHECKING:
    from rwkv_core.model import Model
    from rwkv_core.state import State

NAME_PATTERN = "[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
_NAME = re.compile(NAME_PATTERN)
_SUFFIX = ".state"
# State-tuned files that the operator put into the folder.
_TUNED = (".pth", ".safetensors")


@dataclass(frozen=True)
class StateInfo:
    """A description of a stored state.

    Attributes:
        nbytes: size of the state or its file in bytes.
        created: time of storing, in seconds since 1970.
        is_tuned: whether the state is a state-tuned file that the operator put into the folder.
    """

    name: str
    nbytes: int
    created: int
    is_tuned: bool = False


class StatesStore:
    """Named states. Thread-safe."""

    def __init__(self, model: Model, folder: Path | None, max_bytes: int) -> None:
        """Store states of up to `max_bytes` in `folder`, or in memory if `folder` is None.

        Raises OptionError if the folder cannot be made.
        """
        self._model, self._folder, self._max_bytes = model, folder, max_bytes
        self._lock = threading.Lock()
        self._held: dict[str, tuple[State, StateInfo]] = {}
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OptionError(f"--state-folder {folder}: {error.strerror}") from None

    def infos(self) -> list[StateInfo]:
        """Return descriptions of all states, sorted by name."""
        with self._lock:
            return sorted(self._infos(), key=lambda info: info.name)

    def get(self, name: str) -> State:
        """Return a state. Raises ApiError if it is missing, damaged, or of another model."""
        with self._lock:
            if name in self._held:
                return self._held[name][0]
            path = self._path(name)
            try:
                return self._model.load_state(path)
            except StateError as error:
                # Only the operator may see where the file is.
                message = str(error).replace(str(path), f"state {name!r}")
                raise invalid(message, "state") from None

    def info(self, name: str) -> StateInfo:
        """Return a state's description. Raises ApiError if the state does not exist."""
        found = [info for info in self.infos() if info.name == name]
        if not found:
            raise missing(name)
        return found[0]

    def check_name(self, name: str) -> None:
        """Raise ApiError for a name that is not allowed."""
        if not _NAME.fullmatch(name):
            raise invalid(
                f"name: found {printable(name, 80)!r}, expected 1 to 64 letters, digits, - and _",
                "name",
            )

    def save(self, name: str, state: State, created: int) -> StateInfo:
        """Store a state. Replaces a state of the same name. `created` is in seconds since 1970.

        Raises ApiError for a wrong name or lack of room, and if the file cannot be written.
        """
        self.check_name(name)
        nbytes = nbytes_of(self._model, state)
        with self._lock:
            others = [one for one in self._infos() if one.name != name and not one.is_tuned]
            if sum(one.nbytes for one in others) + nbytes > self._max_bytes:
                raise ApiError(413, "There is no room for another state. Delete one first.")
            if self._folder is not None:
                path = self._folder / f"{name}{_SUFFIX}"
                try:
                    self._model.save_state(path, state)
                except StateError as error:
                    raise ApiError(500, f"The state {name!r} could not be written.") from error
                return StateInfo(name, path.stat().st_size, created)
            info = StateInfo(name, nbytes, created)
            self._held[name] = state, info
            return info

    def delete(self, name: str) -> None:
        """Delete a state. Raises ApiError if it does not exist, or is a state-tuned file."""
        with self._lock:
            if self._held.pop(name, None) is not None:
                return
            path = self._path(name)
            if path.suffix != _SUFFIX:
                raise ApiError(403, f"The state {name!r} is a state-tuned file: not deleted.")
            path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        if self._folder is not None and _NAME.fullmatch(name):
            for suffix in (_SUFFIX, *_TUNED):
                path = self._folder / f"{name}{suffix}"
                if path.is_file():
                    return path
        raise missing(name)

    def _infos(self) -> list[StateInfo]:
        return [*(info for _, info in self._held.values()), *self._files()]

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
                    continue  # deleted in the meantime
                tuned = suffix != _SUFFIX
                yield StateInfo(path.stem, found.st_size, int(found.st_mtime), tuned)


def nbytes_of(model: Model, state: State | None) -> int:
    """Return the size of a state's arrays in bytes; 0 for None."""
    if state is None:
        return 0
    # By shape, since TensorFlow's arrays have no `nbytes`.
    n_bytes = math.prod(state.array.shape) * np.dtype(model.ops.runtime_dtype).itemsize
    return n_bytes + (0 if state.logits is None else 4 * math.prod(state.logits.shape))


def missing(name: str) -> ApiError:
    """Return the error for a state that does not exist."""
    return ApiError(
        404, f"There is no state {printable(name, 80)!r}.", code="state_not_found", param="state"
    )
