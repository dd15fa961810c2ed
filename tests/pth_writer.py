"""Writes NumPy arrays as a .pth file that torch.load reads, without torch."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

STORAGES = {
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float64): "DoubleStorage",
    np.dtype(np.int8): "CharStorage",
    np.dtype(np.uint8): "ByteStorage",
    np.dtype(np.int32): "IntStorage",
    np.dtype(np.int64): "LongStorage",
}


def write_pth(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a state dict as torch.save does: a storage for each tensor, aligned to 64 bytes."""
    arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    members = {f"data/{key}": array.tobytes() for key, array in enumerate(arrays.values())}
    write_torch_zip(path, state_dict_pickle(arrays), members)


def write_torch_zip(
    path: str | Path, pickle: bytes, members: Mapping[str, bytes], prefix: str = "archive"
) -> None:
    """Write a zip laid out as torch.save's, with any pickle and any members."""
    fixed = {"data.pkl": pickle, "byteorder": b"little"}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in {**fixed, **members, "version": b"3\n"}.items():
            member = zipfile.ZipInfo(f"{prefix}/{name}")
            assert archive.fp is not None
            padding = -(archive.fp.tell() + 30 + len(member.filename) + 4) % 64
            member.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
            archive.writestr(member, content)


def state_dict_pickle(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The pickle of a dictionary of tensors; the storage of the nth is the member data/n."""
    items = [
        text(name) + tensor(str(key), array.dtype, array.shape)
        for key, (name, array) in enumerate(arrays.items())
    ]
    return b"\x80\x02}(" + b"".join(items) + b"u."


def tensor(
    key: str,
    dtype: np.dtype,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None = None,
    offset: int = 0,
    n_elements: int | None = None,
) -> bytes:
    """Return the opcodes that push one tensor. Strides and offset are in elements."""
    if strides is None:
        strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    if n_elements is None:
        n_elements = int(np.prod(shape))
    kind = f"ctorch\n{STORAGES[dtype]}\n".encode()
    storage = text("storage") + kind + text(key) + text("cpu") + integer(n_elements)
    place = integer(offset) + integers(shape) + integers(strides)
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n((" + storage + b"tQ" + place + hooks + b"tR"


def text(value: str) -> bytes:
    """BINUNICODE."""
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def integer(value: int) -> bytes:
    """LONG1, which has room for any size."""
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def integers(values: tuple[int, ...]) -> bytes:
    """A tuple of integers."""
    return b"(" + b"".join(map(integer, values)) + b"t"
