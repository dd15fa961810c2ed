"""The bytes read from a .pth are compared with the checksums and names in its zip."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

import rwkv_core
from pth_writer import write_pth
from random_model import random_weights
from rwkv_core import Lora
from rwkv_core.checkpoint import open_checkpoint
from rwkv_core.errors import CheckpointError
from rwkv_core.model_file import prequantize

RAMP = np.arange(12, dtype=np.float32)


def damage(path: Path, data: bytes) -> None:
    """Change one byte of a file, in the middle of the only place where it holds `data`."""
    content = bytearray(path.read_bytes())
    assert content.count(data) == 1
    content[content.index(data) + len(data) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["blocks.0.att.key.weight", "ln_out.bias", "emb.weight"])
@pytest.mark.needs_backend
def test_a_changed_number_fails_the_checksum(tmp_path: Path, name: str) -> None:
    weights = random_weights(1, 8, 20)
    write_pth(tmp_path / "m.pth", weights)
    damage(tmp_path / "m.pth", weights[name].tobytes())
    with pytest.raises(CheckpointError, match=f"the bytes of {name} fail the file's checksum"):
        rwkv_core.load(tmp_path / "m.pth")


def test_prequantize_and_lora_check_what_they_read(tmp_path: Path) -> None:
    weights = random_weights(1, 64, 20)
    write_pth(tmp_path / "m.pth", weights)
    factors = {"A": np.full((2, 64), 0.5, np.float32), "B": np.full((64, 2), 0.25, np.float32)}
    write_pth(tmp_path / "lora.pth", {f"blocks.0.att.key.lora_{k}": a for k, a in factors.items()})
    damage(tmp_path / "lora.pth", factors["B"].tobytes())
    with pytest.raises(CheckpointError, match="lora_B fail the file's checksum"):
        prequantize(tmp_path / "m.pth", lora=Lora(tmp_path / "lora.pth", 2))
    damage(tmp_path / "m.pth", weights["head.weight"].tobytes())
    with pytest.raises(CheckpointError, match=r"head\.weight fail the file's checksum"):
        prequantize(tmp_path / "m.pth")


def test_a_part_of_a_storage_is_checked_as_the_whole(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    ramp = torch.arange(100.0)
    torch.save({"a": ramp[:50], "b": ramp[50:]}, tmp_path / "m.pth")
    damage(tmp_path / "m.pth", ramp[90:].numpy().tobytes())
    with open_checkpoint(tmp_path / "m.pth") as checkpoint:
        for name in checkpoint.tensors:
            checkpoint.read(name)
            with pytest.raises(CheckpointError, match=f"{name} fail"):
                checkpoint.verify(name)


def test_a_file_saved_without_checksums_is_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if not hasattr(torch.serialization, "set_crc32_options"):
        pytest.skip("this torch always writes checksums")
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"x": torch.ones(3)}, tmp_path / "m.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    with open_checkpoint(tmp_path / "m.pth") as checkpoint:
        checkpoint.verify("x")


def test_a_directory_that_points_at_another_member_is_refused(tmp_path: Path) -> None:
    write_pth(tmp_path / "m.pth", {"x": RAMP, "y": -RAMP})
    content = bytearray((tmp_path / "m.pth").read_bytes())
    with zipfile.ZipFile(tmp_path / "m.pth") as archive:
        offsets = {member.filename: member.header_offset for member in archive.infolist()}
    # An entry of the directory: 46 bytes, of which 42 to 45 are the offset, then the name.
    entry = content.rindex(b"archive/data/0") - 46
    content[entry + 42 : entry + 46] = offsets["archive/data/1"].to_bytes(4, "little")
    (tmp_path / "m.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match="'archive/data/0' is not where the zip directory"):
        open_checkpoint(tmp_path / "m.pth")


def test_a_checksum_of_zero_beside_others_is_one(tmp_path: Path) -> None:
    write_pth(tmp_path / "m.pth", random_weights(1, 8, 20) | {"ramp": RAMP})
    with zipfile.ZipFile(tmp_path / "m.pth") as archive:
        data = RAMP.tobytes()
        (member,) = (m for m in archive.infolist() if archive.read(m) == data)
    content = (tmp_path / "m.pth").read_bytes()
    crc = member.CRC.to_bytes(4, "little")
    (tmp_path / "m.pth").write_bytes(content.replace(crc, bytes(4)))
    with open_checkpoint(tmp_path / "m.pth") as checkpoint:
        checkpoint.read("ramp")
        with pytest.raises(CheckpointError, match="the bytes of ramp fail the file's checksum"):
            checkpoint.verify("ramp")


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    write_pth(tmp_path / "m.pth", random_weights(1, 8, 20))
    with zipfile.ZipFile(tmp_path / "m.pth", "a") as archive:
        name = archive.namelist()[-1]
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(name, b"other")
    with pytest.raises(CheckpointError, match="two of its zip members have one name"):
        open_checkpoint(tmp_path / "m.pth")
