"""Tensors as views of a memory-mapped file, which all built-in formats use.

A view uses no memory until it is read. The pages of a tensor are released when the next tensor is
read. So reading a model of any size takes the memory of about one tensor.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rwkv_core.checkpoint.checksums import Member, is_intact
from rwkv_core.checkpoint.extent import Extent
from rwkv_core.checkpoint.layouts import in_blinkdl_layout
from rwkv_core.checkpoint.names import canonical_names, canonical_shape, is_of_transformers
from rwkv_core.checkpoint.reader import Checkpoint, TensorInfo
from rwkv_core.errors import CheckpointError

MAX_DIMENSIONS = 8
_CHUNK_BYTES = 2**24


_NOTHING = Extent(0, (0,), (1,), np.dtype(np.uint8))


class MappedFile:
    """A file mapped for reading. Raises CheckpointError if it cannot be mapped."""

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
        self._resident = _NOTHING

    def bytes_at(self, offset: int, length: int) -> bytes:
        """Return a copy of `length` bytes at `offset`; fewer if the file ends before."""
        return self._map[offset : offset + length]

    def holds(self, extent: Extent) -> bool:
        """Return whether a view of the extent lies inside the file and is no larger than it."""
        return (
            len(extent.shape) <= MAX_DIMENSIONS
            and min((extent.offset, *extent.shape, *extent.strides)) >= 0
            and prod(max(n, 1) for n in extent.shape) * extent.dtype.itemsize <= self.size
            and extent.offset + extent.n_bytes <= self.size
        )

    def view(self, extent: Extent) -> np.ndarray[Any, Any]:
        """Return a read-only array over an extent that lies inside the file.

        An unaligned extent is copied, since few tensor libraries take unaligned memory.
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

    def chunks(self, start: int, size: int) -> Iterator[memoryview]:
        """Yield `size` bytes from offset `start` in chunks.

        The memory of a chunk is released when the next chunk is taken. If the last view is at least
        as large as the range, it is taken to cover the range, and the memory is kept.
        """
        is_viewed = size <= self._resident.n_bytes
        for begin in range(start, start + size, _CHUNK_BYTES):
            n_bytes = min(_CHUNK_BYTES, start + size - begin)
            yield self._bytes[begin : begin + n_bytes].data
            if not is_viewed:
                self._release_bytes(begin, n_bytes)

    def release(self) -> None:
        """Release the memory of the last view; it is read from the file again if needed."""
        self._release(self._resident)
        self._resident = _NOTHING

    def _release(self, extent: Extent) -> None:
        self._release_bytes(extent.offset, extent.n_bytes)

    def _release_bytes(self, offset: int, size: int) -> None:
        if not size or not hasattr(mmap, "MADV_DONTNEED"):
            return
        start = offset - offset % mmap.PAGESIZE
        # Fails in a process with locked memory, where the memory then stays in use.
        with suppress(OSError):
            self._map.madvise(mmap.MADV_DONTNEED, start, offset + size - start)

    def close(self) -> None:
        """Close the file. No more views can be made, and the last view unmaps the file."""
        self._release(self._resident)
        del self._bytes, self._map


class Piece(NamedTuple):
    """Place of a tensor, and the checksummed member of the file that contains it, if any."""

    file: MappedFile
    extent: Extent
    member: Member | None = None


class MappedCheckpoint(Checkpoint):
    """A checkpoint whose tensors lie in one or several mapped files.

    `path` is the file that the user named. `pieces` maps each tensor's name in its file to the
    tensor's place. Raises CheckpointError if a tensor ends outside its file, a name is not text,
    two names in the files mean the same tensor, or tensors share bytes (except tied embeddings).
    """

    def __init__(
        self,
        path: Path,
        format: str,
        pieces: Mapping[str, Piece],
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        self.format = format
        self.metadata = dict(metadata or {})
        self._open = True
        for name, piece in pieces.items():
            if not name.isprintable() or len(name) > 256:
                raise CheckpointError(
                    f"{path}: damaged: a tensor is named {name[:40]!r}; download it again"
                )
            if not piece.file.holds(piece.extent):
                raise CheckpointError(
                    f"{piece.file.path}: truncated or damaged: {name} {list(piece.extent.shape)} "
                    f"does not fit in the file's {piece.file.size} bytes; download it again"
                )
        sources = canonical_names(path, pieces, format == "safetensors")
        self.has_transformers_names = is_of_transformers(sources.values())
        found = {name: pieces[source] for name, source in sources.items()}
        extents = {name: piece.extent for name, piece in found.items()}
        self._pieces = {
            name: found[stored]._replace(extent=extent)
            for name, (stored, extent) in in_blinkdl_layout(extents, sources.values()).items()
        }
        self._files = list({id(piece.file): piece.file for piece in pieces.values()}.values())
        self._intact: set[tuple[Path, int]] = set()
        self._check_sharing()
        self.tensors = {
            name: TensorInfo(canonical_shape(name, piece.extent.shape), piece.extent.dtype)
            for name, piece in self._pieces.items()
        }

    def _check_sharing(self) -> None:
        """Refuse tensors that share bytes: a small file could describe a model that fills memory.

        Tied embeddings are the only bytes that RWKV-4 has a reason to use twice.
        """
        extents = [piece.extent for piece in self._pieces.values()]
        described = sum(prod(e.shape) * e.dtype.itemsize for e in extents)
        size = sum(file.size for file in self._files)
        if described > 2 * size:
            raise CheckpointError(
                f"{self.path}: damaged: its tensors share storage, and are {described} bytes in a "
                f"file of {size}; re-save it with a storage for each tensor"
            )

    def _piece(self, name: str) -> Piece:
        if not self._open:
            raise CheckpointError(f"{self.path}: read of {name} after the checkpoint was closed")
        if name not in self._pieces:
            raise CheckpointError(f"{self.path}: has no tensor named {name}")
        return self._pieces[name]

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """See `Checkpoint.read`: a view, or a copy of a tensor that lies unaligned in the file."""
        piece = self._piece(name)
        for file in self._files:
            if file is not piece.file:
                file.release()
        return piece.file.view(piece.extent).reshape(self.tensors[name].shape)

    def verify(self, name: str) -> None:
        """See `Checkpoint.verify`."""
        file, _, member = self._piece(name)
        if member is None or (file.path, member.start) in self._intact:
            return
        if not is_intact(file, member):
            raise CheckpointError(
                f"{file.path}: damaged: the bytes of {name} fail the file's checksum; "
                "download it again"
            )
        self._intact.add((file.path, member.start))

    def close(self) -> None:
        """See `Checkpoint.close`."""
        if self._open:
            self._open = False
            for file in self._files:
                file.close()
