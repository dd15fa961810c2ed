"""Reads `.safetensors`: 8 bytes with the length of a JSON header, the header, the tensors' bytes.

The safetensors library is not used, since it cannot return bfloat16 tensors as NumPy arrays.
Layout: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from rwkv_core.checkpoint.extent import Extent, row_major
from rwkv_core.checkpoint.memory_map import MAX_DIMENSIONS, MappedCheckpoint, MappedFile, Piece
from rwkv_core.checkpoint.reader import CheckpointFormat, damaged
from rwkv_core.errors import CheckpointError

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
# A quantized 40-layer model needs 300 kB.
MAX_HEADER_BYTES = 4 * 2**20


def _matches(path: Path, head: bytes) -> bool:
    length = int.from_bytes(head[:8], "little")
    return head[8:9] == b"{" and length < 2**32


def open_safetensors(path: Path) -> MappedCheckpoint:
    """Open a safetensors file; its `__metadata__` is the checkpoint's metadata.

    Raises CheckpointError if the header is damaged or the tensors do not fill the file exactly.
    """
    pieces, metadata = safetensors_pieces(MappedFile(path))
    return MappedCheckpoint(path, FORMAT.name, pieces, metadata)


def safetensors_pieces(file: MappedFile) -> tuple[dict[str, Piece], dict[str, str]]:
    """Return the place of each tensor by its name in the file, and the metadata.

    Raises CheckpointError if the header is damaged or the tensors do not fill the file exactly.
    """
    header, data_start = _header(file)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise damaged(file.path, "its metadata is not text")
    extents = {name: _extent(file, name, entry, data_start) for name, entry in header.items()}
    _check_layout(file, extents, data_start)
    return {name: Piece(file, extent) for name, extent in extents.items()}, metadata


def _header(file: MappedFile) -> tuple[dict[str, Any], int]:
    """Return the parsed header, and the offset of the tensors' bytes in the file."""
    length = int.from_bytes(file.bytes_at(0, 8), "little")
    if length > MAX_HEADER_BYTES or 8 + length > file.size:
        raise damaged(file.path, f"a header of {length} bytes in a file of {file.size}")
    try:
        header = json.loads(file.bytes_at(8, length).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise damaged(file.path, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise damaged(file.path, "its header is not a JSON object")
    return header, 8 + length


def _extent(file: MappedFile, name: str, entry: object, data_start: int) -> Extent:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]}:
            pass
        case _:
            raise damaged(file.path, f"the entry of {name[:80]!r} is incomplete")
    if len(shape) > MAX_DIMENSIONS or not all(
        type(n) is int and 0 <= n < 2**48 for n in (begin, end, *shape)
    ):
        raise damaged(file.path, f"the entry of {name[:80]!r} holds something that is no size")
    if dtype not in DTYPES:
        raise CheckpointError(
            f"{file.path}: {name[:80]!r} is of type {dtype[:20]!r}, which is not supported; "
            "convert it to F32, F16 or BF16"
        )
    if end - begin != prod(shape) * DTYPES[dtype].itemsize:
        raise damaged(file.path, f"{name[:80]!r} has {end - begin} bytes for {dtype} {shape[:8]}")
    return row_major(data_start + begin, tuple(shape), DTYPES[dtype])


def _check_layout(file: MappedFile, extents: Mapping[str, Extent], data_start: int) -> None:
    """Raise CheckpointError for holes or overlaps between tensors, which the format forbids."""
    end = data_start
    for extent in sorted(extents.values(), key=lambda extent: (extent.offset, extent.n_bytes)):
        if extent.offset != end:
            raise damaged(file.path, f"its tensors overlap or leave a hole at byte {end}")
        end += extent.n_bytes
    if end != file.size:
        raise damaged(file.path, f"its tensors end at byte {end} of {file.size}")


FORMAT = CheckpointFormat(
    "safetensors", "safetensors, with BlinkDL's or transformers' names", _matches, open_safetensors,
    (".safetensors",),
)  # fmt: skip
