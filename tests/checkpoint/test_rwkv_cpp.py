"""rwkv.cpp's .bin is read with BlinkDL's names, shapes and values."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from random_model import random_weights
from rwkv_core.checkpoint import diagnose, open_checkpoint
from rwkv_core.errors import CheckpointError

MAGIC = 0x67676D66


def header(version: int = 101, data_type: int = 0) -> bytes:
    return struct.pack("<6i", MAGIC, version, 50, 32, 2, data_type)


def parameter(name: str, array: np.ndarray) -> bytes:
    shape = array.shape[::-1]
    encoded = name.encode()
    kind = {"float32": 0, "float16": 1}[array.dtype.name]
    fields = (len(shape), len(encoded), kind, *shape)
    return struct.pack(f"<{len(fields)}i", *fields) + encoded + array.tobytes()


def converted(weights: dict[str, np.ndarray], data_type: int, version: int = 101) -> bytes:
    """Write like rwkv.cpp's converter: matrices in the given type, vectors in float32."""
    parts = [header(version, data_type)]
    for name, array in weights.items():
        array = array.astype(np.float32)
        if ".time_" in name:
            array = array.squeeze()
        if ".time_decay" in name:
            array = -np.exp(array)
        if data_type == 1 and array.ndim > 1:
            array = array.astype(np.float16)
        parts.append(parameter(name, array))
    return b"".join(parts)


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught, open_checkpoint(path):
        pass
    message = str(caught.value)
    assert str(path) in message and message.count("\n") <= 1
    return message


@pytest.mark.parametrize("version", [100, 101])
@pytest.mark.parametrize("data_type", [0, 1])
def test_a_converted_model_is_the_model(tmp_path: Path, data_type: int, version: int) -> None:
    weights = random_weights(2, 32, 50)
    (tmp_path / "m.bin").write_bytes(converted(weights, data_type, version))
    with open_checkpoint(tmp_path / "m.bin") as checkpoint:
        assert checkpoint.format == "rwkv.cpp"
        assert diagnose(checkpoint)[:4] == (2, 32, 128, 50)
        for name, expected in weights.items():
            found = checkpoint.read(name)
            assert found.shape == expected.shape == checkpoint.tensors[name].shape
            assert found.dtype == checkpoint.tensors[name].dtype
            assert found.flags.aligned and not found.flags.writeable
            if name.endswith("time_decay"):
                np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
            else:
                np.testing.assert_array_equal(found, expected.astype(found.dtype))


def test_a_decay_that_underflowed_stays_finite_and_a_positive_one_does_not(tmp_path: Path) -> None:
    decay = np.array([-0.0, -1.0, 1.0], np.float32)
    content = header() + parameter("blocks.0.att.time_decay", decay)
    (tmp_path / "m.bin").write_bytes(content)
    with open_checkpoint(tmp_path / "m.bin") as checkpoint:
        underflowed, one, positive = checkpoint.read("blocks.0.att.time_decay")
    assert np.exp(-np.exp(underflowed)) == 1 and one == 0 and np.isnan(positive)


def test_a_quantized_file_is_named_as_such(tmp_path: Path) -> None:
    message = refusal(tmp_path / "m.bin", header(data_type=2))
    assert "Q4_0" in message and "FP16" in message
    assert "Q8_0" in refusal(tmp_path / "m.bin", header(data_type=9))


def test_an_unknown_version_or_type_is_refused(tmp_path: Path) -> None:
    assert "version 102" in refusal(tmp_path / "m.bin", header(version=102))
    assert "type 77" in refusal(tmp_path / "m.bin", header(data_type=77))


@pytest.mark.parametrize(
    "fields",
    [
        (0, 1, 0),
        (9, 1, 0),
        (-1, 1, 0),
        (1, 0, 0),
        (1, 2**31 - 1, 0),
        (1, 1, 55, 1),
        (1, 1, 0, -5),
        (1, 1, 0, 0),
        (2, 1, 0, 2**31 - 1, 2**31 - 1),
    ],
)
def test_a_damaged_description_is_one_clear_error(tmp_path: Path, fields: tuple[int, ...]) -> None:
    content = header() + struct.pack(f"<{len(fields)}i", *fields) + b"x" * 16
    assert "damaged" in refusal(tmp_path / "m.bin", content)


def test_a_tensor_twice_is_an_error(tmp_path: Path) -> None:
    twice = parameter("x", np.ones(3, np.float32)) * 2
    assert "twice" in refusal(tmp_path / "m.bin", header() + twice)


def test_a_cut_inside_a_tensor_is_an_error(tmp_path: Path) -> None:
    content = header() + parameter("x", np.ones((2, 3), np.float32))
    for length in range(4, len(content)):
        if length != len(header()):
            refusal(tmp_path / "m.bin", content[:length])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(4, 10**6), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bytes_never_do_worse_than_an_error(
    tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "flipped.bin"
    decay = parameter("blocks.0.att.time_decay", -np.ones(5, np.float32))
    content = bytearray(header() + parameter("x", np.ones((2, 3), np.float16)) + decay)
    for position, mask in flips:
        content[position % len(content)] ^= mask
    path.write_bytes(content)
    try:
        with open_checkpoint(path) as checkpoint:
            for name in checkpoint.tensors:
                checkpoint.read(name).copy()
    except CheckpointError as error:
        assert str(error).count("\n") <= 1
