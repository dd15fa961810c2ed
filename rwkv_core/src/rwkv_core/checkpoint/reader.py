"""What every checkpoint format offers: named tensors, read one at a time."""

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
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    """The file's own; bfloat16 is `ml_dtypes.bfloat16`."""

    @property
    def n_bytes(self) -> int:
        return self.dtype.itemsize * prod(self.shape)


class Checkpoint(ABC):
    """An open model file. A context manager: leaving it closes the file."""

    path: Path
    format: str
    """The format's name, as in `CheckpointFormat.name`."""
    tensors: Mapping[str, TensorInfo]
    """By canonical (BlinkDL's) name, in the file's order."""
    metadata: Mapping[str, str]
    """Free text the file carries about itself; empty where the format has none."""
    has_transformers_names: bool = False
    """Whether the file names its tensors as the transformers library does."""
    fingerprint: str | None = None
    """That of the model which this file was made from, where it tells; states carry it."""

    @abstractmethod
    def read(self, name: str) -> np.ndarray[Any, Any]:
        """The tensor as a read-only array in the file's dtype, possibly not contiguous.

        It is a view of the file where the format allows one. Reading a tensor lets go of the
        memory of the one read before, which stays valid but is fetched from the file again.
        Raises CheckpointError if there is no such tensor or the checkpoint is closed.
        """

    def verify(self, name: str) -> None:  # noqa: B027
        """Raise CheckpointError if the tensor's bytes fail the checksum that the file has for them.

        Call it once for each tensor that is used, from any thread. Formats without checksums have
        nothing to do.
        """

    def check_metadata(self, sizes: Mapping[str, int]) -> None:  # noqa: B027
        """Raise CheckpointError if the metadata contradicts the model's sizes by name."""

    def read_quantized(self, name: str) -> QuantizedMatrix | None:
        """The matrix as the file has it quantized; None where it is not (`read` gives it then).

        `read` gives it too, dequantized to float32, and `tensors` tells it as that.
        """
        return None

    def sample(self, name: str) -> np.ndarray[Any, Any]:
        """A few values [n] by which this tensor is told from another model's of the same name."""
        return self.read(name).reshape(-1)[:64]

    @abstractmethod
    def close(self) -> None:
        """Let go of the file. Arrays still held keep it mapped until they go too."""

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
    """A kind of model file, as `open_checkpoint` and plugins see it."""

    name: str
    summary: str
    """One line for a listing."""
    matches: Callable[[Path, bytes], bool]
    """Given the path and the file's first 4096 bytes (fewer if it is shorter): is it this kind?
    Decides by content, raises nothing, and claims a damaged file of its kind."""
    open: Callable[[Path], Checkpoint]
    """Opens a file that matched, or raises CheckpointError."""
    suffixes: tuple[str, ...] = ()
    """How files of this kind are usually called, such as (".pth",): those of a folder that a user
    may choose from. What a file is, its content tells."""


def read_head(path: Path) -> bytes:
    """The file's first bytes, once it is known to be one that can be read and will not block."""
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
