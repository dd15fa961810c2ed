"""The READMEs' code blocks, run as they stand."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "rwkv_core" / "docs" / "writing-a-backend.md"
DOCUMENTS = sorted([ROOT / "README.md", *ROOT.glob("rwkv_*/README.md"), PAGE])
TUTORIAL = "### Writing a backend"


class Block(NamedTuple):
    document: Path
    line: int
    file: str  # the name given in the line before, `NAME`: means that the block is that file
    language: str
    code: str


def blocks(document: Path) -> list[Block]:
    text = document.read_text()
    found = []
    for match in re.finditer(r"(?:`([^`\n]+)`:\n\n)?^```(\w+)\n(.*?)^```$", text, re.M | re.S):
        line = text.count("\n", 0, match.start(2)) + 1
        found.append(Block(document, line, match[1] or "", match[2], match[3]))
    return found


ALL = [block for document in DOCUMENTS for block in blocks(document)]


def of(language: str) -> list[pytest.param]:
    return [
        pytest.param(block, id=f"{block.document.parent.name}-{block.line}")
        for block in ALL
        if block.language == language and not block.file
    ]


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PATH": path, **variables},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


@pytest.mark.parametrize("block", of("python"))
def test_python(block: Block, folder: Path) -> None:
    run(sys.executable, "-c", block.code, cwd=folder)


@pytest.mark.parametrize("block", of("console"))
def test_console(block: Block, folder: Path) -> None:
    for line in block.code.splitlines():
        assert line.startswith("$ rwkv-core ")
        assert run("bash", "-c", line[2:], cwd=folder)


def test_the_first_command_runs_the_main_job(tmp_path: Path) -> None:
    command = blocks(ROOT / "README.md")[0].code
    for name in ("rwkv_core", "rwkv_backend_numpy"):
        shutil.copytree(ROOT / name, tmp_path / name)
    assert len(run("bash", "-c", command, cwd=tmp_path).strip()) > 60


def test_the_second_command_is_what_ci_runs() -> None:
    command = blocks(ROOT / "README.md")[1].code.strip()
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_backend_of_the_readme_passes_the_suite_and_that_of_the_page_verify(
    tmp_path: Path,
) -> None:
    start = (ROOT / "README.md").read_text().split(TUTORIAL)[0].count("\n")
    tutorial = [block for block in blocks(ROOT / "README.md") if block.line > start]
    (tmp_path / "rwkv-core").symlink_to(ROOT)
    folder = tmp_path / "backend"
    folder.mkdir()
    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", environment, cwd=tmp_path)
    path = os.pathsep.join([str(environment / "bin"), os.environ["PATH"]])
    outputs = []
    for document in (tutorial, blocks(PAGE)):
        for block in document:
            if block.file:
                (folder / block.file).write_text(block.code)
        shell = next(block for block in document if block.language == "sh")
        outputs.append(run("bash", "-ec", shell.code, cwd=folder, PATH=path))
    assert re.search(r"\d+ passed", outputs[0])
    assert outputs[1].count(" pass ") == 2  # verify, of two dtypes
    assert "backends: strict" in outputs[1]
