"""Reads rwkv.cpp's `.bin`: a header of six int32, then each tensor's description and its bytes.

rwkv.cpp's converter (python/convert_pytorch_to_ggml.py, described in docs/FILE_FORMAT.md of
rwkv.cpp's repository) keeps BlinkDL's names, writes dimensions innermost first, and drops the
length-1 axes of `time_` vectors or adds one. It stores some vectors transformed, and this module
transforms them back: time_decay as -exp(time_decay) in RWKV-4 and exp(-exp(time_decay)) in RWKV-5,
and RWKV-5.0's time_first as its exponential. RWKV-6's time_decay is [H, N, 1]. `layouts` undoes the
converter's other changes of RWKV-6 and 7.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from rwkv_core.checkpoint.extent import Extent, row_major
from rwkv_core.checkpoint.memory_map import MappedCheckpoint, MappedFile, Piece
from rwkv_core.checkpoint.reader import CheckpointFormat, damaged
from rwkv_core.errors import CheckpointError

MAGIC = struct.pack("<i", 0x67676D66)
VERSIONS = (100, 101)
HEADER = struct.Struct("<6i")
DESCRIPTION = struct.Struct("<3i")
DTYPES: dict[int, np.dtype[Any]] = {0: np.dtype("<f4"), 1: np.dtype("<f2")}
QUANTIZED = ("Q4_0", "Q4_1", "Q4_1_O", "Q4_2", "Q4_3", "Q5_0", "Q5_1", "Q8_0")  # from 2 on
MAX_TENSORS = 20_000
MAX_NAME_BYTES = 256


_damaged = partial(damaged, advice="convert it again")


def _matches(path: Path, head: bytes) -> bool:
    return head.startswith(MAGIC)


def open_rwkv_cpp(path: Path) -> MappedCheckpoint:
    """Open an rwkv.cpp file of float32 or float16 weights.

    Raises CheckpointError if it is quantized, of an unknown version, or damaged.
    """
    file = MappedFile(path)
    extents = _extents(file)
    if any(".att.time_maa_" in name for name in extents):
        extents = {name: _flat_decay(name, extent) for name, extent in extents.items()}
    pieces = {name: Piece(file, extent) for name, extent in extents.items()}
    return _RwkvCppCheckpoint(path, FORMAT.name, pieces)


def _flat_decay(name: str, extent: Extent) -> Extent:
    """Return the extent of RWKV-6's time_decay [H, N, 1] as one of [D]."""
    if not name.endswith(".att.time_decay"):
        return extent
    return row_major(extent.offset, (prod(extent.shape),), extent.dtype)


class _RwkvCppCheckpoint(MappedCheckpoint):
    def read(self, name: str) -> np.ndarray[Any, Any]:
        """See `Checkpoint.read`; a tensor that is stored transformed is new memory."""
        array = super().read(name)
        undo = self._inverses.get(name.rpartition(".")[2])
        return array if undo is None else _computed(undo, array)

    @cached_property
    def _inverses(self) -> dict[str, _Inverse]:
        """Return functions that restore BlinkDL's values, by the last part of tensors' names."""
        if any(".att.time_maa_" in name or name.endswith(".att.k_k") for name in self.tensors):
            return {}
        if any(".att.ln_x." in name for name in self.tensors):
            return {"time_decay": _log_of_minus_log, "time_first": np.log}
        return {"time_decay": _log_of_minus}


_Inverse: TypeAlias = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
_SMALLEST = np.finfo(np.float32).smallest_normal


def _computed(undo: _Inverse, stored: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return `undo(stored)` in the stored dtype; NaN for a value that no converter writes."""
    with np.errstate(invalid="ignore", divide="ignore"):
        raw = undo(stored).astype(stored.dtype)
    raw.flags.writeable = False
    return raw


def _log_of_minus(stored: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the x of -exp(x); for 0, which is an underflow, an x that underflows."""
    return np.log(np.where(stored == 0, _SMALLEST, -stored))


def _log_of_minus_log(stored: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the x of exp(-exp(x)); for 0 and 1, an x that rounds to them."""
    exponent = -np.log(np.where(stored == 0, _SMALLEST, stored))
    return _log_of_minus(-exponent)


def _extents(file: MappedFile) -> dict[str, Extent]:
    if file.size < HEADER.size:
        raise _damaged(file.path, f"{file.size} bytes hold no header")
    _, version, _, _, _, data_type = HEADER.unpack(file.bytes_at(0, HEADER.size))
    if version not in VERSIONS:
        raise CheckpointError(
            f"{file.path}: rwkv.cpp file version {version}, expected 100 or 101; convert it again"
        )
    _check_data_type(file, data_type)
    extents: dict[str, Extent] = {}
    position = HEADER.size
    while position < file.size:
        name, extent = _tensor(file, position)
        if name in extents or len(extents) == MAX_TENSORS:
            raise _damaged(file.path, f"{name[:80]!r} occurs twice or is one of too many")
        extents[name] = extent
        position = extent.offset + extent.n_bytes
    return extents


def _check_data_type(file: MappedFile, data_type: int) -> None:
    if 2 <= data_type < 2 + len(QUANTIZED):
        raise CheckpointError(
            f"{file.path}: quantized to {QUANTIZED[data_type - 2]}, which only rwkv.cpp reads; use "
            "the FP32 or FP16 file, or the .pth (`rwkv-core prequantize` quantizes it)"
        )
    if data_type not in DTYPES:
        raise _damaged(file.path, f"data type {data_type} is unknown")


def _tensor(file: MappedFile, position: int) -> tuple[str, Extent]:
    """Return the name and extent of the tensor whose description begins at byte `position`."""
    description = file.bytes_at(position, DESCRIPTION.size)
    if len(description) < DESCRIPTION.size:
        raise _damaged(file.path, f"it ends within the description at byte {position}")
    n_dims, n_name, data_type = DESCRIPTION.unpack(description)
    if not 1 <= n_dims <= 4 or not 1 <= n_name <= MAX_NAME_BYTES:
        raise _damaged(file.path, f"no tensor is described at byte {position}")
    _check_data_type(file, data_type)
    after = position + DESCRIPTION.size
    rest = file.bytes_at(after, 4 * n_dims + n_name)
    if len(rest) < 4 * n_dims + n_name:
        raise _damaged(file.path, f"it ends within the description at byte {position}")
    shape = tuple(reversed(struct.unpack_from(f"<{n_dims}i", rest)))
    name = rest[4 * n_dims :].decode("utf-8", "replace")
    n_bytes = prod(shape) * DTYPES[data_type].itemsize
    start = after + len(rest)
    if min(shape) < 1 or start + n_bytes > file.size:
        raise _damaged(file.path, f"{name[:80]!r} {list(shape)} does not fit in {file.size} bytes")
    return name, row_major(start, shape, DTYPES[data_type])


FORMAT = CheckpointFormat(
    "rwkv.cpp", "rwkv.cpp's .bin, float32 or float16", _matches, open_rwkv_cpp,
    (".bin",),
)  # fmt: skip
