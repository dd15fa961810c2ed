"""A file's kind is recognized by its content; the error for another file says what it is."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from pth_writer import write_pth
from rwkv_core.checkpoint import BUILTIN_FORMATS, CheckpointFormat, open_checkpoint
from rwkv_core.errors import CheckpointError

NOT_MODELS = {
    "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 338\n",
    "a web page": b"\n<!DOCTYPE html>\n<html><body>404</body></html>",
    "a GGML file": b"tjgg\x03\x00\x00\x00",
    "a JSON file": b'{"metadata": {}, "weight_map": {}}',
    "a bare pickle": b"\x80\x04\x95\x10\x00\x00\x00",
    "is empty": b"",
    "of no known kind": b"once upon a time",
}


@pytest.mark.parametrize("what", NOT_MODELS)
def test_what_is_no_model_is_named(tmp_path: Path, what: str) -> None:
    path = tmp_path / "model.pth"
    path.write_bytes(NOT_MODELS[what])
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert str(path) in message and what in message and "\n" not in message


def test_the_name_is_of_no_account(tmp_path: Path) -> None:
    weights = {"x": np.ones(3, np.float32)}
    write_pth(tmp_path / "m.safetensors", weights)
    save_file(weights, tmp_path / "m.pth")
    assert open_checkpoint(tmp_path / "m.safetensors").format == "pth"
    assert open_checkpoint(str(tmp_path / "m.pth")).format == "safetensors"


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        open_checkpoint(tmp_path / "nothing.pth")


@pytest.mark.parametrize("path", [None, 5, b"model.pth", ["model.pth"]])
def test_what_is_no_path_is_named(path: object) -> None:
    with pytest.raises(CheckpointError, match="expected a model file's path") as error:
        open_checkpoint(path)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="a folder"):
        open_checkpoint(tmp_path)


def test_a_path_through_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_checkpoint(tmp_path / "file" / "m.pth")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="not a regular file"):
        open_checkpoint(tmp_path / "pipe")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads anything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    write_pth(tmp_path / "m.pth", {"x": np.ones(3, np.float32)})
    (tmp_path / "m.pth").chmod(0)
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_checkpoint(tmp_path / "m.pth")


def test_a_further_format_comes_before_the_built_in_ones(tmp_path: Path) -> None:
    write_pth(tmp_path / "real.pth", {"x": np.ones(3, np.float32)})
    (tmp_path / "m").write_bytes(b"MINE, with more to follow")
    mine = CheckpointFormat(
        "mine",
        "for a test",
        lambda path, head: head.startswith(b"MINE"),
        lambda path: open_checkpoint(path.with_name("real.pth")),
    )
    with open_checkpoint(tmp_path / "m", [mine, *BUILTIN_FORMATS]) as checkpoint:
        assert list(checkpoint.tensors) == ["x"]
    with pytest.raises(CheckpointError, match="formats pth, prequantized, safetensors, rwkv"):
        open_checkpoint(tmp_path / "m")


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([b"", b"PK\x03\x04", b"fmgg", b"\x10" + bytes(7) + b"{", b"{", b"<html"]),
    st.binary(max_size=100),
)
def test_any_bytes_are_one_error(
    tmp_path_factory: pytest.TempPathFactory, start: bytes, rest: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(start + rest)
    try:
        open_checkpoint(path).close()
    except CheckpointError as error:
        assert str(error).count("\n") <= 1
