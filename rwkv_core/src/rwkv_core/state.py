"""The state: everything RWKV remembers, in an array of fixed size."""

from __future__ import annotations

import json
import os
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkv_core.errors import StateError
from rwkv_core.util.atomic_write import atomic_write, temporary_folder
from rwkv_core.util.printable import printable
from rwkv_core.util.utf8 import unfinished_character

_FORMAT = "rwkv-core state 1"
_ANY_VERSION = "rwkv-core state "
# A 14B model's state takes 4 MB.
MAX_TENSOR_BYTES = 2**29
MAX_HEADER_BYTES = 2**24


@dataclass(frozen=True, eq=False)
class State:
    """Everything a model remembers of the tokens it has read.

    No function changes a State in place, so a kept State can always be returned to.

    Attributes:
        array: an array of the model's backend, [n_layer, rows, n_embd], or [B, n_layer, rows,
            n_embd] for a batch. A layer's rows are the last input of channel mixing, the last input
            of time mixing, then the scan's rows: in RWKV-4 three, aa, bb and pp; in RWKV-5 to 7 one
            for each value channel of a head, with all heads' matrices side by side.
        logits: float32 logits of the next token, [n_vocab] or [B, n_vocab]; None before the first
            token.
        pending: bytes of an incomplete UTF-8 character at the end of the tokens read so far.
        model: fingerprint of the state's model; "" fits any model of the same sizes.
    """

    array: Any
    logits: Any = None
    pending: bytes = b""
    model: str = ""

    def __repr__(self) -> str:
        shape = list(getattr(self.array, "shape", []))
        logits = "without logits" if self.logits is None else "with logits"
        return (
            f"State({shape} of {kind_of(self.array):.52}, {logits}, pending={self.pending!r}, "
            f"model={short_repr(self.model)})"
        )


def kind_of(array: Any) -> str:
    """Return an array's library, dtype and device as text for a message."""
    library = type(array).__module__.partition(".")[0]
    dtype, device = (getattr(array, name, "unknown") for name in ("dtype", "device"))
    return f"{library} {dtype} on {device}"


def short_repr(text: str) -> str:
    """Return `repr(text)`, without its middle if it is long."""
    short = reprlib.Repr()
    short.maxstring = 48
    return short.repr(text)


def save_state(
    path: str | os.PathLike[str], state: State, transcript: str = "", architecture: str = ""
) -> None:
    """Write a single state, with NumPy arrays, as safetensors.

    `transcript` is any text to save with the state; `load_transcript` reads this text.
    `architecture` is the version of the model, such as "rwkv7".

    The write is atomic: a failure leaves the old file. Raises StateError if the file cannot be
    written, or if `path` is a file of another kind.
    """
    from safetensors.numpy import save

    check_place(path)
    tensors = {"state": state.array}
    if state.logits is not None:
        tensors["logits"] = state.logits
    metadata = {"format": _FORMAT, "model": state.model, "pending": state.pending.hex()}
    if transcript:
        metadata["transcript"] = transcript
    if architecture:
        metadata["architecture"] = architecture
    data = save(tensors, metadata)
    try:
        with atomic_write(path) as file:
            file.write(data)
    except OSError as error:
        raise StateError(f"{path}: cannot be written: {error.strerror or error}") from error


def check_place(path: str | os.PathLike[str]) -> None:
    """Raise StateError if it is clear that a state cannot be written to `path`.

    Only a state or an empty file may be replaced.
    """
    _check_path(path)
    target = Path(os.path.realpath(path))
    try:
        if target.exists() and not target.is_file():
            raise StateError(f"{path}: is no regular file, expected the name of a state file")
        if target.exists() and target.stat().st_size and not _is_state(target):
            raise StateError(
                f"{path}: is a file of another kind, which a state must not replace; name another"
            )
        with temporary_folder(target.parent):
            pass
    except OSError as error:
        raise StateError(f"{path}: cannot be written: {error.strerror or error}") from error


def _is_state(path: Path) -> bool:
    try:
        return str(_header(path)["__metadata__"]["format"]).startswith(_ANY_VERSION)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the header of a safetensors file. Raises OSError, ValueError, RecursionError."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("a header that is no JSON object")
    return header


def _check_sizes(header: dict[str, Any]) -> None:
    """Raise ValueError for unexpected or too large tensors."""
    names = header.keys() - {"__metadata__"}
    if extra := names - {"state", "logits"}:
        raise ValueError(f"it holds a tensor {printable(min(extra), 40)!r}")
    for name in names:
        begin, end = header[name]["data_offsets"]
        if end - begin > MAX_TENSOR_BYTES:
            raise ValueError(f"its {name} takes {end - begin} bytes")


def _check_path(path: object) -> None:
    if not isinstance(path, str | os.PathLike) or "\0" in str(path) or not str(path):
        raise StateError(f"found {path!r}, expected the path of a state file")


def load_state(path: str | os.PathLike[str], architecture: str = "") -> State:
    """Read the state in a file that `save_state` wrote, with NumPy arrays.

    Raises StateError if the file is not a state, is damaged, or names another version than
    `architecture`. Old files do not name a version.
    """
    from safetensors import SafetensorError, safe_open

    check_state_file(path)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            _check_architecture(path, metadata.get("architecture", ""), architecture)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            pending = bytes.fromhex(metadata["pending"])
            state = State(tensors["state"], tensors.get("logits"), pending, metadata["model"])
    except OSError as error:
        raise StateError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (SafetensorError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise StateError(f"{path}: not a state file, or damaged ({printable(error)})") from error
    _check_values(path, state)
    return state


def _check_architecture(path: str | os.PathLike[str], found: str, expected: str) -> None:
    if found and expected and found != expected:
        raise StateError(
            f"{path}: this state is of a model of {printable(found, 40)}, the model loaded here is "
            f"{expected}; load the model that the state was saved with"
        )


def check_is_file(path: str | os.PathLike[str]) -> None:
    """Raise StateError unless `path` is a file."""
    _check_path(path)
    if not Path(path).is_file():
        found = "no regular file" if Path(path).exists() else "no such file"
        raise StateError(f"{path}: {found}, expected one that save_state wrote")


def check_state_file(path: str | os.PathLike[str]) -> None:
    """Raise StateError unless a file begins like a saved state. Does not read the values."""
    check_is_file(path)
    try:
        header = _header(path)
        _check_sizes(header)
        metadata = dict(header.get("__metadata__", {}))
    except OSError as error:
        raise StateError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise StateError(f"{path}: not a state file, or damaged ({printable(error)})") from error
    if metadata.get("format") != _FORMAT:
        named = printable(str(metadata.get("format", "another kind of safetensors file")), 80)
        raise StateError(f"{path}: found {named!r}, expected {_FORMAT!r}")


def load_transcript(path: str | os.PathLike[str]) -> str:
    """Return the text that was saved with a state, or "" if no text was saved.

    Raises StateError if the file cannot be read.
    """
    try:
        return str(_header(path).get("__metadata__", {}).get("transcript", ""))
    except OSError as error:
        raise StateError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, AttributeError, RecursionError) as error:
        raise StateError(f"{path}: not a state file, or damaged ({printable(error)})") from error


def _check_values(path: str | os.PathLike[str], state: State) -> None:
    import numpy as np

    arrays = [state.array] if state.logits is None else [state.array, state.logits]
    if not all(a.dtype.kind == "f" and np.isfinite(a).all() for a in arrays):
        raise StateError(f"{path}: damaged: its values are not all finite floats; save it again")
    if unfinished_character(state.pending) != state.pending:
        raise StateError(f"{path}: damaged: {state.pending!r} begins no UTF-8 character")
