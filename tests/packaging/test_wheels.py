"""The wheels have every file; in a clean environment they do what a new user does first.

DIST is the folder of the wheels, CLEAN_ENV that of the environment.
"""

import json
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = sorted(path.parent.name for path in ROOT.glob("rwkv_*/pyproject.toml"))


def run(*command: str, cwd: Path) -> str:
    if "CLEAN_ENV" not in os.environ:
        pytest.skip("run by nox -s packaging")
    program, *arguments = command
    path = Path(os.environ["CLEAN_ENV"], "bin", program)
    return subprocess.run(
        [path, *arguments], cwd=cwd, check=True, capture_output=True, text=True, timeout=120
    ).stdout


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_wheel_built_from_the_sdist_has_every_file(name: str) -> None:
    if "DIST" not in os.environ:
        pytest.skip("run by nox -s packaging")
    (wheel,) = Path(os.environ["DIST"]).glob(f"{name}-*.whl")
    source = ROOT / name / "src"
    found = source.rglob("*")
    files = [path for path in found if path.is_file() and path.parent.name != "__pycache__"]
    with zipfile.ZipFile(wheel) as opened:
        packed = {one for one in opened.namelist() if ".dist-info/" not in one}
    assert packed == {path.relative_to(source).as_posix() for path in files}
    assert f"{name}/py.typed" in packed


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
        "names = [f'rwkv-{v}-prose-7m.pth' for v in (4, 7)]; "
        "assert all((root / 'data' / name).exists() for name in names)", cwd=tmp_path)  # fmt: skip
