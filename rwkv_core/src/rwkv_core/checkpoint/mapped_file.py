"""Tensors as views of a memory-mapped file: what all the built-in formats have in common.

A view costs no memory until it is touched, and the pages of one tensor are handed back to the
system when the next is read: a model of any size is read with about one tensor resident.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rwkv_core.checkpoint.names import canonical_names, canonical_shape
from rwkv_core.checkpoint.reader import Checkpoint, TensorInfo
from rwkv_core.errors import CheckpointError

MAX_DIMENSIONS = 8


class Extent(NamedTuple):
    """Where a tensor lies in its file. Offset and strides are in bytes."""

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def n_bytes(self) -> int:
        """From the first byte of the first element to the last byte of the last one."""
        if 0 in self.shape:
            return 0
        steps = sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        return steps + self.dtype.itemsize


def row_major(offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Extent:
    """The extent of a contiguous tensor."""
    strides = tuple(prod(shape[axis + 1 :]) * dtype.itemsize for axis in range(len(shape)))
    return Extent(offset, shape, strides, dtype)


class MappedFile:
    """A file mapped for reading. Raises CheckpointError if the system will not map it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
        self.size = len(self._map)
        # The base of every view: unlike a view of the mmap itself, it keeps the mapping alive.
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._resident = Extent(0, (0,), (1,), np.dtype(np.uint8))

    def bytes_at(self, offset: int, length: int) -> bytes:
        """A copy of that range; shorter if the file ends before it does."""
        return self._map[offset : offset + length]

    def holds(self, extent: Extent) -> bool:
        """Whether a view of the extent stays inside the file and is no larger than the file."""
        return (
            len(extent.shape) <= MAX_DIMENSIONS
            and min((extent.offset, *extent.shape, *extent.strides)) >= 0
            and prod(max(n, 1) for n in extent.shape) * extent.dtype.itemsize <= self.size
            and extent.offset + extent.n_bytes <= self.size
        )

    def view(self, extent: Extent) -> np.ndarray[Any, Any]:
        """A read-only array over an extent that the file holds.

        Where the file left it unaligned it is a copy, since few tensor libraries take such memory.
        """
        self._release(self._resident)
        self._resident = extent
        array: np.ndarray[Any, Any] = np.ndarray(
            extent.shape, extent.dtype, self._bytes, extent.offset, extent.strides
        )
        if array.flags.aligned:
            return array
        copy = array.copy()
        copy.flags.writeable = False
        self._release(extent)
        return copy

    def _release(self, extent: Extent) -> None:
        if not extent.n_bytes or not hasattr(mmap, "MADV_DONTNEED"):
            return
        start = extent.offset - extent.offset % mmap.PAGESIZE
        # A process with locked memory may not do this, and loses nothing but the saving.
        with suppress(OSError):
            self._map.madvise(mmap.MADV_DONTNEED, start, extent.offset + extent.n_bytes - start)

    def close(self) -> None:
        """Unmap the file, once the last view of it goes. Nothing may be read from here after."""
        self._release(self._resident)
        del self._bytes, self._map


class MappedCheckpoint(Checkpoint):
    """A checkpoint whose tensors all lie in one mapped file, in some layout.

    `extents` is by the file's own names. Raises CheckpointError for one that leaves the file, for
    names that are not text or that mean the same tensor twice, and for tensors that share bytes
    beyond what tied embeddings do.
    """

    def __init__(
        self,
        file: MappedFile,
        format: str,
        extents: Mapping[str, Extent],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.path = file.path
        self.format = format
        self.metadata = dict(metadata or {})
        self._file = file
        self._open = True
        for name, extent in extents.items():
            if not name.isprintable() or len(name) > 256:
                raise CheckpointError(
                    f"{file.path}: damaged: a tensor is named {name[:40]!r}; download it again"
                )
            if not file.holds(extent):
                raise CheckpointError(
                    f"{file.path}: truncated or damaged: {name} {list(extent.shape)} does not fit "
                    f"in the file's {file.size} bytes; download it again"
                )
        sources = canonical_names(file.path, extents)
        self._extents = {name: extents[source] for name, source in sources.items()}
        self._check_sharing()
        self.tensors = {
            name: TensorInfo(canonical_shape(name, extent.shape), extent.dtype)
            for name, extent in self._extents.items()
        }

    def _check_sharing(self) -> None:
        """A small file must not describe a model that fills the memory, each tensor the same bytes.

        Tied embeddings are the only bytes that RWKV-4 has a reason to use twice.
        """
        described = sum(prod(e.shape) * e.dtype.itemsize for e in self._extents.values())
        if described > 2 * self._file.size:
            raise CheckpointError(
                f"{self.path}: damaged: its tensors share storage, and are {described} bytes in a "
                f"file of {self._file.size}; re-save it with a storage for each tensor"
            )

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """See `Checkpoint.read`: a view, or a copy of a tensor that lies unaligned in the file."""
        if not self._open:
            raise CheckpointError(f"{self.path}: read of {name} after the checkpoint was closed")
        if name not in self._extents:
            raise CheckpointError(f"{self.path}: has no tensor named {name}")
        return self._file.view(self._extents[name]).reshape(self.tensors[name].shape)

    def close(self) -> None:
        """See `Checkpoint.close`."""
        if self._open:
            self._open = False
            self._file.close()
