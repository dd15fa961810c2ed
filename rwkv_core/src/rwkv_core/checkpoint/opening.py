"""Opens a model file of any known format, and says what a file is that is none of them."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from rwkv_core.checkpoint import prequantized, pth, rwkv_cpp, safetensors
from rwkv_core.checkpoint.reader import Checkpoint, CheckpointFormat
from rwkv_core.errors import CheckpointError

BUILTIN_FORMATS: tuple[CheckpointFormat, ...] = (
    pth.FORMAT,
    prequantized.FORMAT,  # before safetensors, which it is inside
    safetensors.FORMAT,
    rwkv_cpp.FORMAT,
)

HEAD_BYTES = 4096

_GET_THE_FILE = "download the model file itself"
# What a file that no format claims begins with, what it then is, and what to do about it.
_LOOK_ALIKES: tuple[tuple[tuple[bytes, ...], str, str], ...] = (
    (
        (b"version https://git-lfs.github.com/spec/",),
        "a git-lfs pointer, not the model",
        "run `git lfs pull`, or " + _GET_THE_FILE,
    ),
    (
        (b"<!doctype html", b"<html", b"<head", b"<?xml"),
        "a web page, not the model",
        _GET_THE_FILE + " (on Hugging Face, the address with /resolve/ in it)",
    ),
    ((b"gguf",), "a GGUF file, which llama.cpp reads", "use the .pth or .safetensors file"),
    (
        (b"tjgg", b"lmgg"),
        "a GGML file of another program than rwkv.cpp",
        "use the .pth or .safetensors file",
    ),
    (
        (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
        "a bare pickle, which cannot be read safely",
        "re-save the state dict with torch.save",
    ),
    ((b"{",), "a JSON file", "name the file with the weights (.pth, .safetensors or .bin)"),
)


def open_checkpoint(
    path: str | os.PathLike[str], formats: Sequence[CheckpointFormat] = BUILTIN_FORMATS
) -> Checkpoint:
    """Open a model file; the first of `formats` that its content matches reads it.

    Use it in a `with` statement. Raises CheckpointError if `path` is no path, there is no such
    file, it is of no known kind, or it is truncated or damaged. The file's name is of no account.
    """
    try:
        path = Path(path)
    except TypeError:
        raise CheckpointError(
            f"path: found a {type(path).__name__}, expected a model file's path (str or Path)"
        ) from None
    head = _head(path)
    for format in formats:
        if format.matches(path, head):
            return format.open(path)
    known = ", ".join(format.name for format in formats)
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for beginnings, what, advice in _LOOK_ALIKES:
        if start.startswith(beginnings):
            raise CheckpointError(f"{path}: is {what}; {advice}")
    raise CheckpointError(
        f"{path}: of no known kind: it begins with {head[:8]!r}; expected a file of one of the "
        f"formats {known}"
    )


def _head(path: Path) -> bytes:
    """The file's first bytes, once it is known to be one that can be read and will not block."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise CheckpointError(f"{path}: a folder; name the model file in it")
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
