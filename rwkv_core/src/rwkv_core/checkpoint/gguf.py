"""Reads llama.cpp's `.gguf` of an RWKV-6 or RWKV-7: metadata, tensors' descriptions, their bytes.

The `gguf` package is not used, since it has no limit on what a damaged file makes it read. Layout:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
llama.cpp's converter (conversion/rwkv.py) renames tensors, joins the shares of the token shifts
into one tensor, transposes low-rank matrices, flattens r_k, and divides the matrices that RWKV-6's
deep layers add to the residual stream by powers of two. This module undoes all of that.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from rwkv_core.backends.tensor_ops import EPSILON
from rwkv_core.checkpoint.extent import Extent, row_major
from rwkv_core.checkpoint.memory_map import MappedFile
from rwkv_core.checkpoint.reader import Checkpoint, CheckpointFormat, TensorInfo, damaged
from rwkv_core.errors import CheckpointError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_TENSORS, MAX_VALUES, MAX_NAME_BYTES, MAX_DIMENSIONS = 20_000, 10_000, 65_535, 4
_FLOAT32 = np.dtype("<f4")
# Q8_0: 32 int8 codes and their scale.
_Q8_0 = np.dtype([("scale", "<f2"), ("codes", "i1", (32,))])
DTYPES = {0: _FLOAT32, 1: np.dtype("<f2"), 8: _Q8_0, 30: np.dtype(ml_dtypes.bfloat16)}
# Types of metadata values, as format characters of `struct`.
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

_COMMON = {
    "token_embd": "emb", "token_embd_norm": "blocks.0.ln0", "output_norm": "ln_out",
    "output": "head", "attn_norm": "ln1", "attn_norm_2": "ln2", "time_mix_ln": "att.ln_x",
    **{f"time_mix_{x}": f"att.{x}" for x in ("key", "value", "receptance", "gate", "output")},
    **{f"channel_mix_{x}": f"ffn.{x}" for x in ("key", "value", "receptance")},
}  # fmt: skip
# Names of tensors whose BlinkDL name ends in neither weight nor bias.
_OF_6 = {
    "time_mix_w1": "att.time_maa_w1", "time_mix_w2": "att.time_maa_w2",
    "time_mix_first": "att.time_faaaa", "time_mix_decay": "att.time_decay",
    "time_mix_decay_w1": "att.time_decay_w1", "time_mix_decay_w2": "att.time_decay_w2",
    **{f"time_mix_lerp_{x}": f"att.time_maa_{x}" for x in "xwkvrg"},
    **{f"channel_mix_lerp_{x}": f"ffn.time_maa_{x}" for x in "kr"},
}  # fmt: skip
_OF_7 = {
    **{f"time_mix_{x}{i}": f"att.{x}{i}" for x in "wavg" for i in "012"},
    **{f"time_mix_{x}": f"att.{x}" for x in ("k_k", "k_a", "r_k")},
    "channel_mix_lerp_k": "ffn.x_k",
}  # fmt: skip
_FUSED = {
    "rwkv6": [f"att.time_maa_{x}" for x in "wkvrg"],
    "rwkv7": [f"att.x_{x}" for x in "rwkvag"],
}
_TRANSPOSED = re.compile(r"\.(time_maa_w[12]|time_decay_w[12]|[wavg][12])$")
_RESCALED = re.compile(r"^blocks\.([0-9]+)\.(att\.output|ffn\.value)\.weight$")
_BLOCK = re.compile(r"^blk\.([0-9]+)\.")


class _Cursor:
    """Reads a file's fields one after the other; raises CheckpointError where it ends early."""

    def __init__(self, file: MappedFile) -> None:
        self.file, self.position = file, 0

    def take(self, length: int) -> bytes:
        found = self.file.bytes_at(self.position, length)
        if len(found) < length:
            raise damaged(self.file.path, f"it ends within its header, at byte {self.position}")
        self.position += length
        return found

    def skip(self, length: int) -> None:
        self.position += length
        if self.position > self.file.size:
            raise damaged(self.file.path, "it ends within its header")

    def number(self, kind: str) -> Any:
        return struct.unpack("<" + kind, self.take(struct.calcsize("<" + kind)))[0]

    def text(self) -> str:
        length = self.number("Q")
        if length > MAX_NAME_BYTES:
            raise damaged(self.file.path, f"a name of {length} bytes at byte {self.position}")
        return self.take(length).decode("utf-8", "replace")

    def value(self) -> Any:
        """Return a number or a text of the metadata; None for an array, which is skipped."""
        kind = self.number("I")
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            length = self.number("Q")
            self.skip(length)
            return self.file.bytes_at(self.position - length, min(length, 80)).decode(
                "utf-8", "replace"
            )
        if kind != _ARRAY:
            raise damaged(self.file.path, f"a value of unknown type {kind}")
        kind, length = self.number("I"), self.number("Q")
        if kind in _SCALARS:
            self.skip(length * struct.calcsize("<" + _SCALARS[kind]))
        elif kind == _STRING:
            for _ in range(length):  # each takes at least 8 bytes, so the file's size bounds this
                self.skip(self.number("Q"))
        else:
            raise damaged(self.file.path, f"an array of unknown type {kind}")
        return None


