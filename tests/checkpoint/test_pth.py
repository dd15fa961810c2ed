"""A .pth file gives the weights that torch.load gives, and runs nothing."""

from __future__ import annotations

import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pth_writer import (
    integer,
    state_dict_pickle,
    tensor,
    text,
    write_pth,
    write_torch_zip,
)
from random_model import random_weights
from rwkv_core.checkpoint import diagnose, open_checkpoint
from rwkv_core.errors import CheckpointError

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]
F32 = np.dtype(np.float32)
RAMP = np.arange(12, dtype=np.float32)


def read_all(path: Path) -> dict[str, np.ndarray]:
    with open_checkpoint(path) as checkpoint:
        return {name: checkpoint.read(name).copy() for name in checkpoint.tensors}


def refusal(path: Path) -> str:
    """Return the message of one or two lines with which the file is refused."""
    with pytest.raises(CheckpointError) as caught:
        read_all(path)
    message = str(caught.value)
    assert str(path) in message and message.count("\n") <= 1
    return message


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_come_back_as_they_were_written(tmp_path: Path, dtype: Any) -> None:
    weights = random_weights(2, 32, 50, dtype=dtype)
    write_pth(tmp_path / "m.pth", weights)
    with open_checkpoint(tmp_path / "m.pth") as checkpoint:
        assert checkpoint.format == "pth"
        assert list(checkpoint.tensors) == list(weights)
        assert diagnose(checkpoint)[:4] == (2, 32, 128, 50)
        for name, expected in weights.items():
            found = checkpoint.read(name)
            assert checkpoint.tensors[name] == (expected.shape, expected.dtype)
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_reads_what_the_fixture_writer_writes(tmp_path: Path, dtype: Any) -> None:
    torch = pytest.importorskip("torch")
    weights = random_weights(1, 8, 10, dtype=dtype)
    write_pth(tmp_path / "m.pth", weights)
    loaded = torch.load(tmp_path / "m.pth", weights_only=True)
    assert list(loaded) == list(weights)
    for name, expected in weights.items():
        np.testing.assert_array_equal(loaded[name].float().numpy(), expected.astype(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int64", "int8"])
def test_the_same_values_as_torch_load(tmp_path: Path, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    base = torch.arange(24).to(getattr(torch, dtype))
    state = {
        "plain": base.reshape(4, 6).clone(),
        "transposed": base.reshape(4, 6).clone().T,
        "shared whole": base,
        "shared part": base[5:17].reshape(3, 4),
        "every other": base[::2],
        "permuted": base.reshape(2, 3, 4).permute(2, 0, 1),
        "one number": torch.tensor(3).to(getattr(torch, dtype)),
        "nothing": torch.zeros(0, 5).to(getattr(torch, dtype)),
    }
    if base.is_floating_point():
        state["parameter"] = torch.nn.Parameter(base.reshape(3, 8).clone())
    torch.save(state, tmp_path / "m.pth")
    loaded = torch.load(tmp_path / "m.pth", weights_only=True)
    found = read_all(tmp_path / "m.pth")
    assert found.keys() == loaded.keys()
    for name, expected in loaded.items():
        assert found[name].shape == tuple(expected.shape)
        np.testing.assert_array_equal(
            found[name].astype(np.float64), expected.detach().double().numpy()
        )


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_of_torch_save_is_read(tmp_path: Path, protocol: int) -> None:
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    torch.save(module.state_dict(), tmp_path / "m.pth", pickle_protocol=protocol)
    found = read_all(tmp_path / "m.pth")
    for name, expected in module.state_dict().items():
        np.testing.assert_array_equal(found[name], expected.numpy())


@pytest.mark.parametrize("wrapper", ["model", "state_dict", "module"])
def test_a_state_dict_among_training_state_is_found(tmp_path: Path, wrapper: str) -> None:
    pickled = b"\x80\x02}(" + text("step") + integer(7) + text("lr") + b"G" + bytes(8)
    pickled += text(wrapper) + state_dict_pickle({"x": RAMP})[2:-1] + b"u."
    write_torch_zip(tmp_path / "m.pth", pickled, {"data/0": RAMP.tobytes()})
    np.testing.assert_array_equal(read_all(tmp_path / "m.pth")["x"], RAMP)


def test_an_aligned_tensor_is_a_read_only_view_of_the_file(tmp_path: Path) -> None:
    write_pth(tmp_path / "m.pth", {"x": RAMP.reshape(3, 4)})
    with open_checkpoint(tmp_path / "m.pth") as checkpoint:
        array = checkpoint.read("x")
        assert not array.flags.owndata and not array.flags.writeable and array.flags.aligned


def test_an_unaligned_tensor_is_read_as_an_aligned_one(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pth", "w") as archive:
        name = "odd"
        while (30 + len(f"{name}/data/0")) % 4 == 0:
            name += "d"
        archive.writestr(f"{name}/data/0", RAMP.tobytes())
        archive.writestr(f"{name}/data.pkl", state_dict_pickle({"x": RAMP}))
    with open_checkpoint(tmp_path / "m.pth") as checkpoint:
        array = checkpoint.read("x")
        assert array.flags.aligned and not array.flags.writeable
        np.testing.assert_array_equal(array, RAMP)


def test_an_array_outlives_its_checkpoint(tmp_path: Path) -> None:
    write_pth(tmp_path / "m.pth", {"x": RAMP})
    with open_checkpoint(tmp_path / "m.pth") as checkpoint:
        array = checkpoint.read("x")
    np.testing.assert_array_equal(array, RAMP)
    with pytest.raises(CheckpointError, match="closed"):
        checkpoint.read("x")


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    write_pth(tmp_path / "m.pth", {"x": RAMP})
    with (
        open_checkpoint(tmp_path / "m.pth") as checkpoint,
        pytest.raises(CheckpointError, match="y"),
    ):
        checkpoint.read("y")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_reading_one_tensor_lets_the_one_before_go(tmp_path: Path) -> None:
    size = 8 * 2**20
    write_pth(tmp_path / "m.pth", {f"t{i}": np.ones(size // 4, np.float32) for i in range(6)})

    def shared_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[2]) * os.sysconf("SC_PAGE_SIZE")

    with open_checkpoint(tmp_path / "m.pth") as checkpoint:
        before = shared_bytes()
        arrays = []
        for name in checkpoint.tensors:
            arrays.append(checkpoint.read(name))
            arrays[-1].sum()
            assert shared_bytes() - before < 2 * size
        assert all(array.sum() == size // 4 for array in arrays)


# What a hostile pickle may try. Each would create the file {proof} if its code ran.
COMMAND = b"(" + text("touch {proof}") + b"t"
ATTACKS = {
    "posix.system": b"cposix\nsystem\n" + COMMAND + b"R.",
    "os.system": b"cos\nsystem\n" + COMMAND + b"R.",
    "builtins.eval": b"cbuiltins\neval\n(" + text("open('{proof}', 'w')") + b"tR.",
    "builtins.getattr": text("builtins") + text("getattr") + b"\x93(tR.",
    "subprocess.Popen": text("subprocess") + text("Popen") + b"\x93" + COMMAND + b"R.",
    "INST": b"(" + text("touch {proof}") + b"iposix\nsystem\n.",
    "NEWOBJ": b"ccollections\nOrderedDict\n)\x81.",
    "NEWOBJ_EX": b"ccollections\nOrderedDict\n)}\x92.",
    "OBJ": b"(ccollections\nOrderedDict\no.",
    "EXT1": b"\x82\x01.",
    "PERSID": b"Pposix.system\n.",
    "torch.load": b"ctorch\nload\n(" + text("{proof}") + b"tR.",
    "torch.hub.load": text("torch.hub") + text("load") + b"\x93(tR.",
    "collections.OrderedDict.__init__": b"ccollections\nOrderedDict.__init__\n)R.",
    "a call of torch.FloatStorage": b"ctorch\nFloatStorage\n)R.",
    "attributes set": b"ctorch\nFloatStorage\n}" + text("__class__") + b"Nsb.",
    "numpy.core.multiarray._reconstruct": b"cnumpy.core.multiarray\n_reconstruct\n)R.",
}


@pytest.mark.parametrize("what", ATTACKS)
def test_a_pickle_that_wants_code_is_refused_and_not_run(tmp_path: Path, what: str) -> None:
    proof = tmp_path / "proof"
    path = tmp_path / "m.pth"
    write_torch_zip(path, b"\x80\x04" + fill(ATTACKS[what], str(proof)), {})
    modules = set(sys.modules)
    message = refusal(path)
    assert what in message and "nothing was run" in message
    assert not proof.exists()
    # zipfile imports the encoding of names with the first archive of a process.
    assert set(sys.modules) - modules <= {"encodings.cp437"}


def fill(attack: bytes, proof: str) -> bytes:
    """Insert the path, and correct the length of the text that it is part of."""
    at = attack.find(b"{proof}")
    if at < 0:
        return attack
    start = attack.rfind(b"X", 0, at)
    length = int.from_bytes(attack[start + 1 : start + 5], "little")
    old = attack[start : start + 5 + length]
    return attack.replace(old, text(old[5:].decode().replace("{proof}", proof)))


class Exploit:
    """Return the pickle of an object whose rebuilding runs a command."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize("protocol", range(1, 6))
def test_a_pickled_command_is_refused_in_every_protocol(tmp_path: Path, protocol: int) -> None:
    proof = tmp_path / "proof"
    pickled = pickle.dumps({"x": Exploit(proof)}, protocol)
    write_torch_zip(tmp_path / "m.pth", pickled, {})
    assert f"{os.system.__module__}.system" in refusal(tmp_path / "m.pth")
    assert not proof.exists()
    pickle.loads(pickled)  # Without the refusal, the pickle would have run the command.
    assert proof.exists()


MALFORMED = {
    "a memo index of 2 GB": b"\x80\x02}r\xff\xff\xff\x7f",
    "no end": b"\x80\x02}",
    "nothing": b"",
    "an empty stack": b"\x80\x02.",
    "two results": b"\x80\x02}}.",
    "no mark": b"\x80\x02}u.",
    "items on a number": b"\x80\x02K\x01" + text("a") + b"Ns.",
    "an unknown memo entry": b"\x80\x02h\x05.",
    "a number out of range": b"\x80\x02\x8b" + (1000).to_bytes(4, "little") + b"\x7f" * 1000 + b".",
    "a text that claims 4 GB": b"\x80\x02X\xff\xff\xff\xff.",
    "bytes that claim 2**63": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
    "a list within itself": b"\x80\x02]q\x00h\x00a.",
    "a wrapper within itself": b"\x80\x02}q\x00" + text("model") + b"h\x00s.",
    "a key that takes 2**64 steps to hash": b"\x80\x02})q\x00"
    + b"h\x00h\x00\x86q\x00" * 64
    + b"Ns.",
    "a negative size": b"\x80\x02}" + text("x") + tensor("0", F32, (-3, -4)) + b"s.",
    "axes without strides": b"\x80\x02}" + text("x") + tensor("0", F32, (3, 4), (4,)) + b"s.",
    "past the storage's end": b"\x80\x02}" + text("x") + tensor("0", F32, (3, 4), (5, 1)) + b"s.",
    "an offset past the end": b"\x80\x02}" + text("x") + tensor("0", F32, (12,), offset=1) + b"s.",
    "a storage longer than its data": b"\x80\x02}" + text("x") + tensor("0", F32, (13,)) + b"s.",
    "a storage that is not there": b"\x80\x02}" + text("x") + tensor("1", F32, (12,)) + b"s.",
    "one value repeated to a terabyte": b"\x80\x02}"
    + text("x")
    + tensor("0", F32, (2**19, 2**19), (0, 0), n_elements=12)
    + b"s.",
    "a hundred axes": b"\x80\x02}" + text("x") + tensor("0", F32, (1,) * 100) + b"s.",
    "a name that is not text": b"\x80\x02}" + text("a\nb") + tensor("0", F32, (12,)) + b"s.",
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_pickle_is_one_clear_error(tmp_path: Path, what: str) -> None:
    write_torch_zip(tmp_path / "m.pth", MALFORMED[what], {"data/0": RAMP.tobytes()})
    message = refusal(tmp_path / "m.pth")
    assert "damaged" in message or "no state dict" in message


def test_a_pickle_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    write_torch_zip(tmp_path / "m.pth", b"\x80\x02" + b"]" * 5_000_000, {})
    assert "5000002 bytes" in refusal(tmp_path / "m.pth")


def pth_of_copies(path: Path, count: int) -> Path:
    """Write a file with `count` tensors that share the same bytes."""
    ramp = np.arange(10_000, dtype=np.float32)
    same = [text(f"blocks.{i}.x") + tensor("0", F32, (100, 100)) for i in range(count)]
    pickled = b"\x80\x02}(" + b"".join(same) + b"u."
    write_torch_zip(path, pickled, {"data/0": ramp.tobytes()})
    return path


def test_many_tensors_of_the_same_bytes_are_refused(tmp_path: Path) -> None:
    message = refusal(pth_of_copies(tmp_path / "bomb.pth", 500))
    assert "share storage" in message and "20000000 bytes" in message


def test_two_tensors_may_be_the_same_bytes(tmp_path: Path) -> None:
    assert len(read_all(pth_of_copies(tmp_path / "tied.pth", 2))) == 2


def test_a_compressed_member_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", state_dict_pickle({"x": RAMP}))
        archive.writestr("archive/data/0", RAMP.tobytes())
    assert "compressed" in refusal(tmp_path / "m.pth")


def test_a_big_endian_file_is_refused(tmp_path: Path) -> None:
    members = {"byteorder": b"big", "data/0": RAMP.tobytes()}
    write_torch_zip(tmp_path / "m.pth", state_dict_pickle({"x": RAMP}), members)
    assert "'big'" in refusal(tmp_path / "m.pth")


def test_any_other_zip_file_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pth", "w") as archive:
        archive.writestr("letter.txt", "Dear Sir")
    assert "data.pkl" in refusal(tmp_path / "m.pth")


def test_torch_s_old_format_is_to_be_saved_again(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"x": torch.ones(3)}, tmp_path / "m.pth", _use_new_zipfile_serialization=False)
    assert "re-save" in refusal(tmp_path / "m.pth")


def test_a_file_converted_by_chatrwkv_is_refused(tmp_path: Path) -> None:
    pickled = state_dict_pickle({"x": RAMP})[:-2] + text("_strategy") + text("cpu fp32") + b"u."
    write_torch_zip(tmp_path / "m.pth", pickled, {"data/0": RAMP.tobytes()})
    assert "ChatRWKV" in refusal(tmp_path / "m.pth")


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "m.pth"
    write_pth(path, {"x": RAMP.reshape(3, 4), "y": RAMP.astype(ml_dtypes.bfloat16)})
    return path


def survives(path: Path) -> None:
    """Reading gives tensors or a CheckpointError, and nothing else."""
    try:
        read_all(path)
    except CheckpointError as error:
        assert str(error).count("\n") <= 1


def test_a_file_cut_anywhere_is_an_error(small_file: Path, tmp_path: Path) -> None:
    content = small_file.read_bytes()
    for length in {*range(0, len(content), 7), *range(len(content) - 90, len(content))}:
        (tmp_path / "cut.pth").write_bytes(content[:length])
        refusal(tmp_path / "cut.pth")


@settings(max_examples=150, deadline=None)
@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4)
)
def test_flipped_bytes_never_do_worse_than_an_error(
    small_file: Path, flips: list[tuple[int, int]]
) -> None:
    content = bytearray(small_file.read_bytes())
    for position, mask in flips:
        content[position % len(content)] ^= mask
    damaged = small_file.with_suffix(".flipped")
    damaged.write_bytes(content)
    survives(damaged)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_pickle_with_a_right_checksum_is_no_worse(
    small_file: Path, data: st.DataObject
) -> None:
    pickled = bytearray(state_dict_pickle({"x": RAMP.reshape(3, 4), "y": RAMP}))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(pickled) - 1))
        pickled[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    path = small_file.with_suffix(".pickle")
    members = {"data/0": RAMP.tobytes(), "data/1": RAMP.tobytes()}
    write_torch_zip(path, bytes(pickled), members)
    survives(path)


@settings(max_examples=150, deadline=None)
@given(pickled=st.binary(max_size=200))
def test_any_bytes_as_a_pickle_are_no_worse(small_file: Path, pickled: bytes) -> None:
    path = small_file.with_suffix(".bytes")
    write_torch_zip(path, pickled, {"data/0": RAMP.tobytes()})
    survives(path)
