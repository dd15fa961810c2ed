"""Atomic writes, and the remains of killed processes."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rwkv_core.util.atomic_write import atomic_write, temporary_folder

WRITES_UNTIL_KILLED = """
import sys
from rwkv_core.util.atomic_write import atomic_write
with atomic_write("of-another") as file:
    file.write(bytes(1000))
    file.flush()
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(os.name != "posix", reason="has no locks that end with a process")
def test_what_a_killed_process_leaves_is_removed_and_nothing_that_is_being_written(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", WRITES_UNTIL_KILLED]
    with subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (left,) = tmp_path.iterdir()
        with atomic_write(tmp_path / "ours") as file:
            file.write(b"1")
        assert left.exists()
        process.kill()
    assert left.exists()
    (tmp_path / ".rwkv-core-empty.partial").mkdir()
    with atomic_write(tmp_path / "ours") as file:
        file.write(b"2")
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]
    assert (tmp_path / "ours").read_bytes() == b"2"


def test_a_name_may_be_as_long_as_names_can_be(tmp_path: Path) -> None:
    name = "n" * 255
    with atomic_write(tmp_path / name) as file:
        file.write(b"1")
    assert os.listdir(tmp_path) == [name]


# The lock's file, which is closed when nothing refers to it any more.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_interrupt_at_any_line_leaves_nothing(tmp_path: Path) -> None:
    source = temporary_folder.__wrapped__.__code__.co_filename

    def interrupted_after(n_lines: int) -> bool:
        """Return whether the process was killed before everything was made."""
        left = n_lines

        def trace(frame, event, _):
            nonlocal left
            if frame.f_code.co_filename == source and event == "line":
                left -= 1
                if left == 0:
                    sys.settrace(None)
                    raise KeyboardInterrupt
            return trace

        made = False
        with contextlib.suppress(KeyboardInterrupt):
            sys.settrace(trace)
            try:
                with temporary_folder(tmp_path):
                    sys.settrace(None)
                    made = True
            finally:
                sys.settrace(None)
        return not made

    n_lines = 1
    while interrupted_after(n_lines):
        assert not os.listdir(tmp_path), f"after {n_lines} lines"
        n_lines += 1
    assert n_lines > 10
