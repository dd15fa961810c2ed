"""A user without a home folder, as in a container that runs under any number."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pwd", reason="no such users here")

# A user whom the system does not know, without being one.
PROGRAM = """
import pwd, sys
def unknown(user):
    raise KeyError(f"uid not found: {user}")
pwd.getpwuid = pwd.getpwnam = unknown
from rwkv_core.cli import main
sys.exit(main(["vram", "-m", sys.argv[1]]))
"""


@pytest.mark.parametrize(
    ("address", "variable"),
    [("http://127.0.0.1:9/model.pth", "RWKV_CACHE"), ("hf://a/b/model.pth", "HF_HOME")],
)
def test_the_error_names_the_variable_to_set(tmp_path: Path, address: str, variable: str) -> None:
    homes = ("HOME", "XDG_CACHE_HOME", "RWKV_CACHE", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT")
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, address],
        env={name: os.environ[name] for name in os.environ if name not in homes}
        | {"HF_HUB_OFFLINE": "1"},
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 2 and f"set {variable} to another folder" in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
