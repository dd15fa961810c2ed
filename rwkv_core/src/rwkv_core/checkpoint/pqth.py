"""`.pqth`, prequantized models: safetensors whose matrices are quantized; see `prequantize`.

A matrix is three tensors, such as `head.weight.codes`, `.scales` and `.offsets`, laid out as in a
`QuantizedMatrix`. Vectors and the embedding are as in the model's own file. The metadata holds the
format with its version, the bits, and the fingerprint of the original model. States of the original
model fit this file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rwkv_core.checkpoint import safetensors
from rwkv_core.checkpoint.memory_map import MappedCheckpoint
from rwkv_core.checkpoint.reader import Checkpoint, CheckpointFormat, TensorInfo
from rwkv_core.dtypes import QUANTIZED_BITS
from rwkv_core.errors import CheckpointError
from rwkv_core.quantization import QuantizedMatrix

VERSION = "1"
_KIND = "rwkv-core prequantized"
PARTS = ("codes", "scales", "offsets")
_FLOAT32 = np.dtype(np.float32)
_SCALE_TYPES = (np.dtype(np.float16), _FLOAT32)


def metadata(
    bits: int, group_size: int, fingerprint: str, sizes: Mapping[str, int]
) -> dict[str, str]:
    """Return the metadata of such a file; the reader needs format, bits and fingerprint."""
    return {
        "format": f"{_KIND} {VERSION}",
        "bits": str(bits),
        "group_size": str(group_size),
        "fingerprint": fingerprint,
        **{name: str(size) for name, size in sizes.items()},
    }


def _matches(path: Path, head: bytes) -> bool:
    return safetensors.FORMAT.matches(path, head) and f'"{_KIND} '.encode() in head


def open_prequantized(path: Path) -> PrequantizedCheckpoint:
    """Open a prequantized file.

    Raises CheckpointError if it is of another version, or damaged.
    """
    stored = safetensors.open_safetensors(path)
    try:
        return PrequantizedCheckpoint(stored)
    except BaseException:
        stored.close()
        raise


class PrequantizedCheckpoint(Checkpoint):
    """Presents each quantized matrix as one float32 tensor, which `read` dequantizes."""

    def __init__(self, stored: MappedCheckpoint) -> None:
        self.path, self.format, self._stored = stored.path, FORMAT.name, stored
        self.metadata = stored.metadata
        version = self.metadata.get("format", "")
        if version != f"{_KIND} {VERSION}":
            raise CheckpointError(
                f"{self.path}: its format is {version[:40]!r}, expected '{_KIND} {VERSION}': "
                "upgrade rwkv-core, or prequantize the model again"
            )
        bits = self.metadata.get("bits", "")
        if bits not in map(str, QUANTIZED_BITS.values()):
            raise self._damaged(f"found {bits[:20]!r} bits, expected 8 or 4")
        self._bits = int(bits)
        self.fingerprint = self.metadata.get("fingerprint", "")
        if not re.fullmatch("[0-9a-f]{16}", self.fingerprint):
            raise self._damaged("its metadata holds no fingerprint of 16 hex digits")
        self._quantized: set[str] = set()
        self.tensors = self._presented()

    def check_metadata(self, sizes: Mapping[str, int]) -> None:
        """See `Checkpoint.check_metadata`."""
        for name, size in sizes.items():
            self._check_said(name, size)

    def _check_said(self, key: str, found: int) -> None:
        said = self.metadata.get(key, str(found))
        if said != str(found):
            raise self._damaged(f"its metadata says {key} {said[:20]!r}, its tensors {found}")

    def _presented(self) -> dict[str, TensorInfo]:
        tensors: dict[str, TensorInfo] = {}
        for name, tensor in self._stored.tensors.items():
            matrix, _, part = name.rpartition(".")
            if part not in PARTS:
                tensors[name] = tensor
            elif matrix not in self._quantized:
                tensors[matrix] = TensorInfo(self._matrix_shape(matrix), _FLOAT32)
                self._quantized.add(matrix)
        for name in self._quantized & set(self._stored.tensors):
            raise self._damaged(f"holds {name} both quantized and not")
        return tensors

    def _matrix_shape(self, name: str) -> tuple[int, int]:
        """Return the matrix's shape [out, in], after checking that its three parts fit."""
        stored = self._stored.tensors
        missing = [part for part in PARTS if f"{name}.{part}" not in stored]
        if missing:
            raise self._damaged(f"{name} has no {' and no '.join(missing)}")
        codes, scales, offsets = (stored[f"{name}.{part}"] for part in PARTS)
        if codes.dtype != np.uint8 or len(codes.shape) != 2 or 0 in codes.shape:
            raise self._damaged(
                f"{name}.codes is {codes.dtype} {list(codes.shape)}, expected a matrix of uint8"
            )
        rows, width = codes.shape[0], codes.shape[1] * 8 // self._bits
        for part, tensor in (("scales", scales), ("offsets", offsets)):
            groups = tensor.shape[1] if len(tensor.shape) == 2 else 0
            if tensor.dtype not in _SCALE_TYPES or tensor.shape[:1] != (rows,) or groups == 0:
                raise self._damaged(
                    f"{name}.{part} is {tensor.dtype} {list(tensor.shape)}, expected float16 or "
                    f"float32 [{rows}, groups]"
                )
        if scales != offsets:
            raise self._damaged(f"the scales and offsets of {name} differ in type or shape")
        if width % scales.shape[1]:
            raise self._damaged(f"{name} has {scales.shape[1]} groups in rows of {width} weights")
        return rows, width

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: damaged: {what}; prequantize the model again")

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """See `Checkpoint.read`; a quantized matrix is dequantized into new memory."""
        quantized = self.read_quantized(name)
        if quantized is None:
            return self._stored.read(name)
        matrix = quantized.dequantize()
        matrix.flags.writeable = False
        return matrix

    def read_quantized(self, name: str) -> QuantizedMatrix | None:
        """See `Checkpoint.read_quantized`; its arrays are views of the file."""
        if name not in self._quantized:
            return None
        codes, scales, offsets = (self._stored.read(f"{name}.{part}") for part in PARTS)
        matrix = QuantizedMatrix(self._bits, codes, scales, offsets)
        self._check_said("group_size", matrix.group_size)
        return matrix

    def close(self) -> None:
        """See `Checkpoint.close`."""
        self._stored.close()


FORMAT = CheckpointFormat(
    "prequantized", "what `rwkv-core prequantize` writes, 8 or 4 bits", _matches, open_prequantized,
    (".pqth",),
)  # fmt: skip
