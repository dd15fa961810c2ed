"""Opens a model file of any known format. For other files, the error says what the file is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rwkv_core.checkpoint import folder, gguf, pqth, pth, rwkv_cpp, safetensors, sharded
from rwkv_core.checkpoint.reader import HEAD_BYTES, Checkpoint, CheckpointFormat, read_head
from rwkv_core.errors import CheckpointError, RWKVError
from rwkv_core.util.printable import one_line

BUILTIN_FORMATS: tuple[CheckpointFormat, ...] = (
    pth.FORMAT,
    pqth.FORMAT,  # before safetensors, since a .pqth is a safetensors file too
    safetensors.FORMAT,
    rwkv_cpp.FORMAT,
    gguf.FORMAT,
    sharded.FORMAT,
)
__all__ = ["BUILTIN_FORMATS", "HEAD_BYTES", "matching_format", "open_checkpoint"]

_GET_THE_FILE = "download the model file itself"
# First bytes of other files, what such a file is, and what the user can do.
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
    """Open a model file with the first of `formats` that matches its content.

    For a folder, the model file in it is opened. The file's name does not matter. Use the result in
    a `with` statement. Raises CheckpointError if `path` is not a path, or the file does not exist,
    is of no known kind, or is truncated or damaged.
    """
    try:
        path = Path(path)
    except TypeError:
        raise CheckpointError(
            f"path: found a {type(path).__name__}, expected a model file's path (str or Path)"
        ) from None
    if path.is_dir():
        path = folder.model_in(path, {suffix for one in formats for suffix in one.suffixes})
    head = read_head(path)
    format, problems = matching_format(path, head, formats)
    if format is not None:
        return _open(format, path)
    known = ", ".join(format.name for format in formats)
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for beginnings, what, advice in _LOOK_ALIKES:
        if start.startswith(beginnings):
            raise CheckpointError(f"{path}: is {what}; {advice}")
    raise CheckpointError(
        f"{path}: of no known kind: it begins with {head[:8]!r}; expected a file of one of the "
        f"formats {known}{''.join(problems)}"
    )


def matching_format(
    path: Path, head: bytes, formats: Sequence[CheckpointFormat]
) -> tuple[CheckpointFormat | None, list[str]]:
    """Return the first format that matches a file, and the errors of formats that failed."""
    problems: list[str] = []
    for format in formats:
        try:
            if format.matches(path, head):
                return format, problems
        except KeyboardInterrupt:
            raise
        # A plugin's failure must not keep the file from the formats after it.
        except BaseException as error:
            problems.append(f"; {format.name} failed to look at it: {one_line(error)}")
    return None, problems


def _open(format: CheckpointFormat, path: Path) -> Checkpoint:
    try:
        return format.open(path)
    except RWKVError:
        raise
    except Exception as error:
        failed = f"{path}: the format {format.name} failed to open it: {one_line(error)}"
        raise CheckpointError(failed) from error
