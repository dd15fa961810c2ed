"""Writes `.safetensors` one tensor at a time, without holding the whole model in memory.

The safetensors library's `save_file` takes all tensors at once. The header is at the beginning of
the file but is written last: the writer reserves space for it, and fills the rest of this space
with blanks, which the format allows. `checkpoint/safetensors.py` reads the format.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, BinaryIO

import numpy as np

from rwkv_core.checkpoint.safetensors import DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Most bytes that an entry of the header takes besides the tensor's name, for up to three axes.
_ENTRY_BYTES = 160


class SafetensorsWriter:
    """Appends tensors to a file. The file is complete after a call of `finish`.

    Arguments:
        file: open for writing, empty, and seekable.
        names: names of all tensors that will be appended; they decide how much space is reserved
            for the header.
        metadata: the header's `__metadata__`.
    """

    def __init__(self, file: BinaryIO, names: Collection[str], metadata: Mapping[str, str]) -> None:
        self._file, self._header = file, {"__metadata__": dict(metadata)}
        fixed = len(json.dumps(self._header))
        size = fixed + sum(len(name) + _ENTRY_BYTES for name in names)
        self._reserved = size + -size % 8
        self._end = 0
        file.seek(8 + self._reserved)

    def append(self, name: str, array: np.ndarray[Any, Any]) -> None:
        """Append a tensor, of any shape and float or uint8 dtype; it need not be contiguous."""
        begin, self._end = self._end, self._end + array.nbytes
        entry: dict[str, Any] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [begin, self._end],
        }
        self._header[name] = entry
        self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def finish(self) -> None:
        """Write the header. Nothing can be appended afterwards."""
        header = json.dumps(self._header).encode().ljust(self._reserved)
        assert len(header) == self._reserved
        self._file.seek(0)
        self._file.write(len(header).to_bytes(8, "little") + header)
