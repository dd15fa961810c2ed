"""The state: all that RWKV remembers, of one size however much it has read."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkv_core.errors import StateError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FORMAT = "rwkv-core state 1"


@dataclass(frozen=True, eq=False)
class State:
    """What a model remembers of the tokens it has read.

    No function changes a State in place: to keep one is to keep the way back to it.

    Attributes:
        array: an array of the model's backend, [n_layer, 5, n_embd], or [B, n_layer, 5, n_embd]
            for a batch. A layer's five rows are the last input of channel mixing and of time
            mixing, then aa, bb and pp of the WKV scan (BlinkDL's order).
        logits: float32 logits of the next token, [n_vocab] or [B, n_vocab]; None where nothing
            has been read.
        pending: the bytes of a UTF-8 character that the tokens read so far begin but do not end.
    """

    array: Any
    logits: Any = None
    pending: bytes = b""


def save_arrays(
    path: str | os.PathLike[str],
    array: NDArray[Any],
    logits: NDArray[np.float32] | None,
    pending: bytes,
    fingerprint: str,
) -> None:
    """Write a state as safetensors, beside `path` first and then renamed onto it."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    path = Path(path)
    tensors = {"state": array} if logits is None else {"state": array, "logits": logits}
    metadata = {"format": _FORMAT, "model": fingerprint, "pending": pending.hex()}
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        save_file(tensors, beside, metadata)
        beside.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise StateError(f"{path}: cannot be written: {reason}") from error
    finally:
        with suppress(OSError):
            beside.unlink()


def load_arrays(
    path: str | os.PathLike[str], fingerprint: str
) -> tuple[NDArray[Any], NDArray[np.float32] | None, bytes]:
    """The state array, logits and pending bytes of a file that `save_arrays` wrote.

    Raises StateError if the file is not one, is damaged, or is of a model whose fingerprint is
    not `fingerprint`.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                found = metadata.get("format", "another kind of safetensors file")
                raise StateError(f"{path}: found {found!r}, expected {_FORMAT!r}")
            if metadata["model"] != fingerprint:
                raise StateError(
                    f"{path}: this state is of model {metadata['model']}, the model loaded here "
                    f"is {fingerprint}; load the model that the state was saved with"
                )
            array = file.get_tensor("state")
            logits = file.get_tensor("logits") if "logits" in file.keys() else None  # noqa: SIM118
            return array, logits, bytes.fromhex(metadata["pending"])
    except OSError as error:
        raise StateError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise StateError(f"{path}: not a state file, or damaged ({error})") from error
