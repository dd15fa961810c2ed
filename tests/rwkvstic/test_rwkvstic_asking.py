"""rwkv_core.rwkvstic's command line, and its questions on a terminal."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rwkv_core.errors import BackendError, OptionError
from rwkv_core.model_file import prequantize
from rwkv_core.rwkvstic import RWKV
from rwkv_core.rwkvstic.agnostic.backends import Backends

COMMAND = [sys.executable, "-m", "rwkv_core.rwkvstic"]
ASKING = "from rwkv_core.rwkvstic import RWKV; print('loaded', RWKV().model.path)"


@pytest.fixture
def folder(tmp_path: Path, small_model: Path) -> Path:
    """A folder with two models, a tokenizer, and a file that is no model."""
    for name in ("a.pth", "b.pth"):
        shutil.copy(small_model, tmp_path / name)
    shutil.copy(small_model.with_name("tokenizer.json"), tmp_path)
    (tmp_path / "c.pth").write_text("no model")
    return tmp_path


def on_terminal(command: list[str], folder: Path, typed: str) -> tuple[str, int]:
    """Run a command on a pseudo-terminal. Return its output and its exit status."""
    pty = pytest.importorskip("pty", reason="no pseudo-terminals here")
    side, child = pty.openpty()
    process = subprocess.Popen(command, stdin=child, stdout=child, stderr=child, cwd=folder)
    os.close(child)
    os.write(side, typed.encode())
    shown = b""
    try:
        while piece := os.read(side, 4096):
            shown += piece
    except OSError:  # The other side is closed.
        pass
    os.close(side)
    return shown.decode(), process.wait(60)


@pytest.mark.needs_backend
@pytest.mark.parametrize(("typed", "chosen"), [("7\nx\n2\n", "b.pth"), ("\n", "a.pth")])
def test_a_model_without_a_path_is_asked_for(folder, typed, chosen):
    shown, status = on_terminal([sys.executable, "-c", ASKING], folder, typed)
    assert re.search(r"1  a\.pth\s+2  b\.pth\s+What model do you want to use\? 1 to 2", shown)
    assert f"loaded {chosen}" in shown and status == 0


def test_prequantizing_asks_which_model(folder):
    (folder / "z.pqth").write_bytes((folder / "a.pth").read_bytes())
    shown, status = on_terminal([*COMMAND, "--pq", "--group-size", "32"], folder, "b.pth\n")
    assert "What model do you want to quantize?" in shown and "z.pqth" not in shown
    assert status == 0 and (folder / "b.pqth").is_file()


def test_nothing_is_chosen(folder):
    shown, status = on_terminal([*COMMAND, "--pq"], folder, "\x04")
    assert "error: --pq: expected a model file after it (in this folder: a.pth, b.pth)" in shown
    assert status == 2


def test_nothing_is_asked_where_no_terminal_is(folder, monkeypatch):
    done = subprocess.run(
        [*COMMAND, "--pq"], cwd=folder, input="1\n", text=True, capture_output=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "--pq: expected a model file after it (in this folder: a.pth, b.pth)" in done.stderr
    monkeypatch.chdir(folder)
    with pytest.raises(OptionError, match=r"path: not given.*in this folder: a\.pth, b\.pth"):
        RWKV()


def test_a_folder_of_quantized_models_alone_is_said_to_be_that(tmp_path, small_model):
    prequantize(small_model, tmp_path / "a.pqth", group_size=32)
    done = subprocess.run([*COMMAND, "--pq"], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 2
    assert "expected a model file after it (in this folder: only a.pqth, quantized" in done.stderr


def test_vram_is_a_command():
    done = subprocess.run([*COMMAND, "vram"], text=True, capture_output=True)
    assert done.returncode == 0 and "14B" in done.stdout
    for wrong in ([], ["--server"]):
        done = subprocess.run([*COMMAND, *wrong], text=True, capture_output=True)
        assert done.returncode == 2 and "usage: " in done.stderr


def test_operations_of_ones_own_are_told_what_they_are_here(monkeypatch):
    class MyOps:
        pass

    monkeypatch.setitem(Backends, "mine", MyOps)
    for mode in (MyOps, "mine"):
        with pytest.raises(BackendError, match=r"(?s)MyOps.*Writing a backend"):
            RWKV("prose", mode=mode)


@pytest.mark.needs_backend
def test_what_rwkvstic_downloaded_is_not_fetched_again(folder, monkeypatch):
    monkeypatch.chdir(folder)
    model = RWKV("https://unreachable.invalid/models/a.pth?download=true")
    assert model.model.path == Path("a.pth")
