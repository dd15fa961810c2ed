"""Foreign text on a terminal: no control characters, no extra lines, no long output."""

import io
import shutil
import sys
import zipfile
from pathlib import Path

import pytest

from rwkv_core import RWKVError, bundled
from rwkv_core.cli import main
from rwkv_core.cli.printing import print_text
from rwkv_core.util.printable import one_line, printable, without_control

STEERING = "\x1b]0;owned\x07\x1b[2J\r\x9b31m\x7f\u202e"


def test_foreign_text_is_one_short_line_with_its_start_and_end() -> None:
    line = printable(f"start {STEERING}\n\n" + 10_000_000 * "x" + " the end")
    assert line.startswith("start ") and line.endswith("x the end")
    assert line.isprintable() and len(line) <= 300


def test_no_error_steers_a_terminal_or_fills_it() -> None:
    message = str(RWKVError(f"/a  b/{STEERING}: what is wrong\n" + "a line of the file\n" * 1000))
    assert message.startswith("/a  b/") and len(message) <= 2000
    lines = message.split("\n")
    assert len(lines) <= 3 and all(map(str.isprintable, lines))
    assert one_line(ValueError(STEERING)).isprintable()


def test_text_that_a_model_writes_keeps_its_lines_and_tabs() -> None:
    assert without_control("a\tb\r\nc \N{GRINNING FACE}") == "a\tb\nc \N{GRINNING FACE}"
    assert "\x1b" not in without_control(STEERING) and "\x9b" not in without_control(STEERING)


@pytest.mark.parametrize("terminal", [True, False])
def test_only_a_terminal_is_kept_from_control_characters(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stdout", out)
    print_text("\x1b[2J")
    assert out.getvalue() == ("\ufffd[2J" if terminal else "\x1b[2J")


def test_a_file_and_its_names_do_not_steer_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "\x1b[2J\nrwkv-core: all is well"
    data = b"\x80\x04\x8c\x03os." + b"\x8c" + bytes([len(name)]) + name.encode() + b"\x93."
    path = tmp_path / "a\x1b[31m\nb.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/version", "3\n")
    assert main(["vram", "-m", str(path)]) == 2
    shutil.copy(bundled.MODELS["prose"], path)
    assert main(["vram", "-m", str(path)]) == 0
    assert main(["prequantize", str(path), "--output", str(path) + "2"]) == 0
    found = capsys.readouterr()
    assert "all is well" in found.err and "\x1b" not in found.out + found.err
    assert not any(line.startswith("rwkv-core: all") for line in found.err.splitlines())
    assert len(found.out.splitlines()) == 3
