"""What happens on a terminal: Ctrl-C, the chat's prompt, the choice of a model."""

import os
import select
import shutil
import subprocess
import sys
import time

import pytest

from rwkv_core.cli import main
from rwkv_core.tokenizer import load_tokenizer

pytestmark = pytest.mark.needs_backend

pytest.importorskip("pty", reason="no pseudo-terminals here")

CTRL_C, CTRL_D = "\x03", "\x04"
# The terminal becomes the child's own, so that its Ctrl-C reaches it, also where these tests run in
# the background and Ctrl-C is ignored.
PROGRAM = """
import fcntl, signal, sys, termios
signal.signal(signal.SIGINT, signal.default_int_handler)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from rwkv_core.cli import main
sys.exit(main())
"""
SECONDS = 60


class Terminal:
    """The program on a pseudo-terminal of its own."""

    def __init__(self, *arguments, cwd=None):
        import pty

        self._side, child = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments],
            stdin=child, stdout=child, stderr=child, start_new_session=True, cwd=cwd,
            env={**os.environ, "TERM": "dumb"},
        )  # fmt: skip
        os.close(child)
        self.shown = ""

    def wait_for(self, text, n=1):
        """Read until `text` has been shown `n` times."""
        end = time.monotonic() + SECONDS
        while self.shown.count(text) < n:
            assert time.monotonic() < end and self._read(), f"no {text!r} in {self.shown!r}"

    def type(self, text):
        os.write(self._side, text.encode())

    def end_by(self, key):
        """Type `key`, until the program ends; gives the exit status.

        Python's readline can miss a signal that comes just as it begins to wait for a key.
        """
        for _ in range(4):
            self.type(key)
            while select.select([self._side], [], [], SECONDS / 4)[0]:
                if not self._read():
                    return self.end()
        raise AssertionError(f"{key!r} does not end it: {self.shown[-200:]!r}")

    def end(self):
        """Read what is left; gives the exit status."""
        end = time.monotonic() + SECONDS
        while self._read():
            assert time.monotonic() < end, f"it does not end: {self.shown[-200:]!r}"
        os.close(self._side)
        return self._process.wait(SECONDS)

    def kill(self):
        self._process.kill()
        self._process.wait()

    def _read(self):
        assert select.select([self._side], [], [], SECONDS)[0], f"silent after {self.shown!r}"
        try:
            data = os.read(self._side, 65536)
        # Linux says so where the program has gone.
        except OSError:
            return False
        self.shown += data.decode("utf-8", "replace")
        return bool(data)


@pytest.fixture
def start():
    """Starts the program on a terminal; none outlives its test."""
    terminals = []

    def start(*arguments, cwd=None):
        terminals.append(Terminal(*arguments, cwd=cwd))
        return terminals[-1]

    yield start
    for terminal in terminals:
        terminal.kill()


@pytest.fixture
def folder(small_model, tmp_path):
    """A folder with two model files, the tokenizer, and what only looks like a model file."""
    for name in ("b.pth", "a.bin"):
        shutil.copy(small_model, tmp_path / name)
    shutil.copy(small_model.parent / "tokenizer.json", tmp_path)
    (tmp_path / "notes.bin").write_text("nothing that a model file begins with")
    return tmp_path


def test_ctrl_c_ends_generate_with_what_there_is(start, small_model, tmp_path):
    state = tmp_path / "a.state"
    z = load_tokenizer(small_model.parent / "tokenizer.json").encode("z")[0]
    arguments = ["-n", "1000000", "--save-state", str(state), "--logit-bias", f"{z}=1e4"]
    terminal = start("generate", "a", "-m", str(small_model), *arguments)
    terminal.wait_for("zzz")
    terminal.type(CTRL_C)
    assert terminal.end() == 130
    assert "interrupted after " in terminal.shown and "Traceback" not in terminal.shown
    assert state.exists()


def test_ctrl_c_in_a_chat_ends_the_answer_and_then_the_program(start, small_model):
    terminal = start("chat", "-m", str(small_model), "-n", "1000000")
    terminal.wait_for("User: ")
    terminal.type("hello\n")
    terminal.wait_for("Bot:")
    terminal.type(CTRL_C)
    terminal.wait_for("(interrupted)")
    terminal.type("/undo\n/undo\n")
    terminal.wait_for("no turn to go back to")
    terminal.wait_for("User: ", n=4)
    assert terminal.end_by(CTRL_C) == 0
    assert "Traceback" not in terminal.shown


def test_ctrl_d_ends_a_chat(start, small_model):
    terminal = start("chat", "-m", str(small_model))
    terminal.wait_for("User: ")
    terminal.type(CTRL_D)
    assert terminal.end() == 0


def test_the_models_of_the_folder_are_offered(start, folder):
    terminal = start("generate", "a", "-n", "3", cwd=folder)
    terminal.wait_for("which model?")
    offered = [line.strip().partition("  (")[0] for line in terminal.shown.splitlines()[:3]]
    assert offered == ["1  a.bin", "2  b.pth", "3  prose"]
    terminal.type("9\n")
    terminal.wait_for("which model?", 2)
    terminal.type("2\n")
    assert terminal.end() == 0
    assert "model: b.pth  backend: " in terminal.shown


def test_choosing_no_model_names_the_option(start, folder):
    terminal = start("generate", "a", cwd=folder)
    terminal.wait_for("which model?")
    terminal.type(CTRL_D)
    assert terminal.end() == 2
    assert "no model chosen; name one with -m" in terminal.shown


def test_without_a_terminal_the_error_names_the_option_and_the_files(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert main(["generate", "a"]) == 2
    error = capsys.readouterr().err
    assert "Name it with -m; in this folder: a.bin, b.pth\n" in error and "-m prose" in error


def test_a_folder_without_models_means_the_shipped_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "The", "-n", "2"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("model: prose (ships with rwkv-core; -m names another)  backend: ")
