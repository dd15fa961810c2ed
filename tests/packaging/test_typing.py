"""A strict type check of a user's program against the installed wheels finds its mistake."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """\
import rwkv_core
from rwkv_backend_numpy.numpy_ops import NumpyOps
from rwkv_core import RWKV, Backend, Generated, Model, State, Status, TensorOps


def endings(path: str, text: str) -> list[str]:
    rwkv = RWKV(path, backend="numpy", dtype="float64")
    rwkv.load_context(text)
    before: State = rwkv.get_state()
    out: Generated = rwkv.generate(20, temperature=0.8, stop_strings=["."], seed=1)
    rwkv.set_state(before)
    return [out.text, "".join(piece.upper() for piece in rwkv.stream(20))]


def width(path: str) -> int:
    model: Model = rwkv_core.load(path)
    _, state = model.forward([1, 2, 3])
    model.forward([[4], [5]], model.stack_states([state, state]), all_logits=True)
    return model.n_embd


def ready() -> list[str]:
    return [row.name for row in rwkv_core.list_backends() if row.status == "ready"]


class Ops(NumpyOps):
    device = "mine"


@rwkv_core.hookimpl
def rwkv_backends() -> list[Backend]:
    return [Backend("mine", "NumPy", 2, status=lambda: Status(True))]


def ops() -> TensorOps:
    return Ops(dtype="float32")


try:
    print(endings("prose", "It was"), width("prose"), ready(), ops().device)
except rwkv_core.RWKVError as error:
    print(error)
"""
MISTAKE = 'RWKV("prose").generate("20")\n'


def check(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run mypy on a user's program, in a folder without this project's settings."""
    if "CLEAN_ENV" not in os.environ:
        pytest.skip("run by nox -s packaging")
    (folder / "program.py").write_text(program)
    installed = Path(os.environ["CLEAN_ENV"], "bin", "python")
    command = (sys.executable, "-m", "mypy", "--strict", "--python-executable", installed)
    return subprocess.run(
        [*command, "program.py"], cwd=folder, capture_output=True, text=True, timeout=300
    )


def test_a_program_without_mistakes_passes_and_runs(tmp_path: Path) -> None:
    found = check(PROGRAM, tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr
    python = Path(os.environ["CLEAN_ENV"], "bin", "python")
    done = subprocess.run([python, "program.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "256 ['numpy'] mine" in done.stdout, done.stderr


def test_a_wrong_argument_is_reported(tmp_path: Path) -> None:
    found = check(PROGRAM + MISTAKE, tmp_path)
    line = PROGRAM.count("\n") + 1
    assert found.returncode == 1
    assert f'program.py:{line}: error: Argument 1 to "generate" of "RWKV"' in found.stdout
    assert 'expected "int"' in found.stdout and "Found 1 error" in found.stdout
