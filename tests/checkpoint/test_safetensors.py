"""A safetensors file gives the arrays that were saved; one that breaks the rules is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from random_model import random_weights
from rwkv_core.checkpoint import diagnose, open_checkpoint
from rwkv_core.errors import CheckpointError


def write(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(encoded) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + encoded + data)
    return path


def entry(begin: int, end: int, shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught, open_checkpoint(path):
        pass
    message = str(caught.value)
    assert str(path) in message and message.count("\n") <= 1
    return message


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_a_model_saved_by_the_safetensors_library(tmp_path: Path, dtype: Any) -> None:
    weights = random_weights(2, 32, 50, dtype=dtype)
    save_file(weights, tmp_path / "m", metadata={"by": "a test"})
    with open_checkpoint(tmp_path / "m") as checkpoint:
        assert checkpoint.format == "safetensors"
        assert checkpoint.metadata == {"by": "a test"}
        assert diagnose(checkpoint)[:4] == (2, 32, 128, 50)
        for name, expected in weights.items():
            found = checkpoint.read(name)
            assert found.dtype == expected.dtype and not found.flags.writeable
            np.testing.assert_array_equal(found, expected)


def test_bfloat16_as_torch_saves_it(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    save_torch({"x": torch.arange(12).bfloat16().reshape(3, 4)}, tmp_path / "m")
    with open_checkpoint(tmp_path / "m") as checkpoint:
        found = checkpoint.read("x")
        assert found.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(found.astype(np.float32), np.arange(12.0).reshape(3, 4))


def test_codes_of_a_quantized_file_are_read_as_they_are(tmp_path: Path) -> None:
    codes = np.arange(200, dtype=np.uint8).reshape(2, 100)
    save_file({"codes": codes, "signed": codes.astype(np.int8)}, tmp_path / "m")
    with open_checkpoint(tmp_path / "m") as checkpoint:
        np.testing.assert_array_equal(checkpoint.read("codes"), codes)
        np.testing.assert_array_equal(checkpoint.read("signed"), codes.astype(np.int8))


BROKEN: dict[str, tuple[object, bytes]] = {
    "no JSON": (b"{nonsense", b""),
    "no text": (b"{\xff\xfe}", b""),
    "nested without end": (b'{"a":' + b"[" * 100_000, b""),
    "an entry that is a number": ({"x": 1}, b""),
    "no shape": ({"x": {"dtype": "F32", "data_offsets": [0, 8]}}, bytes(8)),
    "three offsets": ({"x": entry(0, 8) | {"data_offsets": [0, 8, 8]}}, bytes(8)),
    "past the end": ({"x": entry(0, 8)}, bytes(4)),
    "more bytes than the shape": ({"x": entry(0, 8, [1])}, bytes(8)),
    "fewer bytes than the shape": ({"x": entry(0, 8, [3])}, bytes(8)),
    "ends before it begins": ({"x": entry(8, 0, [2])}, bytes(8)),
    "a negative size": ({"x": entry(0, 8, [-1, -2])}, bytes(8)),
    "a negative offset": ({"x": entry(-8, 0)}, bytes(8)),
    "a fraction": ({"x": entry(0, 8, [2.0])}, bytes(8)),
    "a truth for a size": ({"x": entry(0, 4, [True])}, bytes(4)),
    "a size beyond any disk": ({"x": entry(0, 8, [2**62, 2**62])}, bytes(8)),
    "nothing of a great size": ({"x": entry(0, 0, [0, 2**40, 2**40])}, b""),
    "a million axes": ({"x": entry(0, 8, [2**40] * 1_000_000)}, bytes(8)),
    "an overlap": ({"x": entry(0, 8), "y": entry(4, 12)}, bytes(12)),
    "a hole": ({"x": entry(0, 8), "y": entry(12, 20)}, bytes(20)),
    "more data than tensors": ({"x": entry(0, 8)}, bytes(12)),
    "metadata that is a list": ({"__metadata__": [], "x": entry(0, 8)}, bytes(8)),
    "metadata that is a number": ({"__metadata__": {"a": 1}, "x": entry(0, 8)}, bytes(8)),
    "a name with a line break": ({"a\nb": entry(0, 8)}, bytes(8)),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_header_that_breaks_the_rules_is_one_clear_error(tmp_path: Path, what: str) -> None:
    header, data = BROKEN[what]
    assert "damaged" in refusal(write(tmp_path / "m", header, data))


@pytest.mark.parametrize("length", [0, 1, 100, 2**23, 2**31])
def test_a_header_of_a_wrong_length_is_one_clear_error(tmp_path: Path, length: int) -> None:
    assert "damaged" in refusal(write(tmp_path / "m", {"x": entry(0, 8)}, bytes(8), length))


def test_a_type_that_is_not_known_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "m", {"x": entry(0, 8, dtype="F4")}, bytes(8))
    assert "'F4'" in refusal(path)


def test_a_file_cut_anywhere_is_an_error(tmp_path: Path) -> None:
    content = write(tmp_path / "m", {"x": entry(0, 8)}, bytes(8)).read_bytes()
    for length in range(len(content)):
        (tmp_path / "cut").write_bytes(content[:length])
        refusal(tmp_path / "cut")


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bytes_never_do_worse_than_an_error(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "flipped"
    content = bytearray(
        write(path, {"x": entry(0, 8), "y": entry(8, 12, [])}, bytes(12)).read_bytes()
    )
    for position, mask in flips:
        content[position % len(content)] ^= mask
    path.write_bytes(content)
    try:
        with open_checkpoint(path) as checkpoint:
            for name in checkpoint.tensors:
                checkpoint.read(name).copy()
    except CheckpointError as error:
        assert str(error).count("\n") <= 1
