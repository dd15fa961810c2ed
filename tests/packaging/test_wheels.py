"""The wheels in a clean environment (its folder is in CLEAN_ENV) do what a new user does first."""

import json
import os
import subprocess
from pathlib import Path

import pytest


def run(*command: str, cwd: Path) -> str:
    if "CLEAN_ENV" not in os.environ:
        pytest.skip("run by nox -s packaging")
    program, *arguments = command
    path = Path(os.environ["CLEAN_ENV"], "bin", program)
    return subprocess.run(
        [path, *arguments], cwd=cwd, check=True, capture_output=True, text=True, timeout=120
    ).stdout


def test_the_main_job_runs(tmp_path: Path) -> None:
    text = run("rwkv-core", "generate", "It was", "-n", "40", "--seed", "1", cwd=tmp_path)
    assert len(text.split()) > 10


def test_backends_are_found(tmp_path: Path) -> None:
    rows = json.loads(run("rwkv-core", "list-backends", "--json", cwd=tmp_path))
    found = {row["name"]: row["status"] for row in rows}
    assert found == {"numpy": "ready", "numba": "unavailable"}


def test_the_golden_logits_agree(tmp_path: Path) -> None:
    run("rwkv-core", "verify", cwd=tmp_path)


def test_only_what_was_asked_for_is_installed(tmp_path: Path) -> None:
    listing = json.loads(run("python", "-m", "pip", "list", "--format", "json", cwd=tmp_path))
    names = {row["name"].lower() for row in listing}
    assert {"rwkv-core", "rwkv-backend-numpy"} <= names
    assert not names & {"torch", "jax", "tensorflow", "numba", "pytest"}


def test_training_stays_out_of_the_wheel(tmp_path: Path) -> None:
    run("python", "-c", "import rwkv_core, pathlib; "
        "root = pathlib.Path(rwkv_core.__file__).parent; "
        "assert not list(root.rglob('train*')); assert (root / 'py.typed').exists(); "
        "assert (root / 'data' / 'rwkv-4-prose-7m.pth').exists()", cwd=tmp_path)  # fmt: skip