class _Header(NamedTuple):
    metadata: dict[str, Any]
    extents: dict[str, Extent]
    """Tensors by llama.cpp's names; the last axis of a Q8_0 tensor counts blocks."""


def _read_header(file: MappedFile) -> _Header:
    cursor = _Cursor(file)
    cursor.skip(len(MAGIC))
    version, n_tensors, n_values = (cursor.number(kind) for kind in "IQQ")
    if version not in VERSIONS:
        raise CheckpointError(f"{file.path}: GGUF version {version}, expected 2 or 3; convert the "
                              "model again, or use its .pth")  # fmt: skip
    if n_tensors > MAX_TENSORS or n_values > MAX_VALUES:
        raise damaged(file.path, f"{n_tensors} tensors and {n_values} values")
    metadata = {cursor.text(): cursor.value() for _ in range(n_values)}
    described = [_described(cursor) for _ in range(n_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 2**20:
        raise damaged(file.path, f"an alignment of {alignment!r}")
    start = -(-cursor.position // alignment) * alignment
    extents = {name: extent._replace(offset=start + extent.offset) for name, extent in described}
    if len(extents) < n_tensors or not all(map(file.holds, extents.values())):
        raise damaged(file.path, f"its tensors do not fit in {file.size} bytes")
    return _Header(metadata, extents)


def _described(cursor: _Cursor) -> tuple[str, Extent]:
    """Read a tensor's name and extent; the offset is relative to the data's beginning."""
    name, n_dims = cursor.text(), cursor.number("I")
    if not 1 <= n_dims <= MAX_DIMENSIONS:
        raise damaged(cursor.file.path, f"{name[:80]!r} has {n_dims} axes")
    shape = tuple(cursor.number("Q") for _ in range(n_dims))[::-1]
    kind, offset = cursor.number("I"), cursor.number("Q")
    if kind not in DTYPES:
        raise CheckpointError(
            f"{cursor.file.path}: {name[:80]!r} is quantized (GGML type {kind}) in a way that only "
            "llama.cpp reads; use an F16, BF16, F32 or Q8_0 file, or the .pth"
        )
    if not all(1 <= n < 2**48 for n in shape):
        raise damaged(cursor.file.path, f"{name[:80]!r} has the shape {list(shape)}")
    if DTYPES[kind] is _Q8_0:
        if shape[-1] % 32:
            raise damaged(cursor.file.path, f"{name[:80]!r} has rows of {shape[-1]} in Q8_0")
        shape = (*shape[:-1], shape[-1] // 32)
    return name, row_major(offset, shape, DTYPES[kind])


class GGUFCheckpoint(Checkpoint):
    """Presents the tensors in BlinkDL's names and layout; Q8_0 tensors are float32."""

    def __init__(self, path: Path) -> None:
        self.path, self.format, self._file = path, FORMAT.name, MappedFile(path)
        header = _read_header(self._file)
        self.metadata = {k: str(v) for k, v in header.metadata.items() if v is not None}
        name = header.metadata.get("general.architecture")
        if name not in _FUSED:
            raise CheckpointError(
                f"{path}: a GGUF file of the architecture {str(name)[:40]!r}, expected rwkv6 or "
                "rwkv7; rwkv-core reads other RWKV versions from their .pth or .safetensors file"
            )
        self._check_epsilon(header.metadata.get(f"{name}.attention.layer_norm_epsilon", EPSILON))
        head_size = header.metadata.get(f"{name}.wkv.head_size")
        if not isinstance(head_size, int) or head_size < 1:
            raise damaged(path, f"its heads have a size of {head_size!r}")
        self._head_size = head_size
        every = header.metadata.get(f"{name}.rescale_every_n_layers", 0)
        self._rescale_every = every if name == "rwkv6" and isinstance(every, int) else 0
        self._extents = dict(self._canonical(name, header.extents))
        self.tensors: Mapping[str, TensorInfo] = {
            tensor: self._info(tensor, extent) for tensor, extent in self._extents.items()
        }

    def _check_epsilon(self, epsilon: Any) -> None:
        if not isinstance(epsilon, float) or not np.isclose(epsilon, EPSILON, rtol=1e-3):
            raise CheckpointError(
                f"{self.path}: its layer norms have the epsilon {epsilon!r}, expected {EPSILON:g}; "
                "use the model's .pth"
            )

    def _canonical(
        self, architecture: str, extents: Mapping[str, Extent]
    ) -> Iterator[tuple[str, Extent]]:
        own = _OF_6 if architecture == "rwkv6" else _OF_7
        for name, extent in extents.items():
            block = _BLOCK.match(name)
            prefix = f"blocks.{block[1]}." if block else ""
            module, _, last = name[block.end() if block else 0 :].rpartition(".")
            fused = _FUSED[architecture]
            if module == "time_mix_lerp_fused" and extent.shape[0] == len(fused):
                flat = row_major(0, (prod(extent.shape[1:]),), extent.dtype)
                for i, share in enumerate(fused):
                    yield prefix + share, flat._replace(offset=extent.offset + i * flat.n_bytes)
            elif module in own:
                yield prefix + own[module], extent
            elif module in _COMMON:
                yield f"{prefix}{_COMMON[module]}.{last}", extent
            elif module != "rope_freqs":
                yield name, extent

    def _info(self, name: str, extent: Extent) -> TensorInfo:
        shape, dtype = extent.shape, extent.dtype
        if dtype is _Q8_0:
            shape, dtype = (*shape[:-1], shape[-1] * 32), _FLOAT32
        elif self._factor(name) != 1:
            dtype = _FLOAT32
        if _TRANSPOSED.search(name) and len(shape) > 1:
            shape = (*shape[:-2], shape[-1], shape[-2])
        size = self._head_size
        if name.endswith(".att.r_k") and len(shape) == 1 and shape[0] % size == 0:
            shape = (shape[0] // size, size)
        return TensorInfo(shape, dtype)

    def _factor(self, name: str) -> int:
        """Return the number that the converter divided the tensor by."""
        found = _RESCALED.match(name)
        if found is None or self._rescale_every < 1:
            return 1
        return int(2 ** min(int(found[1]) // self._rescale_every, 64))

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """See `Checkpoint.read`; a tensor that is in Q8_0 or was divided is new memory."""
        if name not in self._extents:
            raise CheckpointError(f"{self.path}: has no tensor named {name}")
        array = self._file.view(self._extents[name])
        shape, dtype = self.tensors[name]
        if array.dtype == _Q8_0:
            array = (array["codes"] * array["scale"].astype(dtype)[..., None]).reshape(
                *array.shape[:-1], -1
            )
        if self._factor(name) != 1:
            array = array.astype(dtype) * dtype.type(self._factor(name))
        if _TRANSPOSED.search(name) and array.ndim > 1:
            array = np.swapaxes(array, -1, -2)
        array = array.reshape(shape)
        array.flags.writeable = False
        return array

    def close(self) -> None:
        """See `Checkpoint.close`."""
        if self._extents:
            self._extents = {}
            self._file.close()


def _matches(path: Path, head: bytes) -> bool:
    return head.startswith(MAGIC)


FORMAT = CheckpointFormat(
    "gguf", "llama.cpp's .gguf of RWKV-6 and 7, F32, F16, BF16 or Q8_0", _matches, GGUFCheckpoint,
    (".gguf",),
)  # fmt: skip
