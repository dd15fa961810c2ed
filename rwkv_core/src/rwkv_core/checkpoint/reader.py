"""Interface of all checkpoint formats: named tensors, read one at a time."""

from __future__ import annotations

import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from rwkv_core.errors import CheckpointError
from rwkv_core.quantization import QuantizedMatrix

HEAD_BYTES = 4096


class TensorInfo(NamedTuple):
    """Shape and dtype of a tensor, known before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    """The file's own dtype; bfloat16 is `ml_dtypes.bfloat16`."""

    @property
    def n_bytes(self) -> int:
        return self.dtype.itemsize * prod(self.shape)


class Checkpoint(ABC):
    """An open model file. A context manager: leaving it closes the file."""

    path: Path
    format: str
    """The format's name, as in `CheckpointFormat.name`."""
    tensors: Mapping[str, TensorInfo]
    """Tensors by canonical (BlinkDL's) name, in the file's order."""
    metadata: Mapping[str, str]
    """The file's metadata; empty if the format has none."""
    has_transformers_names: bool = False
    """Whether the file names its tensors as the transformers library does."""
    fingerprint: str | None = None
    """Fingerprint of the model that this file was made from, if the file holds it."""

    @abstractmethod
    def read(self, name: str) -> np.ndarray[Any, Any]:
        """Return the tensor as a read-only array in the file's dtype, possibly not contiguous.

        The array is a view of the file where the format allows a view. Reading a tensor releases
        the memory of the tensor read before. The earlier array stays valid; its values are then
        read from the file again. Raises CheckpointError if there is no such tensor or the
        checkpoint is closed.
        """

    def verify(self, name: str) -> None:  # noqa: B027
        """Raise CheckpointError if the tensor's bytes do not match their checksum in the file.

        Called once for each tensor that is used, from any thread. Does nothing by default.
        """

    def check_metadata(self, sizes: Mapping[str, int]) -> None:  # noqa: B027
        """Raise CheckpointError if the metadata contradicts the model's `sizes`."""

    def read_quantized(self, name: str) -> QuantizedMatrix | None:
        """Return a quantized matrix as it is in the file; None if the tensor is not quantized.

        `read` dequantizes the matrix to float32, which is also its dtype in `tensors`.
        """
        return None

    def sample(self, name: str) -> np.ndarray[Any, Any]:
        """Return a few values [n] that identify the tensor: another model has other values."""
        return self.read(name).reshape(-1)[:64]

    @abstractmethod
    def close(self) -> None:
        """Close the file. Arrays that are still in use keep it mapped."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class CheckpointFormat(NamedTuple):
    """A kind of model file: how to recognize and open it. Plugins may add some."""

    name: str
    summary: str
    """Description of one line."""
    matches: Callable[[Path, bytes], bool]
    """Takes the path and the file's first 4096 bytes (or fewer). Returns whether the content is of
    this kind, also for a damaged file of this kind. Must not raise."""
    open: Callable[[Path], Checkpoint]
    """Opens a file that `matches` accepted; raises CheckpointError."""
    suffixes: tuple[str, ...] = ()
    """Usual endings of such files' names, such as (".pth",), to list the models in a folder. The
    content of a file, not its name, decides its format."""


def read_head(path: Path) -> bytes:
    """Return the file's first 4096 bytes.

    Raises CheckpointError unless `path` is a readable regular file: reading a pipe could block.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise CheckpointError(f"{path}: a folder, expected a file")
        if not stat.S_ISREG(mode):
            raise CheckpointError(f"{path}: not a regular file; name a model file on a disk")
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file; check the path") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}; check the path") from error
    if not head:
        raise CheckpointError(f"{path}: is empty; download it again")
    return head


def damaged(path: Path, what: str, advice: str = "download it again") -> CheckpointError:
    """Return the error for a truncated or damaged file; `what` says what is wrong."""
    return CheckpointError(f"{path}: truncated or damaged: {what}; {advice}")
